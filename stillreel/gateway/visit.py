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
    begun_at: datetime
    """When a host first claimed this run: inference may be that one's."""


class Door(Protocol):
    """Who may come in. Its methods raise LeaseRefused, NotLeased, PrefectUnavailable."""

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
