"""A lock file: one process at a time, and none after the holder's end, however it ended."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import stamina

from stillreel.errors import SettingsInvalid


@contextmanager
def only_one(path: Path, *, taken: str, wait: float = 0.5) -> Iterator[None]:
    """Hold the lock file `path` for this block.

    Raises SettingsInvalid with the text `taken` when another process still holds it after `wait`
    seconds.
    """
    try:
        descriptor = _lock(path, wait)
    except BlockingIOError as exc:
        raise SettingsInvalid(taken) from exc
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def make_private(folder: Path) -> None:
    """Make a directory, and the one that it lies in, for this user only; those there stay."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _lock(path: Path, wait: float) -> int:
    for attempt in stamina.retry_context(
        on=(BlockingIOError, _Replaced), attempts=None, timeout=wait, wait_initial=0.1, wait_max=0.5
    ):
        with attempt:
            return _try_lock(path)
    raise BlockingIOError


def _try_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise _Replaced
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class _Replaced(BlockingIOError):
    """The last holder deleted the file between our opening and our locking it."""
