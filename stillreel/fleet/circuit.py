"""The circuit breaker of a pool: three hosts in a row did not come to work, so none is rented.

It holds across drains, until a person has looked and closes it.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from stillreel.fleet.leases import Lease

WORKED, FAILED = "+", "-"
"""What a drain notes of each host: whether it came to work."""


def failed_boots(leases: Collection[Lease], pool: str, *, closed_at: datetime | None) -> int:
    """How many hosts of this pool in a row did not come to work, up to now.

    Those of drains that began before the circuit was closed do not count.
    """
    drains = [
        lease
        for lease in leases
        if lease.pool == pool
        and not (closed_at and lease.started_at and lease.started_at <= closed_at)
    ]
    in_order = sorted(drains, key=lambda lease: (lease.started_at is None, lease.started_at))
    boots = "".join(lease.boots for lease in in_order)
    return len(boots) - len(boots.rstrip(FAILED))
