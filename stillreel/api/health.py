"""Health, and the line: what load balancers, drains and people look at first."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from stillreel import __version__
from stillreel.api.auth import Reader
from stillreel.api.jobs import json_response
from stillreel.api.problems import PROBLEMS
from stillreel.api.services import Services, services_of
from stillreel.errors import PrefectRefused, PrefectUnavailable, StillreelError, StorageError
from stillreel.host_report import HostReport, newest_live
from stillreel.jobs.record import WAITING_STATES
from stillreel.recent import Recent

log = logging.getLogger("stillreel.health")

router = APIRouter(tags=["service"], responses=PROBLEMS)

RUNNING = ("RUNNING", "CANCELLING")
COUNTS_FRESH_SECONDS = 1.0
HOST_FRESH_SECONDS = 5.0
STORAGE_FRESH_SECONDS = 30.0
LONGEST_SECONDS = 4.0
"""For one check, so that a probe is answered within 5 s whatever is away."""
PROBE_KEY = "temp/health"
"""No object is there; a storage that can say so works."""


class Waiting(BaseModel):
    pending: int
    processing: int


class Health(BaseModel):
    """Open to everybody, so it holds no names and no addresses."""

    status: str
    api: str
    redis: str
    database: str
    storage: str
    queue: Waiting | None
    gpu: str | None
    model_loaded: bool
    version: str


class QueueStats(BaseModel):
    """How much is to be done."""

    pending_jobs: int = Field(
        description="Jobs that wait or run: while it is not 0 a host has something to do."
    )
    waiting_jobs: int
    processing_jobs: int
    oldest_age_seconds: int | None
    by_model: dict[str, int]


@dataclass(frozen=True)
class Counts:
    """How many jobs wait and run."""

    pending: int
    processing: int


class Checks:
    """What `/health` looks at, kept for a while: probes in a row ask nobody anything."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.counts = Recent(self._count, seconds=COUNTS_FRESH_SECONDS)
        self.host = Recent(self._find_host, seconds=HOST_FRESH_SECONDS)
        self.storage = Recent(self._try_storage, seconds=STORAGE_FRESH_SECONDS)

    async def _count(self) -> Counts | None:
        """None when Prefect does not say."""
        queues = self._services.queues
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                return Counts(
                    *await asyncio.gather(queues.count(*WAITING_STATES), queues.count(*RUNNING))
                )
        except (PrefectUnavailable, PrefectRefused, TimeoutError) as exc:
            log.warning("jobs are not counted: %s", type(exc).__name__)
            return None

    async def _find_host(self) -> HostReport | None:
        services = self._services
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                offered = await services.deployments.offered()
                return await newest_live(services.api, {made.pool for made in offered.values()})
        except (StillreelError, TimeoutError) as exc:
            log.info("no host is known now: %s", type(exc).__name__)
            return None

    async def _try_storage(self) -> bool:
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await asyncio.to_thread(self._services.storage.head, PROBE_KEY)
        except (StorageError, TimeoutError) as exc:
            log.warning("storage does not work: %s", type(exc).__name__)
            return False
        return True


@router.get("/health", response_model=Health)
async def health(request: Request) -> Response:
    """Whether the service works; 503 when Prefect is away.

    `gpu` and `model_loaded` are those of the newest host that lives; null and false without one.
    """
    body, status = await _report(services_of(request), request.app.state.checks)
    return json_response(body, status=status, headers={"Retry-After": "5"} if status != 200 else {})


@router.get("/api/v1/queue/stats")
async def queue_stats(request: Request, caller: Reader) -> QueueStats:  # noqa: ARG001
    """How many jobs wait and run, for all owners; `pending_jobs` is what a drain looks at.

    It holds the running ones too: a drain that ends its machine at 0 does not end the last job.
    """
    services, checks = services_of(request), request.app.state.checks
    counts, oldest = await asyncio.gather(
        checks.counts.get(anew=True), services.queues.oldest_waiting()
    )
    if counts is None:
        raise PrefectUnavailable
    by_model = {
        name: await services.queues.count(*WAITING_STATES, tags=(f"model:{name}",))
        for name in await services.deployments.offered()
    }
    age = int((datetime.now(UTC) - oldest).total_seconds()) if oldest else None
    return QueueStats(
        pending_jobs=counts.pending + counts.processing,
        waiting_jobs=counts.pending,
        processing_jobs=counts.processing,
        oldest_age_seconds=None if age is None else max(0, age),
        by_model=by_model,
    )


async def _report(services: Services, checks: Checks) -> tuple[dict[str, Any], int]:
    body: dict[str, Any] = {
        "status": "ok",
        "api": "ok",
        "redis": "not_used",
        "database": "ok",
        "storage": "ok",
        "queue": None,
        "gpu": None,
        "model_loaded": False,
        "version": __version__,
    }
    if services.settings.server.redis_url.get_secret_value():
        body["redis"] = "configured"
    counts, host, has_storage = await asyncio.gather(
        checks.counts.get(), checks.host.get(), checks.storage.get()
    )
    if not has_storage:
        body |= {"status": "degraded", "storage": "unavailable"}
    if counts is None:
        return body | {"status": "unavailable", "database": "unavailable"}, 503
    body["queue"] = {"pending": counts.pending, "processing": counts.processing}
    if host:
        body |= {"gpu": host.gpu, "model_loaded": bool(host.models)}
    return body, 200
