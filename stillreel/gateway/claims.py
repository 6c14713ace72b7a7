"""Which runs a lease may still claim: a host is to do what it claims, and to make videos.

A host that ends jobs without one gets no more of them, whatever it says about the reason: what it
says cannot be checked, and a job that it has ended for good is lost to its owner.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict

from stillreel.errors import NotLeased
from stillreel.gateway.lease import Lease, LeaseReader
from stillreel.prefect_api import FORWARD_SECONDS

OPEN_MOST = 4
"""At once."""
HOUR_MOST = 240
OF_RUN_MOST = 8
"""Claims of one run by one lease: it may hand a run back, and not for ever."""
WITHOUT_VIDEO_MOST = 5
"""Ends in a row without a video, after which a lease claims nothing any more."""
HOUR = 3_600.0

log = logging.getLogger("stillreel.gateway")


class Claims:
    """The runs that each lease has claimed and not ended.

    Counted in each API process for itself, and anew after its start.
    """

    def __init__(self, leases: LeaseReader) -> None:
        self._leases = leases
        self._claimed: dict[str, dict[str, float]] = defaultdict(dict)
        """By lease, the runs with the time until which their claim is on its way."""
        self._in_hour: Counter[tuple[str, int]] = Counter()
        """Claims by lease and hour."""
        self._of_run: Counter[tuple[str, str]] = Counter()
        """Claims by lease and run."""
        self._without_video: Counter[str] = Counter()
        """By lease, the ends in a row without a video."""

    async def begin(self, lease: Lease, run_id: str) -> str:
        """Why a lease may not claim this run; "": it may, and `end` tells what became of it.

        Raises PrefectUnavailable, PrefectRefused.
        """
        hour, run = (lease.id, int(time.monotonic() // HOUR)), (lease.id, run_id)
        if self._without_video[lease.id] >= WITHOUT_VIDEO_MOST:
            return f"This lease has ended {WITHOUT_VIDEO_MOST} jobs in a row without a video."
        if self._in_hour[hour] >= HOUR_MOST or self._of_run[run] >= OF_RUN_MOST:
            return "This lease has claimed as often as it may."
        for other, until in list(self._claimed[lease.id].items()):
            if time.monotonic() >= until and not await self._is_open(lease, other):
                self._claimed[lease.id].pop(other, None)
        claimed = self._claimed[lease.id]
        if len(claimed) >= OPEN_MOST and run_id not in claimed:
            return "This lease has as many runs as it may have at once."
        claimed[run_id] = time.monotonic() + FORWARD_SECONDS
        self._in_hour[hour] += 1
        self._of_run[run] += 1
        return ""

    def ended(self, lease: Lease, *, has_video: bool) -> None:
        """Note how a job has ended under a lease."""
        if has_video:
            self._without_video.pop(lease.id, None)
            return
        self._without_video[lease.id] += 1
        if self._without_video[lease.id] == WITHOUT_VIDEO_MOST:
            log.warning(
                "a lease ends jobs without videos; it gets no more", extra={"lease": lease.id}
            )

    def end(self, lease: Lease, run_id: str, *, is_taken: bool) -> None:
        """Note what became of a claim: whether the lease has the run now."""
        if is_taken:
            self._claimed[lease.id][run_id] = float("-inf")
        else:
            self._claimed[lease.id].pop(run_id, None)

    async def _is_open(self, lease: Lease, run_id: str) -> bool:
        try:
            held = await self._leases.held(lease, run_id)
        except NotLeased:
            return False
        return held.is_open and not held.is_over
