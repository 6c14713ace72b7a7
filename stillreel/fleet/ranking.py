"""Which offer costs least for this batch: hours, disk and the bytes that a new host downloads."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from stillreel.fleet.provider import Need, Offer


@dataclass(frozen=True)
class Batch:
    """What is to be done on one host."""

    work_hours: float
    """GPU time of all jobs."""
    down_gb: float = 0.0
    """Weights and images."""
    up_gb: float = 0.0
    boot_hours: float = 0.1
    """From the create to the first download: image, start."""
    idle_hours: float = 5 / 60
    """The idle minutes at the end, which are paid as well."""


@dataclass(frozen=True)
class Ranked:
    """An offer and what the batch would cost there."""

    offer: Offer
    hours: float
    usd: float


def rank(
    offers: Iterable[Offer],
    need: Need,
    batch: Batch,
    *,
    usd_per_hour_max: float,
    quarantined: Collection[str] = (),
) -> list[Ranked]:
    """The offers that fit, the cheapest for this batch first."""
    fitting = (
        offer
        for offer in offers
        if not misfit(offer, need, usd_per_hour_max=usd_per_hour_max, quarantined=quarantined)
    )
    ranked = (priced(offer, batch) for offer in fitting)
    able = (found for found in ranked if found.hours <= found.offer.hours_left)
    return sorted(able, key=lambda found: (found.usd, -found.offer.reliability, found.offer.id))


def priced(offer: Offer, batch: Batch) -> Ranked:
    """What the whole batch takes and costs on this machine, download and idle time included."""
    download = batch.down_gb * 8000 / offer.inet_down / 3600 if offer.inet_down > 0 else 0.0
    hours = batch.boot_hours + download + batch.work_hours + batch.idle_hours
    usd = (
        hours * offer.usd_per_hour
        + batch.down_gb * offer.usd_per_gb_down
        + batch.up_gb * offer.usd_per_gb_up
    )
    return Ranked(offer, hours, usd)


def misfit(
    offer: Offer, need: Need, *, usd_per_hour_max: float, quarantined: Collection[str] = ()
) -> str:
    """Why this offer will not do; empty when it does."""
    if offer.machine and offer.machine in quarantined:
        return f"machine {offer.machine} is in quarantine"
    if offer.owner and offer.owner in quarantined:
        return f"the owner {offer.owner} is in quarantine"
    if not 0 < offer.usd_per_hour <= usd_per_hour_max:
        return f"US$ {offer.usd_per_hour:g} an hour is not within US$ {usd_per_hour_max:g}"
    return _wrong_gpu(offer, need) or _out_of_bounds(offer, need)


def _wrong_gpu(offer: Offer, need: Need) -> str:
    if need.gpu_names and offer.gpu_name not in need.gpu_names:
        return f"GPU {offer.gpu_name} is not one of {', '.join(need.gpu_names)}"
    return "" if offer.gpu_count == 1 else f"{offer.gpu_count} GPUs, and one is used"


def _out_of_bounds(offer: Offer, need: Need) -> str:
    for name, value, (low, high) in (
        ("GPU memory", offer.gpu_gb, need.gpu_gb),
        ("memory", offer.ram_gb, need.ram_gb),
    ):
        if not low <= value <= high:
            return f"{name} of {value:g} GB is not within {low:g} to {high:g}"
    for name, value, least in (
        ("disk in GB", offer.disk_gb, need.disk_gb),
        ("CUDA", offer.cuda, need.cuda),
        ("download in Mb/s", offer.inet_down, need.inet_down),
        ("reliability", offer.reliability, need.reliability),
    ):
        if value < least:
            return f"{name}: {value:g} is below {least:g}"
    return ""
