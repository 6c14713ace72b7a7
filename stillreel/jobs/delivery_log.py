"""The attempts to tell the ends of a job, a row each: two processes that write at once lose none.

Labels are merged by read-then-write and tags replaced as a whole, so neither can hold a list that
several write. An artifact without a key is an insert, goes with its run, and is deleted with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from stillreel.prefect_api import PAGE, PrefectApi

TYPE = "delivery-attempt"
SHOWN = 20
"""Attempts of a job that are told, the newest."""
PAGES = 5
"""Pages of attempts that are read for one question, of however many jobs."""


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One attempt to tell the end of a round; neither address nor text of the receiver is kept."""

    round: int
    at: datetime
    """When it began."""
    seconds: float
    status_code: int | None = None
    """What the receiver answered; None where nothing came."""
    error_code: str | None = None
    """Of our errors; None where the receiver took it."""


async def append(api: PrefectApi, run_id: str, attempt: DeliveryAttempt) -> None:
    """Write an attempt down. Raises PrefectUnavailable, PrefectRefused."""
    # The id tells a row from its repetition: a write is sent again where its answer was lost.
    data = {"id": uuid4().hex, **asdict(attempt), "at": attempt.at.isoformat()}
    await api.post("/artifacts/", {"type": TYPE, "flow_run_id": run_id, "data": data})


async def read(api: PrefectApi, run_ids: Sequence[str]) -> dict[str, tuple[DeliveryAttempt, ...]]:
    """The newest attempts by run, the newest first. Raises PrefectUnavailable."""
    found: dict[str, dict[str, DeliveryAttempt]] = {}
    for n in range(0, len(run_ids), PAGE):
        runs = {"flow_run_id": {"any_": list(run_ids[n : n + PAGE])}, "type": {"any_": [TYPE]}}
        body = {"artifacts": runs, "sort": "CREATED_DESC", "limit": PAGE}
        for page in range(PAGES):
            rows = await api.ask("/artifacts/filter", {**body, "offset": page * PAGE})
            for row in rows:
                with suppress(KeyError, TypeError, ValueError):  # none of ours
                    attempt = _attempt(row["data"])
                    found.setdefault(row["flow_run_id"], {})[row["data"]["id"]] = attempt
            if len(rows) < PAGE:
                break
    return {run: _newest(attempts.values()) for run, attempts in found.items()}


def _newest(attempts: Iterable[DeliveryAttempt]) -> tuple[DeliveryAttempt, ...]:
    return tuple(sorted(attempts, key=lambda attempt: attempt.at, reverse=True)[:SHOWN])


def _attempt(data: Mapping[str, Any]) -> DeliveryAttempt:
    at, status = datetime.fromisoformat(data["at"]), data["status_code"]
    return DeliveryAttempt(
        round=int(data["round"]),
        at=at.replace(tzinfo=at.tzinfo or UTC),
        seconds=float(data["seconds"]),
        status_code=None if status is None else int(status),
        error_code=data["error_code"],
    )
