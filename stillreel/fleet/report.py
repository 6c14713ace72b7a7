"""What a drain did and cost: for Prefect's UI, the command line, and machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from stillreel.fleet.decision import Decision
from stillreel.fleet.labels import Label

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


class End(StrEnum):
    """How the stay of a host ended."""

    DRAINED = "drained"
    NEVER_READY = "never ready"
    LOST = "lost"
    OUTBID = "outbid"
    STALLED = "stalled"
    DEADLINE = "deadline"
    UNSEEN = "unseen"
    """It was gone when the drain started again; it costs until then, at most."""
    ENDED_EARLY = "ended early"
    """By us: the drain was cancelled or failed."""


@dataclass
class Stay:
    """The time from the create of a host to its end, all of which is paid."""

    label: Label
    provider: str
    machine: str
    usd_per_hour: float
    since: datetime
    deadline: datetime
    usd_for_bytes: float = 0.0
    ready_at: datetime | None = None
    until: datetime | None = None
    end: End | None = None
    owner: str = ""
    is_interruptible: bool = False
    usd_per_hour_at_most: float = 0.0
    """Where its price moves: the most that it may come to."""

    def hours(self, now: datetime) -> float:
        """So far, or in all."""
        return ((self.until or now) - self.since).total_seconds() / 3600

    def usd(self, now: datetime) -> float:
        """What it costs so far, or in all: boot and idle time are paid too."""
        return self.hours(now) * self.usd_per_hour + self.usd_for_bytes

    def usd_at_most(self, now: datetime) -> float:
        """The same if it lives to its deadline; what is over has cost what it has."""
        if self.until:
            return self.usd(now)
        hours = self.hours(max(now, self.deadline))
        return hours * max(self.usd_per_hour, self.usd_per_hour_at_most) + self.usd_for_bytes


@dataclass
class Report:
    """A drain, while it goes on and when it is over."""

    pool: str
    started_at: datetime
    outcome: str = ""
    decision: Decision | None = None
    stays: list[Stay] = field(default_factory=list)
    asked: int = 0
    """Machines that were asked for, whether they were made or not."""
    usd_before: float = 0.0
    """Of hosts that an earlier execution of the drain has had and given back."""
    videos: int = 0
    failed: int = 0
    waiting: list[tuple[datetime, int]] = field(default_factory=list)
    """How many jobs had not ended, by time."""

    @property
    def is_over_budget(self) -> bool:
        """Whether the month's budget alone kept it from renting."""
        return bool(self.decision and self.decision.is_over_budget)

    def usd(self, now: datetime) -> float:
        """Of all hosts."""
        return self.usd_before + sum(stay.usd(now) for stay in self.stays)

    def usd_at_most(self, now: datetime) -> float:
        """The same if those that are there live to their deadlines."""
        return self.usd_before + sum(stay.usd_at_most(now) for stay in self.stays)

    def to_json(self, now: datetime) -> dict[str, Any]:
        """The same as plain data."""
        usd = self.usd(now)
        return {
            "pool": self.pool,
            "outcome": self.outcome,
            "rented": bool(self.stays),
            "reason": self.decision.reason if self.decision else "",
            "videos": self.videos,
            "failed": self.failed,
            "hours": round(sum(stay.hours(now) for stay in self.stays), 4),
            "usd": round(usd, 4),
            "usd_per_video": round(usd / self.videos, 4) if self.videos else None,
            "hosts": [
                {
                    "label": str(stay.label),
                    "provider": stay.provider,
                    "machine": stay.machine,
                    "usd_per_hour": round(stay.usd_per_hour, 4),
                    "hours": round(stay.hours(now), 4),
                    "boot_minutes": stay.ready_at
                    and round((stay.ready_at - stay.since).total_seconds() / 60, 1),
                    "usd": round(stay.usd(now), 4),
                    "end": stay.end and str(stay.end),
                }
                for stay in self.stays
            ],
        }

    def to_markdown(self, now: datetime) -> str:
        """Table and plot, for an artifact."""
        facts = self.to_json(now)
        hosts = facts.pop("hosts")
        rows = [f"| {name} | {'-' if v is None else v} |" for name, v in facts.items()]
        parts = ["\n".join(("| drain | |", "|---|---|", *rows))]
        if hosts:
            names = list(hosts[0])
            table = [
                f"| {' | '.join(names)} |",
                f"|{'---|' * len(names)}",
                *(f"| {' | '.join(str(host[n] or '-') for n in names)} |" for host in hosts),
            ]
            parts.append("\n".join(table))
        if plot := self.plot():
            parts.append(f"Jobs that had not ended, over time:\n\n```\n{plot}\n```")
        if self.decision:
            parts.append(f"```\n{self.decision.explain()}\n```")
        return "\n\n".join(parts)

    def plot(self) -> str:
        """The jobs that had not ended as bars, from the first look to the last."""
        if not self.waiting:
            return ""
        counts = _thin([count for _, count in self.waiting], _WIDTH)
        top = max(*counts, 1)
        bars = "".join(_BARS[round(count / top * (len(_BARS) - 1))] for count in counts)
        first, last = self.waiting[0][0], self.waiting[-1][0]
        return f"{bars}\n{first:%H:%M} to {last:%H:%M} UTC, at most {top}"


def _thin(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, evenly, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
