"""When a rented host has to end: it is idle, cut off, never ready, or its time is over.

The end of `stillreel host` ends the machine; what started it (`infra/`) sees to that.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from stillreel.errors import InferenceServerAway, PrefectRefused, PrefectUnavailable
from stillreel.inference.client import InferenceClient, socket_path
from stillreel.settings import FleetSettings, Settings

LOOK_SECONDS = 5.0
HAND_OVER_SECONDS = 120.0
"""So long before its time is over a host ends, so that its jobs are handed back, not broken off."""
PATIENCE_SECONDS = 10.0

log = logging.getLogger("stillreel.idle")


@dataclass(frozen=True)
class Sight:
    """What a host sees of itself at one moment."""

    is_ready: bool
    """Its inference servers answer, and have their model where one is asked for."""
    is_working: bool
    """It works on a job."""
    waiting: int | None
    """Jobs that wait for its pool; None when the Prefect server does not say."""


@dataclass
class IdleClock:
    """Says when to go. Times are seconds of one clock that never goes back, `until` excepted."""

    boot: float
    idle: float
    contact: float
    left: float
    """Seconds from `since` until it has to end."""
    since: float
    ready: bool = False
    _contact_at: float = field(init=False)
    _busy_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._contact_at = self._busy_at = self.since

    def see(self, now: float, sight: Sight) -> str:
        """Why the host has to end now; empty while it goes on.

        The idle time begins with the first readiness, and counts only while Prefect says that
        nothing waits.
        """
        if sight.waiting is not None:
            self._contact_at = now
        if not self.ready and sight.is_ready and sight.waiting is not None:
            self.ready, self._busy_at = True, now
        if sight.is_working or sight.waiting or sight.waiting is None:
            self._busy_at = now
        if now - self.since >= self.left:
            return "its time is over"
        if now - self._contact_at >= self.contact:
            return f"no contact to the Prefect server for {self.contact:.0f} s"
        if not self.ready:
            return f"not ready after {self.boot:.0f} s" if now - self.since >= self.boot else ""
        return f"idle for {self.idle:.0f} s" if now - self._busy_at >= self.idle else ""


def clock_of(fleet: FleetSettings, *, since: float, at: datetime) -> IdleClock:
    """The clock of a rented host that starts now.

    Its time is what is left until the deadline, and never more than the longest life of a host,
    for the clock of this machine may be wrong.
    """
    left = min(fleet.rented_until - at.timestamp(), fleet.host_hours * 3600)
    return IdleClock(
        boot=fleet.boot_minutes * 60,
        idle=fleet.idle_minutes * 60,
        contact=fleet.contact_minutes * 60,
        left=left - min(HAND_OVER_SECONDS, left / 10),
        since=since,
    )


def end_when_idle(settings: Settings, *, pool: str, model: str) -> None:
    """End this process as by SIGTERM when its rented host is not wanted any more.

    Nothing happens on a host that is not rented (STILLREEL_RENTED_UNTIL).
    """
    if not settings.fleet.rented_until:
        return
    clock = clock_of(settings.fleet, since=time.monotonic(), at=datetime.now(UTC))
    watch = threading.Thread(target=_watch, args=(clock, settings, pool, model), daemon=True)
    watch.start()


def _watch(clock: IdleClock, settings: Settings, pool: str, model: str) -> None:
    try:
        reason = _reason_to_end(clock, settings, pool, model)
    except Exception:  # a host that cannot tell whether it is idle must not bill
        log.exception("the idle clock failed")
        reason = "its idle clock failed"
    log.warning("this rented host ends: %s", reason)
    os.kill(os.getpid(), signal.SIGTERM)


def _reason_to_end(clock: IdleClock, settings: Settings, pool: str, model: str) -> str:
    from stillreel.fleet.backlog import Backlog
    from stillreel.fleet.calls import prefect_calls
    from stillreel.host_worker import find_processes

    ticker = threading.Event()
    with prefect_calls(PATIENCE_SECONDS) as calls:
        backlog = Backlog(calls, pool)
        while True:
            sight = Sight(
                _is_ready(settings, model),
                bool(find_processes(settings.host.home)),
                _waiting(lambda: backlog.count_waiting(datetime.now(UTC))),
            )
            if reason := clock.see(time.monotonic(), sight):
                return reason
            ticker.wait(LOOK_SECONDS)


def _waiting(count: Callable[[], int]) -> int | None:
    try:
        return count()
    except (PrefectUnavailable, PrefectRefused):
        return None


def _is_ready(settings: Settings, model: str) -> bool:
    host = settings.host
    for name in (f"gpu{n}" for n in range(host.gpus)):
        client = InferenceClient(socket_path(host.home, name), wait_for_server=0)
        try:
            health = client.health()
        except (InferenceServerAway, ValueError):
            return False
        finally:
            client.close()
        if model and not health.loaded:
            return False
    return True
