"""Processes that end together: a child that dies with its parent, and the end of a whole tree."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import NoReturn

import psutil

log = logging.getLogger("stillreel.process")

HOST_VARIABLE = "STILLREEL_HOST_PID"
"""In the environment of a worker and its flow processes: the process id of their host."""

NO_RESTART = 3
"""The exit code of a service that says: what stops me does not get better by itself."""

_PR_SET_PDEATHSIG = 1
_CHECK_SECONDS = 1.0
_FORWARD_SECONDS = 0.2


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


def die_with_host() -> None:
    """End this engine process and its supervisor soon after the host that they work for.

    They may outlive their worker, which the host restarts, but not the host. A thread looks once
    a second; without a host in the environment nothing is watched.
    """
    me = psutil.Process()
    host = me.environ().get(HOST_VARIABLE, "")
    if host:
        pair = [p for p in (me.parent(), me) if p is not None and p.pid != 1]
        threading.Thread(target=_watch_host, args=(int(host), pair), daemon=True).start()


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
        send(tree, signal.SIGTERM)
        _, tree = psutil.wait_procs(tree, timeout=grace)
    send(tree, signal.SIGKILL)
    psutil.wait_procs(tree, timeout=10)


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those of the processes that still live."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def wait_gone(processes: Iterable[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those that still live after `timeout` seconds.

    A child of ours is not reaped, as psutil would: its exit code is for the code that started it.
    """
    ticker, deadline = threading.Event(), time.monotonic() + timeout
    while left := [p for p in processes if _lives(p.pid, at=p.create_time())]:
        if time.monotonic() > deadline:
            break
        ticker.wait(0.1)
    return left


def _watch_parent(parent: int) -> None:
    ticker = threading.Event()
    while os.getppid() == parent:
        ticker.wait(_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _watch_host(pid: int, pair: Sequence[psutil.Process]) -> None:
    ticker, born = threading.Event(), pair[-1].create_time()
    while _lives(pid, at=born):
        ticker.wait(_CHECK_SECONDS)
    log.warning("the host is gone, and this process with it")
    send(pair, signal.SIGKILL)


def _lives(pid: int, *, at: float) -> bool:
    """Whether this process lives, and lived at that time: a younger one has only its number."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= at
    except psutil.NoSuchProcess:
        return False


def _watch_over(argv: Sequence[str], parent: int) -> int:
    """Run a command as a child to its end, and return its exit code (a signal's: 128 + number).

    SIGTERM and SIGINT are passed on; when `parent` is not our parent any more the child's whole
    tree is killed. For systems whose kernel does not tie a child to its parent.
    """
    received: list[signal.Signals] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(signal.Signals(number)))
    child = subprocess.Popen(argv)
    while child.poll() is None:
        if os.getppid() != parent:
            end_tree(child.pid)
        while received:
            child.send_signal(received.pop(0))
        try:
            child.wait(timeout=_FORWARD_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _main() -> None:
    """`python -m stillreel.process PARENT COMMAND ...`: see `with_parent`."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    if sys.platform != "linux":  # what watches the parent would not survive an exec
        sys.exit(_watch_over(argv, parent))
    die_with_parent(parent)
    os.execvp(argv[0], argv)  # noqa: S606 - the command is our supervisor's own


if __name__ == "__main__":
    _main()
