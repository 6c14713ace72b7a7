"""Processes that end together: a child that dies with its parent, and the end of a whole tree."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import NoReturn

import psutil

_PR_SET_PDEATHSIG = 1
_PARENT_CHECK_SECONDS = 1.0


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent ends, however that ends.

    Linux does it at once (prctl(2), PR_SET_PDEATHSIG); elsewhere a thread looks once a second.
    `parent` is the parent's process id as it was: it may have ended before this call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call above
            os.kill(os.getpid(), signal.SIGKILL)
        return
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def with_parent(argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` as a child of this process and dies with it.

    Start it from the main thread: to the kernel a child's parent is the thread that made it.
    """
    return [sys.executable, "-m", "stillreel.process", str(os.getpid()), *argv]


def is_engine_child() -> bool:
    """Whether this process is the engine that a Prefect worker's command started for one run."""
    return "prefect.engine" in psutil.Process().cmdline()


def leave() -> NoReturn:
    """End this engine process at once, and let the run's state be its successor's to tell.

    An exception would do more: Prefect's engine sets a final state for it.
    """
    logging.shutdown()
    os._exit(0)


def end_tree(pid: int, *, grace: float = 0.0) -> None:
    """End a process and all its descendants: SIGTERM, then SIGKILL after `grace` seconds.

    Returns when all are gone. A process that does not exist is fine.
    """
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    if grace > 0:
        _signal(tree, signal.SIGTERM)
        _, tree = psutil.wait_procs(tree, timeout=grace)
    _signal(tree, signal.SIGKILL)
    psutil.wait_procs(tree, timeout=10)


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _watch_parent(parent: int) -> None:
    ticker = threading.Event()
    while os.getppid() == parent:
        ticker.wait(_PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _main() -> None:
    """`python -m stillreel.process PARENT COMMAND ...`: see `with_parent`."""
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command is our supervisor's own


if __name__ == "__main__":
    _main()
