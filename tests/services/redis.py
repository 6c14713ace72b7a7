"""Redis from Debian's packages, with a new directory, on loopback."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.services.daemon import Daemon, NotReady, ServiceFailed, free_ports, run, running_daemon


def is_installed() -> bool:
    """Whether this machine has a Redis of Debian's."""
    return all(map(shutil.which, ("redis-server", "redis-cli", "setpriv")))


@contextmanager
def running_redis(options: Sequence[str], *, password: str) -> Iterator[int]:
    """The port of a fresh server of loopback with these options (`--name value`).

    Start it from the main thread. Raises ServiceFailed with the log when it does not start.
    """
    with redis_daemon(options, password=password) as (port, _):
        yield port


@contextmanager
def redis_daemon(options: Sequence[str], *, password: str) -> Iterator[tuple[int, Daemon]]:
    """The same, and the server itself."""
    with tempfile.TemporaryDirectory(prefix="redis-") as temporary:
        home, [port] = Path(temporary), free_ports(1)
        own = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(home))
        with running_daemon(["redis-server", *options, *own], log=home / "redis.log") as daemon:
            daemon.wait_until(partial(_answers, port, password))
            yield port, daemon


def redis_cli(port: int, password: str, *words: str) -> str:
    """What Redis answers to a command."""
    call = ("redis-cli", "--no-auth-warning", "-h", "127.0.0.1", "-p", str(port), "-a", password)
    return run(*call, *words, cwd=Path("/"))


def _answers(port: int, password: str) -> None:
    try:
        answer = redis_cli(port, password, "ping").strip()
    except ServiceFailed as exc:
        raise NotReady(str(exc)) from exc
    if answer != "PONG":
        raise NotReady(answer)
