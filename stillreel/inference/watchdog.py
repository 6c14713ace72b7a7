"""The thread that ends the server when the one that uses the GPU is stuck.

A thread inside a CUDA call, or in a loop, cannot be cancelled; only its process can be ended. The
host starts the server again, and the jobs that waited for it go on waiting.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time

from stillreel.inference.runner import Pulse, Runner

log = logging.getLogger("stillreel.inference")

STUCK = 4
"""The exit code of a server that ended itself because its work made no progress."""

_CHECK_SECONDS = 0.5


def watch_over(runner: Runner) -> None:
    """Look after a runner from now on: end this process when its work makes no progress.

    The log gets the stack of every thread, and the job's attempt the reason.
    """
    threading.Thread(target=_watch, args=(runner,), name="watchdog", daemon=True).start()


class Silence:
    """How long a pulse has stayed the same; no look counts for more than `most` seconds.

    A process that was stopped for minutes, or a machine that slept, has not been silent.
    """

    def __init__(self, *, most: float) -> None:
        self._most = most
        self._pulse: Pulse | None = None
        self._looked_at = 0.0
        self._seconds = 0.0

    def look(self, pulse: Pulse | None, now: float) -> float:
        """Seconds of silence, with this pulse at this time; 0 while there is no work."""
        if pulse is None or pulse != self._pulse:
            self._seconds = 0.0
        else:
            self._seconds += min(now - self._looked_at, self._most)
        self._pulse, self._looked_at = pulse, now
        return self._seconds


def _watch(runner: Runner) -> None:
    ticker, silence = threading.Event(), Silence(most=4 * _CHECK_SECONDS)
    while True:
        pulse = runner.pulse
        seconds = silence.look(pulse, time.monotonic())
        if pulse is not None and seconds > pulse.patience:
            break
        ticker.wait(_CHECK_SECONDS)
    problem = runner.give_up(pulse, seconds)
    faulthandler.dump_traceback(all_threads=True)
    log.error("%s; this server ends, for another one to start", problem.message)
    logging.shutdown()
    os._exit(STUCK)
