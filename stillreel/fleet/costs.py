"""What videos on rented hosts have cost, by month and model, and what others say they cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from stillreel.fleet.leases import Lease
from stillreel.job import JobStatus
from stillreel.usage import Ended

WIDTH = 44


@dataclass(frozen=True)
class Price:
    """What somebody says that a video costs."""

    name: str
    usd: float
    usd_most: float
    source: str
    date: str

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "name": self.name,
            "usd_per_video": self.usd,
            "usd_per_video_most": self.usd_most,
            "source": self.source,
            "date": self.date,
        }


_DOCUMENT = ("first design document, section 7; not measured by us", "2026-01-18")
PRICES: Final = (
    Price("claim, all in", 0.041, 0.041, *_DOCUMENT),
    Price("claim, its GPU part", 0.028, 0.028, *_DOCUMENT),
    Price("RunPod Serverless", 0.072, 0.072, *_DOCUMENT),
    Price("Modal", 0.088, 0.088, *_DOCUMENT),
    Price("Replicate", 0.15, 0.25, *_DOCUMENT),
)
"""The claim is for 1000 videos a month; with the API's host and storage, and without."""


@dataclass(frozen=True)
class Cost:
    """A month of one model on rented hosts."""

    month: str
    model: str
    drains: int
    videos: int
    usd: float
    """All that was paid for hosts: boot, download, work and idle time."""
    unknown_usd: float
    """What drains that died may have cost beyond that, at most."""
    gpu_seconds: float
    """In which those videos had the GPU, as their receipts say."""
    gpu_usd: float
    """That time at the prices of the hosts."""

    @property
    def usd_per_video(self) -> float | None:
        return self.usd / self.videos if self.videos else None

    @property
    def waiting_share(self) -> float | None:
        """How much of the money was for boot, download and idle time, 0 to 1."""
        return max(0.0, 1 - self.gpu_usd / self.usd) if self.usd else None

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, rounded."""
        each, share = self.usd_per_video, self.waiting_share
        return {
            "month": self.month,
            "model": self.model,
            "drains": self.drains,
            "videos": self.videos,
            "usd": round(self.usd, 4),
            "usd_per_video": None if each is None else round(each, 4),
            "gpu_seconds_per_video": round(self.gpu_seconds / self.videos, 1)
            if self.videos
            else None,
            "gpu_usd_per_video": round(self.gpu_usd / self.videos, 4) if self.videos else None,
            "boot_and_idle_share": None if share is None else round(share, 3),
            "unknown_usd": round(self.unknown_usd, 4),
        }


def costs_of(
    leases: Collection[Lease], jobs: Collection[Ended], models: Mapping[str, str], *, now: datetime
) -> list[Cost]:
    """A row for each month and model that had rented hosts, the newest last.

    `models` are those of the pools. A video belongs to the drain of its model under which it
    ended; a drain, to the month in which it began.
    """
    groups: dict[tuple[str, str], list[Lease]] = {}
    for lease in leases:
        if lease.number and lease.started_at and (model := models.get(lease.pool)):
            groups.setdefault((f"{lease.started_at:%Y-%m}", model), []).append(lease)
    rows: list[Cost] = []
    for (month, model), drains in sorted(groups.items()):
        made = [
            job
            for job in jobs
            if job.model == model
            and job.status is JobStatus.COMPLETED
            and any(x.started_at and x.started_at <= job.at <= _end(x, now) for x in drains)
        ]
        told = sum(x.videos or 0 for x in drains)
        rows.append(
            Cost(
                month,
                model,
                drains=len(drains),
                videos=max(told, len(made)),  # runs of jobs may have been deleted since
                usd=sum(x.usd for x in drains),
                unknown_usd=sum(
                    max(0.0, x.reserved_usd - x.usd) for x in drains if not x.lives(now)
                ),
                gpu_seconds=sum(job.gpu_seconds for job in made),
                gpu_usd=sum(job.usd for job in made),
            )
        )
    return rows


def plot(rows: Sequence[Cost]) -> str:
    """US$ per video as bars: ours by month and model, and what others say theirs costs."""
    ours = [(f"{x.month} {x.model}", x.usd_per_video, x.usd_per_video) for x in rows]
    bars = [(name, low, high) for name, low, high in ours if low is not None and high is not None]
    bars += [(price.name, price.usd, price.usd_most) for price in PRICES]
    most, left = max(high for _, _, high in bars), max(len(name) for name, _, _ in bars)
    lines = ["US$ per video"]
    for name, low, high in bars:
        sure, range_ = round(low / most * WIDTH), round((high - low) / most * WIDTH)
        value = f"{low:.4f}" if low == high else f"{low:.4f} to {high:.4f}"
        lines.append(f"{name:<{left}}  {'█' * max(1, sure)}{'░' * range_} {value}")
    return "\n".join(lines)


def _end(lease: Lease, now: datetime) -> datetime:
    return lease.ended_at or now
