"""The offers of now that a drain may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from datetime import datetime, timedelta

from stillreel.fleet.leases import QUARANTINE, LeaseBook
from stillreel.fleet.limits import Limits
from stillreel.fleet.provider import Need, Provider
from stillreel.fleet.ranking import Batch, Ranked, rank

BAD_OWNER = 2
"""Machines of one owner that failed, after which none of that owner is rented."""
GB_A_JOB = 0.03
"""Images, latents, video: what one job moves, at most and roughly."""


def rank_now(
    provider: Provider,
    need: Need,
    limits: Limits,
    *,
    jobs: int,
    seconds_per_job: float,
    quarantined: Collection[str],
    interruptible: bool,
) -> list[Ranked]:
    """The offers of now that fit, the cheapest for so many jobs first.

    Interruptible ones where they are wanted and there are any. Raises FleetError.
    """
    batch = Batch(
        work_hours=jobs * seconds_per_job / 3600,
        down_gb=need.weights_gb + jobs * GB_A_JOB,
        up_gb=jobs * GB_A_JOB,
        idle_hours=limits.idle.total_seconds() / 3600,
    )
    for kind in (True, False) if interruptible else (False,):
        found = rank(
            provider.offers(need, interruptible=kind),
            need,
            batch,
            usd_per_hour_max=limits.usd_per_hour_max,
            quarantined=quarantined,
        )
        if found:
            return found
    return []


def quarantined(book: LeaseBook, now: datetime) -> set[str]:
    """The machines that failed lately, and the owners of two or more of them."""
    machines: dict[str, str] = {}
    for lease in book.since(now - QUARANTINE):
        machines |= dict.fromkeys(lease.bad_machines, "") | dict(lease.bad_owners)
    owners = Counter(owner for owner in machines.values() if owner)
    return {*machines, *(owner for owner, count in owners.items() if count >= BAD_OWNER)}


def usd_at_most(choice: Ranked, life: timedelta) -> float:
    """What a host of this offer costs if it lives so long, and its price goes as high as it may."""
    per_hour = max(choice.offer.usd_per_hour, choice.offer.usd_per_hour_at_most)
    return life.total_seconds() / 3600 * per_hour + usd_for_bytes(choice)


def usd_for_bytes(choice: Ranked) -> float:
    """What the bytes of a batch cost on this machine, in US$."""
    return max(0.0, choice.usd - choice.hours * choice.offer.usd_per_hour)
