"""How much a host may send: calls and bytes in a minute, and sockets at once.

Counted in each API process for itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stillreel.errors import TooManyRequests
from stillreel.gateway.kept import Kept

CALLS = 2_400
"""In a minute; a host with three short jobs makes about 300."""
BYTES = 30_000_000
"""In a minute, of bodies and events."""
SOCKETS = 16
"""Of one lease at once: one of its worker, and one for each job."""
UNNAMED = 64
"""Sockets of all that have not said yet who they are."""
STRANGERS = 60
"""Names of drains that were never seen before and may be looked up in a minute, of all together."""
MINUTE = 60.0

_LEASES_MOST = 10_000


class Budget:
    """What each lease has spent of its minute. Every method raises TooManyRequests."""

    def __init__(
        self, *, calls: int = CALLS, size: int = BYTES, strangers: int = STRANGERS
    ) -> None:
        self._calls, self._size, self._strangers = calls, size, strangers
        self._spent: Kept[Counter[str]] = Kept(most=_LEASES_MOST)
        self._sockets: Counter[str] = Counter()

    def call(self, lease_id: str) -> None:
        """Count a call, or an event."""
        self._spend(lease_id, "calls", 1, self._calls)

    def size(self, lease_id: str, count: int) -> None:
        """Count bytes that have come."""
        self._spend(lease_id, "bytes", count, self._size)

    def stranger(self) -> None:
        """Count a question for something that may not be there, by somebody who is not known."""
        self._spend("", "strangers", 1, self._strangers)

    @contextmanager
    def socket(self, lease_id: str = "") -> Iterator[None]:
        """Count a socket for as long as it is open; without a lease, one that is not known yet."""
        if self._sockets[lease_id] >= (SOCKETS if lease_id else UNNAMED):
            raise TooManyRequests("There are as many sockets open as may be.")
        self._sockets[lease_id] += 1
        try:
            yield
        finally:
            self._sockets[lease_id] -= 1
            if not self._sockets[lease_id]:
                del self._sockets[lease_id]

    def _spend(self, name: str, what: str, count: int, most: int) -> None:
        minute = int(time.monotonic() // MINUTE)
        spent = self._spent.get(name)
        if spent is None or spent["minute"] != minute:
            spent = self._spent.put(name, Counter(minute=minute))
        spent[what] += count
        if spent[what] > most:
            refused = TooManyRequests(f"{most} {what} in a minute are the most here.")
            refused.retry_after = MINUTE - time.monotonic() % MINUTE
            raise refused
