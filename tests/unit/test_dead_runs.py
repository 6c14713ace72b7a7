"""What the keeper takes for a sign that it is deaf, and what not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from stillreel.api.services import Services
from stillreel.chores.dead_runs import DEAF_SECONDS, DeadRuns
from stillreel.chores.tally import Tally
from stillreel.prefect_api import PrefectApi
from tests.receiver import answer, receiver

RUN = {
    "id": str(uuid4()),
    "flow_id": str(uuid4()),
    "created": "2026-11-28T12:00:00+00:00",
    "state": {"type": "RUNNING", "name": "Running", "timestamp": "2026-11-28T12:00:00+00:00"},
}
NO_EVENTS: dict[str, Any] = {"events": []}


async def look(answers: Sequence[Any], *, steps: int, seconds: float) -> Tally:
    """What a keeper noted that looked so often, each `seconds` later, at a Prefect saying this."""
    tally, now = Tally(), 0.0
    with receiver(*(answer(200, json.dumps(body).encode()) for body in answers)) as prefect:
        api = PrefectApi(prefect.url)
        services = cast("Services", SimpleNamespace(api=api))  # all that a look without an end uses
        runs = DeadRuns(services, tally, clock=lambda: now)
        for _ in range(steps):
            await runs.look()
            now += seconds
        await api.aclose()
    return tally


def test_a_keeper_is_not_deaf_at_the_first_job_after_a_quiet_time() -> None:
    quiet = [[]] * 6
    a_job = [[RUN], NO_EVENTS, None, NO_EVENTS]  # runs, heartbeats, its own word, its own echo
    assert DEAF_SECONDS < 5 * 15.0
    assert asyncio.run(look([*quiet, *a_job], steps=7, seconds=15.0)).counts == {}


def test_a_keeper_that_hears_nothing_while_a_job_runs_is_deaf() -> None:
    looks = [[RUN], NO_EVENTS, None, NO_EVENTS] * 5
    assert asyncio.run(look(looks, steps=5, seconds=15.0)).counts == {"deaf": 1}
