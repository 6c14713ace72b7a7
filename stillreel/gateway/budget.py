"""How much a host may send and have looked up, in a minute, a day, and at once.

Counted in each API process for itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stillreel.errors import TooManyRequests
from stillreel.gateway.kept import Kept

CALLS = 1_200
"""In a minute; a host with three short jobs makes about 300."""
LOOKS = 600
"""Questions to Prefect in a minute about what is not known yet: runs, task runs, artifacts."""
BYTES = 12_000_000
"""In a minute, of bodies and events."""
DAY_BYTES = 500_000_000
"""The same in a day: so much of Prefect's database is a lease's at most."""
ARTIFACTS = 300
"""New ones in a day, of one run; a job makes five."""
REPORTS = 6_000
"""The same of one host, which reports twice a minute."""
AT_ONCE = 16
"""Calls of one lease at once."""
SOCKETS = 16
"""Of one lease at once: one of its worker, and one for each job."""
UNNAMED = 64
"""Sockets of all that have not said yet who they are."""
STRANGERS = 60
"""Looks in a minute for tokens that are not known, of all together."""
MINUTE, DAY = 60.0, 86_400.0

_LEASES_MOST = 10_000


class Budget:
    """What each lease has spent of its minute. Every method raises TooManyRequests."""

    def __init__(
        self,
        *,
        calls: int = CALLS,
        looks: int = LOOKS,
        size: int = BYTES,
        day_size: int = DAY_BYTES,
        strangers: int = STRANGERS,
    ) -> None:
        self._calls, self._looks, self._strangers = calls, looks, strangers
        self._size, self._day_size = size, day_size
        self._spent: Kept[Counter[str]] = Kept(most=_LEASES_MOST)
        self._spent_today: Kept[Counter[str]] = Kept(most=_LEASES_MOST)
        self._open: Counter[str] = Counter()
        self._sockets: Counter[str] = Counter()

    def call(self, lease_id: str) -> None:
        """Count a call, or an event."""
        self._spend(self._spent, lease_id, "calls", 1, self._calls)

    def look(self, lease_id: str) -> None:
        """Count a question to Prefect about something that is not known yet."""
        self._spend(self._spent, lease_id, "looks", 1, self._looks)

    def size(self, lease_id: str, count: int) -> None:
        """Count bytes that have come."""
        self._spend(self._spent, lease_id, "bytes", count, self._size)
        self._spend(self._spent_today, lease_id, "bytes", count, self._day_size, DAY)

    def artifact(self, run_id: str) -> None:
        """Count a new artifact of this run."""
        self._spend(self._spent_today, run_id, "artifacts", 1, ARTIFACTS, DAY)

    def report(self, lease_id: str) -> None:
        """Count a report of the host of this lease."""
        self._spend(self._spent_today, lease_id, "reports", 1, REPORTS, DAY)

    def stranger(self) -> None:
        """Count a look for the token of somebody who is not known."""
        self._spend(self._spent, "", "strangers", 1, self._strangers)

    @contextmanager
    def turn(self, lease_id: str) -> Iterator[None]:
        """Count a call for as long as it is answered."""
        with self._counted(self._open, lease_id, AT_ONCE, "calls at once"):
            yield

    @contextmanager
    def socket(self, lease_id: str = "") -> Iterator[None]:
        """Count a socket for as long as it is open; without a lease, one that is not known yet."""
        most = SOCKETS if lease_id else UNNAMED
        with self._counted(self._sockets, lease_id, most, "sockets at once"):
            yield

    @contextmanager
    def _counted(self, counts: Counter[str], name: str, most: int, what: str) -> Iterator[None]:
        if counts[name] >= most:
            raise TooManyRequests(f"{most} {what} are the most here.")
        counts[name] += 1
        try:
            yield
        finally:
            counts[name] -= 1
            if not counts[name]:
                del counts[name]

    def _spend(
        self,
        kept: Kept[Counter[str]],
        name: str,
        what: str,
        count: int,
        most: int,
        seconds: float = MINUTE,
    ) -> None:
        period = int(time.monotonic() // seconds)
        spent = kept.get(name)
        if spent is None or spent["period"] != period:
            spent = kept.put(name, Counter(period=period))
        spent[what] += count
        if spent[what] > most:
            refused = TooManyRequests(f"{most} {what} in {seconds:g} s are the most here.")
            refused.retry_after = seconds - time.monotonic() % seconds
            raise refused
