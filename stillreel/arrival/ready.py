"""Probes that are started ahead, for half of what a look takes is the import of the decoders.

Each is used once: what has seen one stranger's file never sees another's.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stillreel.errors import ArrivalUnread

PROBE = Path(__file__).with_name("probe.py")


@dataclass(frozen=True)
class Probe:
    """A process that waits for its one order, and the socket by which it gets that."""

    process: subprocess.Popen[bytes]
    line: socket.socket

    def order(self, numbers: Sequence[str | int], file: IO[bytes], answer: IO[bytes]) -> None:
        """Have it look at this file, and write into `answer` what it finds.

        Raises ArrivalUnread where it has ended meanwhile.
        """
        given = [file.fileno(), answer.fileno()]
        try:
            socket.send_fds(self.line, [json.dumps(numbers).encode()], given)
        except OSError as exc:
            raise ArrivalUnread from exc

    def end(self) -> None:
        """Kill it and all that it may have started; once, for its number may be another's then."""
        if self.line.fileno() < 0:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.line.close()


_waiting: deque[Probe] = deque()
"""Mostly one, once a first one was needed."""


@contextmanager
def ready_probe() -> Iterator[Probe]:
    """A probe for one look, which has been ended afterwards; the next one begins to get ready."""
    probe = _take()
    try:
        if not _waiting:
            with suppress(OSError):  # this one is there, whatever becomes of the next
                _waiting.append(_start())
        yield probe
    finally:
        probe.end()


@atexit.register
def end_waiting() -> None:
    """End what waits for an order that will not come."""
    while _waiting:
        _waiting.pop().end()


def _take() -> Probe:
    while _waiting:
        with suppress(IndexError):  # another thread was faster
            probe = _waiting.popleft()
            if probe.process.poll() is None:
                return probe
            probe.end()
    return _start()


def _start() -> Probe:
    line, theirs = socket.socketpair()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", str(PROBE)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},  # ours holds every secret that we have
            start_new_session=True,
        )
    except OSError:
        line.close()
        raise
    finally:
        theirs.close()
    return Probe(process, line)
