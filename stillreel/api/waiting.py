"""`Prefer: wait=n` (RFC 7240): hold the answer until the job has ended, for a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Request

from stillreel.api.services import Services
from stillreel.jobs.reader import ACTIVE_SECONDS, Snapshot

LONGEST_SECONDS = 60


@dataclass(frozen=True)
class Wish:
    """What a Prefer header asks for, as far as it is granted."""

    seconds: int = 0
    is_async: bool = False
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def wish_of(header: str | None) -> Wish:
    """The wish in a Prefer header; what is not understood is passed over, as RFC 7240 asks."""
    for part in (header or "").split(","):
        name, _, value = part.partition(";")[0].strip().lower().partition("=")
        name, value = name.strip(), value.strip().strip('"')
        if name == "respond-async":
            return Wish(is_async=True, headers={"Preference-Applied": "respond-async"})
        if name == "wait" and (not value or (value.isascii() and value.isdigit())):
            seconds = int(value) if value and len(value) < 4 else LONGEST_SECONDS
            seconds = min(seconds, LONGEST_SECONDS)
            return Wish(seconds=seconds, headers={"Preference-Applied": f"wait={seconds}"})
    return Wish()


async def wait_for_end(
    request: Request, services: Services, snapshot: Snapshot, seconds: float
) -> Snapshot:
    """The job when it has ended, when the time is over, or when the client has gone."""
    deadline = time.monotonic() + seconds
    while not snapshot.has_ended:
        left = deadline - time.monotonic()
        if left <= 0 or await request.is_disconnected():
            break
        await asyncio.sleep(min(ACTIVE_SECONDS, left))
        snapshot = await services.reader.get(snapshot.record.job_id)
    return snapshot
