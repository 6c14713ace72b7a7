"""The places of jobs that wait, in a pool of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from stillreel.jobs import marks
from stillreel.jobs.places import Places
from stillreel.jobs.record import Record, record_of
from stillreel.prefect_api import PAGE, PrefectApi
from tests.api.background import eventually, prefect_client

WAITING = PAGE + 20


class Pool:
    """A pool that no host serves, and its deployment."""

    def __init__(self, prefect: httpx.Client) -> None:
        self._prefect, self.name = prefect, f"places-{uuid4().hex}"
        self._post("/work_pools/", {"name": self.name, "type": "process"})
        self._post(f"/work_pools/{self.name}/queues", {"name": "high", "priority": 1})
        flow = self._post("/flows/", {"name": marks.FLOW})["id"]
        self._deployment = self._post(
            "/deployments/",
            {
                "name": self.name,
                "flow_id": flow,
                "work_pool_name": self.name,
                "work_queue_name": "default",
            },
        )["id"]

    def add(self, count: int, *, queue: str = "default", since: datetime) -> list[str]:
        """Runs that were to start a second after each other; their ids in that order."""
        made: list[str] = []
        while len(made) < count:
            starts = [since + timedelta(seconds=n) for n in range(len(made), count)][:100]
            made += self._create([_run(queue, start) for start in starts])
        return made

    def _create(self, runs: list[dict[str, Any]]) -> list[str]:
        """All of them: on SQLite some, or all, are dropped where Prefect writes something else."""
        path = f"/deployments/{self._deployment}/create_flow_run/bulk"
        for attempt in eventually():
            with attempt:
                results = self._post(path, runs)["results"]
                assert {result["status"] for result in results} == {"CREATED"}
                ids = [result["flow_run_id"] for result in results]
                stored = {"flow_runs": {"id": {"any_": ids}}}
                assert self._post("/flow_runs/count", stored) == len(runs)
                return ids
        raise AssertionError

    def record(self, run_id: str) -> Record:
        return record_of(self._prefect.get(f"/flow_runs/{run_id}").raise_for_status().json())

    def remove(self) -> None:
        of_pool = {"work_pools": {"name": {"any_": [self.name]}}}
        while found := self._prefect.post("/flow_runs/filter", json=of_pool).json():
            for run in found:
                self._prefect.delete(f"/flow_runs/{run['id']}").raise_for_status()
        self._prefect.delete(f"/work_pools/{self.name}").raise_for_status()

    def _post(self, path: str, body: Any) -> Any:
        return self._prefect.post(path, json=body).raise_for_status().json()


def _run(queue: str, start: datetime) -> dict[str, Any]:
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": start.isoformat()}}
    return {"state": state, "work_queue_name": queue, "idempotency_key": uuid4().hex}


@pytest.fixture
def pool(prefect_api: str) -> Iterator[Pool]:
    with prefect_client(prefect_api) as client:
        pool = Pool(client)
        try:
            yield pool
        finally:
            pool.remove()


def test_places_count_who_is_served_before(pool: Pool, prefect_api: str) -> None:
    earlier = datetime.now(UTC) - timedelta(hours=1)
    runs = [pool.record(run_id) for run_id in pool.add(2, since=earlier)]
    pool.add(3, queue="high", since=earlier)

    async def read() -> list[int]:
        api = PrefectApi(prefect_api)
        places = Places(api)
        try:
            return [await places.place(run) for run in runs]
        finally:
            await api.aclose()

    assert asyncio.run(read()) == [4, 5]


def test_a_job_far_behind_gets_the_lines_length_and_then_its_place(
    pool: Pool, prefect_api: str
) -> None:
    """As long as it is new it gets its true place at once: it is what a submit answers."""
    ids = pool.add(WAITING, since=datetime.now(UTC) - timedelta(hours=1))
    long_ago = datetime.now(UTC) - timedelta(minutes=1)
    front = pool.record(ids[PAGE - 1])
    far = replace(pool.record(ids[PAGE + 9]), created_at=long_ago)
    new = pool.record(pool.add(1, since=datetime.now(UTC))[0])

    async def read() -> tuple[int, int, list[int]]:
        api = PrefectApi(prefect_api)
        places = Places(api)
        try:
            told = await places.place(front), await places.place(new)
            seen = [await places.place(far)]
            async with asyncio.timeout(30):
                while seen[-1] == WAITING + 1:
                    await asyncio.sleep(0.05)
                    seen.append(await places.place(far))
            return *told, seen
        finally:
            await api.aclose()

    at_front, at_end, seen = asyncio.run(read())
    assert at_front == PAGE
    assert at_end == WAITING + 1
    assert (seen[0], seen[-1]) == (WAITING + 1, PAGE + 10)
