"""The jobs of one pool, as a drain counts them, and whether its host is at work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from stillreel.fleet.calls import PrefectCalls
from stillreel.fleet.decision import Waiting
from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.record import record_of
from stillreel.prefect_api import Json
from stillreel.usage import Ended as Job
from stillreel.usage import ended_job, is_settled


@dataclass(frozen=True)
class Ended:
    """How many jobs of a pool have ended, by their end."""

    videos: int = 0
    failed: int = 0


class Jobs(Protocol):
    """The jobs of one pool. See `Backlog`."""

    def waiting(self, now: datetime) -> Waiting: ...
    def working(self) -> int: ...
    def ended(self, since: datetime) -> Ended: ...
    def is_online(self, worker: str) -> bool: ...


class Backlog:
    """The jobs of one pool in Prefect. Every method raises PrefectUnavailable, PrefectRefused."""

    def __init__(self, calls: PrefectCalls, pool: str) -> None:
        self._calls = calls
        self._pool = pool
        self._of_pool: Json = {
            "flows": {"name": {"any_": [marks.FLOW]}},
            "work_pools": {"name": {"any_": [pool]}},
        }

    def waiting(self, now: datetime) -> Waiting:
        """The jobs that are due and have not started."""
        due, count = _due(now), self.count_waiting(now)
        if not count:
            return Waiting(0)
        first = self._filter(due, limit=1)
        dated = self._filter(due | {"tags": {"all_": [marks.DATED]}}, limit=200)
        deadlines = [
            datetime.fromisoformat(text)
            for run in dated
            if (text := str((run.get("labels") or {}).get(marks.DEADLINE) or ""))
        ]
        ahead = [at for at in deadlines if at > now]  # a job past its own is expired, and not made
        return Waiting(
            count,
            now - datetime.fromisoformat(first[0]["expected_start_time"]) if first else _NOT_LONG,
            min(ahead) - now if ahead else None,
        )

    def count_waiting(self, now: datetime) -> int:
        """How many jobs are due and have not started; all that a rented host may ask."""
        return self._count(_due(now))

    def working(self) -> int:
        """How many jobs some host has begun."""
        return self._count({"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}})

    def ended(self, since: datetime) -> Ended:
        """How many jobs have ended since then."""
        after: Json = {"end_time": {"after_": since.isoformat()}}
        return Ended(
            self._count(after | {"state": {"type": {"any_": ["COMPLETED"]}}}),
            self._count(after | {"state": {"type": {"any_": ["FAILED", "CRASHED"]}}}),
        )

    def is_online(self, worker: str) -> bool:
        """Whether the worker of this name serves the pool now."""
        since = datetime.now(UTC) - timedelta(minutes=5)
        body = {"workers": {"last_heartbeat_time": {"after_": since.isoformat()}}, "limit": 200}
        found = self._calls.ask(f"/work_pools/{self._pool}/workers/filter", body)
        return any(row["name"] == worker and row["status"] == "ONLINE" for row in found)

    def _count(self, runs: Json) -> int:
        return self._calls.ask("/flow_runs/count", {"flow_runs": runs, **self._of_pool})

    def _filter(self, runs: Json, *, limit: int) -> list[Json]:
        body = {"flow_runs": runs, "limit": limit, "sort": "EXPECTED_START_TIME_ASC"}
        return self._calls.ask("/flow_runs/filter", body | self._of_pool)


def read_videos(calls: PrefectCalls, since: datetime) -> list[Job]:
    """The jobs that have ended with a video since then, and what each took.

    Jobs whose end the keeper has not noted yet are left out. Raises PrefectUnavailable.
    """
    found: dict[str, Job] = {}
    for flow in (marks.FLOW, marks.TOMBSTONE_FLOW):
        body: Json = {
            "flow_runs": {
                "state": {"type": {"any_": ["COMPLETED"]}},
                "end_time": {"after_": since.isoformat()},
            },
            "flows": {"name": {"any_": [flow]}},
            "sort": "END_TIME_DESC",
        }
        records = map(record_of, calls.pages("/flow_runs/filter", body))
        jobs = [ended_job(record, None) for record in records if is_settled(record)]
        found |= {job.job_id: job for job in jobs if job and job.at >= since}
    return [job for job in found.values() if job.status is JobStatus.COMPLETED]


def _due(now: datetime) -> Json:
    return {
        "state": {"type": {"any_": ["SCHEDULED"]}},
        "expected_start_time": {"before_": now.isoformat()},
    }


_NOT_LONG = timedelta(0)
