"""How many runs a lease works on: a host that claims more than it can do keeps them from others."""

from __future__ import annotations

import time
from collections import defaultdict

from stillreel.errors import NotLeased
from stillreel.gateway.lease import Lease, LeaseReader
from stillreel.prefect_api import FORWARD_SECONDS

OPEN_MOST = 4


class Claims:
    """The runs that each lease has claimed and not ended.

    Counted in each API process for itself, and anew after its start.
    """

    def __init__(self, leases: LeaseReader) -> None:
        self._leases = leases
        self._claimed: dict[str, dict[str, float]] = defaultdict(dict)
        """By lease, the runs with the time until which their claim is on its way."""

    async def begin(self, lease: Lease, run_id: str) -> bool:
        """Whether there is room for one more, which then counts; `end` tells what became of it.

        Raises PrefectUnavailable, PrefectRefused.
        """
        for other, until in list(self._claimed[lease.id].items()):
            if time.monotonic() >= until and not await self._is_open(lease, other):
                self._claimed[lease.id].pop(other, None)
        claimed = self._claimed[lease.id]
        if len(claimed) >= OPEN_MOST and run_id not in claimed:
            return False
        claimed[run_id] = time.monotonic() + FORWARD_SECONDS
        return True

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
