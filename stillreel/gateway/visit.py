"""A rented host at work on one of its runs, and who lets it in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from stillreel.gateway.access import Access
from stillreel.job import JobSpec


@dataclass(frozen=True)
class Visit:
    """A host at work on one of its runs."""

    lease: str
    run_id: str
    job_id: str
    access: Access
    order: Callable[[], JobSpec] = field(repr=False)
    """What was ordered. Raises RequestRejected."""
    token: str = field(repr=False)


@dataclass(frozen=True)
class Terms:
    """What the control side itself wrote down of a host and of a run that was handed to it."""

    host: str
    """The name of the host, as the drain gave it."""
    usd_per_hour: float
    """What the drain pays for it."""
    claimed_at: datetime
    had_before: float = 0.0
    """Seconds that hosts had this run before, in this round: the inference may be one of theirs."""

    def seconds(self, at: datetime) -> float:
        """How long hosts have had the run by now; the time in which it waited is no part of it."""
        return self.had_before + max(0.0, (at - self.claimed_at).total_seconds())


class Door(Protocol):
    """Who may come in. Its methods raise LeaseRefused, NotLeased, PrefectUnavailable.

    Each visit counts as a call of its lease: `enter` raises TooManyRequests too.
    """

    async def enter(self, token: str, run_id: str, *, writes: bool = False) -> Visit:
        """The visit of the host with this token, about this run of its own."""
        ...

    async def is_current(self, visit: Visit) -> None:
        """Nothing, while the run is still this host's and its job has not ended.

        It is asked right before anything is stored. Raises StaleExecution too.
        """
        ...

    async def terms(self, visit: Visit) -> Terms:
        """Of the lease that the run was handed to."""
        ...
