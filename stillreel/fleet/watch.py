"""What is seen of one host, and when its stay ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from stillreel.fleet.backlog import Ended
from stillreel.fleet.limits import Limits
from stillreel.fleet.provider import Host, HostState
from stillreel.fleet.report import End, Stay
from stillreel.idle import HAND_OVER_SECONDS

GRACE = timedelta(minutes=2)
"""A host ends itself when it is idle; so much later we do it. Its clock may be wrong by as much."""
MISSING = 3
"""Looks in a row that must not find a host before it counts as gone: lists lag."""
EARLY = timedelta(seconds=HAND_OVER_SECONDS) + GRACE
"""So long before its deadline a host may end itself, to hand its jobs back."""


@dataclass
class Watch:
    """What has been seen of one host, and what follows from it."""

    stay: Stay
    host: Host
    limits: Limits
    adopted_at: datetime | None = None
    """Since when this process watches a host that one before it has asked for."""
    missing: int = 0
    is_open: bool = True
    went_idle: bool = False
    """Nothing was to be done for it when it was first missing, so it has ended itself."""
    ended: Ended = field(default_factory=Ended)
    online_at: datetime | None = None
    progress_at: datetime | None = None
    quiet_since: datetime | None = None
    idle_since: datetime | None = None
    """Since when nothing waits; other hosts may be at work."""

    def see_host(self, now: datetime, host: Host | None, *, is_alone: bool) -> None:
        """What the provider says; None where it shows none. `is_alone`: it has all the work."""
        self.missing = 0 if host else self.missing + 1
        self.host = host or self.host
        if self.missing == 1:
            is_idle = self.idle_since and now - self.idle_since >= self.limits.idle - GRACE
            self.went_idle = not self.is_open or (not is_alone and bool(is_idle))

    def see_jobs(
        self, now: datetime, *, waiting: int, open_: int, ended: Ended, online: bool
    ) -> None:
        """How many jobs wait, have not ended, and have, and whether the host's worker is there."""
        is_first = online and not self.stay.ready_at
        if online:
            self.stay.ready_at = self.stay.ready_at or now
            self.online_at = now
        if is_first or ended != self.ended or not open_:
            self.ended, self.progress_at = ended, now
        self.is_open = open_ > 0
        # Asked after the host: what had ended by now had ended before that was missing.
        self.went_idle = self.went_idle or (self.missing == 1 and not open_)
        self.quiet_since = None if open_ else self.quiet_since or now
        self.idle_since = None if waiting else self.idle_since or now

    def end(self, now: datetime) -> End | None:
        """How the stay ends now; None while it goes on."""
        ready_at = self.stay.ready_at
        broken = End.LOST if ready_at else End.NEVER_READY
        if ready_at and now >= self.stay.deadline - EARLY:  # it has handed its jobs back
            broken = End.DEADLINE
        if self.missing >= MISSING:  # it has ended itself, which is right when nothing is left
            return End.DRAINED if ready_at and self.went_idle else broken
        if self.host.state is HostState.LOST:
            return broken
        if self.host.state is HostState.STOPPED:
            return End.OUTBID
        if now >= self.stay.deadline:
            return End.DEADLINE
        if not ready_at:
            # A worker that is not seen at the first look after a hand-over may have worked before.
            since = max(self.stay.since, self.adopted_at or self.stay.since)
            return End.NEVER_READY if now - since > self.limits.boot else None
        return self._end_of_work(now)

    def _end_of_work(self, now: datetime) -> End | None:
        limits = self.limits
        if self.quiet_since and now - self.quiet_since > limits.idle + GRACE:
            return End.DRAINED
        if self.online_at and now - self.online_at > limits.contact:
            return End.LOST
        if self.progress_at and now - self.progress_at > limits.progress:
            return End.STALLED
        return None
