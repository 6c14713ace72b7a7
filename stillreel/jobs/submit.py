"""Submits jobs: concurrent submits share one bulk create, and each is answered when read back."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from stillreel.errors import PrefectUnavailable, RequestRejected
from stillreel.job import JobSpec, Priority, run_name
from stillreel.jobs import marks
from stillreel.jobs.deployments import Deployment
from stillreel.jobs.record import Record, record_of
from stillreel.prefect_api import PrefectApi

BULK = 100
"""The most that Prefect creates in one call (3.8.8)."""
RETRY_SECONDS = 0.15
LEAST_SECONDS = 0.4
ITEM_SECONDS = 0.06
"""Prefect takes about half of it to create a run in bulk; a full bulk may take longer than the
patience that is enough for anything else."""


@dataclass(frozen=True)
class Order:
    """A job that is to be made: what Prefect is told."""

    job_id: str
    spec: JobSpec
    deployment: Deployment
    queue: Priority
    request: str
    """Hash of what was asked for."""
    token: str
    key_id: str = ""
    batch: str = ""
    deadline: datetime | None = None
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    def to_run(self) -> dict[str, Any]:
        """The flow run as Prefect's API takes it."""
        spec = self.spec
        tags = [marks.owner_tag(spec.owner), marks.model_tag(spec.model), marks.UNDELIVERED]
        labels: dict[str, str | int] = {
            marks.OWNER: spec.owner,
            marks.MODEL: spec.model,
            marks.REQUEST: self.request,
            marks.NONCE: self.nonce,
            marks.TOKEN: self.token,
            marks.KEY_ID: self.key_id,
            marks.PRIORITY: self.queue,
            marks.ROUND: 1,
        }
        if spec.image_url:
            tags.append(marks.UNCOPIED)
        if self.batch:
            tags.append(marks.batch_tag(self.batch))
            labels[marks.BATCH] = self.batch
        if self.deadline:
            tags.append(marks.DATED)
            labels[marks.DEADLINE] = self.deadline.isoformat()
        run: dict[str, Any] = {
            "name": run_name(spec.model, spec.prompt),
            "idempotency_key": self.job_id,
            "parameters": spec.to_parameters(),
            # A JobSpec is what the schema describes; checking it again is a fifth of a create.
            "enforce_parameter_schema": False,
            "tags": tags,
            "labels": labels,
        }
        if self.queue != self.deployment.queue:
            run["work_queue_name"] = self.queue
        return run


@dataclass(frozen=True)
class Submitted:
    """A job that is durable: read back from Prefect."""

    record: Record
    is_new: bool
    """False: it was there already, made by an earlier submit with the same id."""


@dataclass
class _Waiting:
    order: Order
    future: asyncio.Future[Submitted]
    deadline: float


class Submitter:
    """Takes orders from any number of callers and creates them in as few calls as may be."""

    def __init__(self, api: PrefectApi) -> None:
        self._api = api
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, order: Order) -> Submitted:
        """The durable job of this order, or of an earlier one with the same id.

        Raises PrefectUnavailable: then the job is absent, or is found under its id later on.
        """
        loop = asyncio.get_running_loop()
        patience = self._api.patience + len(self._waiting) * ITEM_SECONDS
        waiting = _Waiting(order, loop.create_future(), time.monotonic() + patience)
        self._waiting.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await asyncio.shield(waiting.future)

    async def _work(self) -> None:
        await asyncio.sleep(0)  # whoever submits in the same moment comes along
        while self._waiting:
            now = time.monotonic()
            _fail((w for w in self._waiting if w.deadline <= now), PrefectUnavailable())
            self._waiting = [w for w in self._waiting if w.deadline > now]
            if not self._waiting:
                return
            first = self._waiting[0].order.deployment.id
            batch = [w for w in self._waiting if w.order.deployment.id == first][:BULK]
            taken = set(map(id, batch))
            self._waiting = [w for w in self._waiting if id(w) not in taken]
            await self._create(first, batch)

    async def _create(self, deployment_id: str, batch: list[_Waiting]) -> None:
        path = f"/deployments/{deployment_id}/create_flow_run/bulk"
        try:
            runs = [waiting.order.to_run() for waiting in batch]
            patience = _left(batch) + len(batch) * ITEM_SECONDS
            results = (await self._api.post(path, runs, patience=patience))["results"]
        except Exception as exc:  # told to everybody who waits for it, whatever it is
            _fail(batch, exc)
            return
        # Two orders of the same moment may be one job.
        created: dict[str, list[_Waiting]] = {}
        again: list[_Waiting] = []
        for waiting, result in zip(batch, results, strict=True):
            if result["status"] == "CREATED":
                created.setdefault(result["flow_run_id"], []).append(waiting)
            elif "validation failed" in (result.get("error") or ""):
                _fail([waiting], RequestRejected("Prefect refuses the order; deploy this release."))
            else:
                again.append(waiting)
        # The next bulk create need not wait until this one is read back, or tried again.
        self._beside(self._read_back(created))
        self._beside(self._again(again))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_back(self, created: Mapping[str, Sequence[_Waiting]]) -> None:
        """Answer those that are stored; a create may say CREATED of what was rolled back."""
        if not created:
            return
        body = {"flow_runs": {"id": {"any_": list(created)}}, "limit": BULK}
        try:
            waited = [waiting for several in created.values() for waiting in several]
            patience = _left(waited) + len(created) * ITEM_SECONDS
            found = await self._api.ask("/flow_runs/filter", body, patience=patience)
        except Exception as exc:  # as above
            _fail((waiting for several in created.values() for waiting in several), exc)
            return
        records = {run["id"]: record_of(run) for run in found}
        lost: list[_Waiting] = []
        for run_id, several in created.items():
            record = records.get(run_id)
            if record is None:
                lost.extend(several)
                continue
            for waiting in several:
                if not waiting.future.done():
                    is_new = record.labels.get(marks.NONCE) == waiting.order.nonce
                    waiting.future.set_result(Submitted(record, is_new))
        await self._again(lost)

    async def _again(self, batch: Sequence[_Waiting]) -> None:
        """Have these created again while their callers have patience; SQLite drops some."""
        now = time.monotonic()
        late = [w for w in batch if now + RETRY_SECONDS > w.deadline]
        _fail(late, PrefectUnavailable())
        left = [w for w in batch if w not in late]
        if not left:
            return
        await asyncio.sleep(RETRY_SECONDS)
        self._waiting.extend(left)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())


def _left(batch: Sequence[_Waiting]) -> float:
    """The patience of those that have waited longest; enough for a try or two at least."""
    return max(min(waiting.deadline for waiting in batch) - time.monotonic(), LEAST_SECONDS)


def _fail(batch: Any, exc: Exception) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(exc)
            waiting.future.exception()  # a caller that left is no news
