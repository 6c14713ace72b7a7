"""Reads jobs for callers: many polls share one question to Prefect, and none is older than 1 s."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from stillreel import keys
from stillreel.errors import JobUnknown, ObjectMissing, PrefectUnavailable, StillreelError
from stillreel.job import JobStatus, Stage
from stillreel.jobs import delivery_log, marks
from stillreel.jobs.delivery_log import DeliveryAttempt
from stillreel.jobs.ids import is_job_id
from stillreel.jobs.places import Places
from stillreel.jobs.record import Record, record_of
from stillreel.prefect_api import PAGE, PrefectApi
from stillreel.progress import Progress
from stillreel.storage import Storage

ACTIVE_SECONDS = 1.0
"""How old the answer about a job may be that has not ended."""
ENDED_SECONDS = 2.0
"""The same for one that has: another process may retry or delete it."""
RECEIPT_SECONDS = 30.0
"""How long an ended job without a receipt is held to get none: its process may still finish."""
SLOW_SECONDS = 0.5
"""A reading that takes longer than this does not hold up the next one."""
READINGS = 3
"""How many may be under way at a time."""
KEPT = 20_000
"""Jobs whose answers and run ids are kept in memory."""
HOT_SECONDS = 3.0
"""A job that was polled this long ago is read along with others."""
HEARTBEAT_FRESH_SECONDS = 5.0
_NEARLY_DONE = 98.0
"""Percent from which a receipt may be there although the run goes on."""

log = logging.getLogger("stillreel.jobs")

Receipt = Mapping[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is known about a job at one moment."""

    record: Record
    status: JobStatus
    read_at: float
    """Seconds of the monotonic clock."""
    progress: Progress | None = None
    progress_at: datetime | None = None
    heartbeat_at: datetime | None = None
    place: int | None = None
    attempts: tuple[DeliveryAttempt, ...] = ()
    """To tell how its rounds ended; the newest first."""
    receipt: Receipt | None = None
    receipt_at: float = 0.0
    """When it was last looked for a receipt, by the same clock."""
    asked_at: float = 0.0
    """When the reading began: what was changed later may not be in it."""

    @property
    def has_ended(self) -> bool:
        return self.status not in (JobStatus.QUEUED, JobStatus.PROCESSING)

    @property
    def percent(self) -> float:
        """0 to 100; 100 only for a completed job."""
        if self.status is JobStatus.COMPLETED:
            return 100.0
        found = self.progress.percent if self.progress else 0.0
        return min(round(found, 1), 99.0)

    @property
    def stage(self) -> Stage | None:
        running = self.progress and self.status is JobStatus.PROCESSING
        return self.progress.stage if self.progress and running else None


class JobReader:
    """Snapshots of jobs, cached and read in batches."""

    def __init__(self, api: PrefectApi, storage: Storage, places: Places) -> None:
        self._api = api
        self._storage = storage
        self._places = places
        self._kept: OrderedDict[str, Snapshot] = OrderedDict()
        self._run_ids: OrderedDict[str, str] = OrderedDict()
        self._receipts: OrderedDict[str, Receipt] = OrderedDict()
        self._heartbeats: dict[str, datetime] = {}
        self._heartbeats_at = float("-inf")
        self._wanted: dict[str, asyncio.Future[Snapshot]] = {}
        self._polled: dict[str, float] = {}
        self._forgotten: OrderedDict[str, float] = OrderedDict()
        self._worker: asyncio.Task[None] | None = None
        self._readings: set[asyncio.Task[None]] = set()
        self.rendered: dict[str, tuple[Snapshot, bytes]] = {}
        """Answers that were made from a snapshot, for as long as it is the newest."""

    def peek(self, job_id: str) -> Snapshot | None:
        """The kept snapshot of a job where it is fresh enough to be told."""
        found = self._kept.get(job_id)
        if found is None:
            return None
        now = time.monotonic()
        self._polled[job_id] = now
        return found if now - found.read_at < _lifetime(found) else None

    async def get(self, job_id: str, *, fresh: bool = False) -> Snapshot:
        """The job as it is, at most 1 s old, 2 s when it has ended; `fresh` reads it now.

        Raises JobUnknown for an id that nobody has, PrefectUnavailable, StorageError.
        """
        if not is_job_id(job_id):
            raise JobUnknown
        if not fresh and (found := self.peek(job_id)):
            return found
        self._polled[job_id] = time.monotonic()
        if fresh:
            self._kept.pop(job_id, None)
        future = self._wanted.get(job_id)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._wanted[job_id] = future
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            async with asyncio.timeout(self._api.patience):
                return await asyncio.shield(future)
        except TimeoutError as exc:
            raise PrefectUnavailable from exc

    async def record(self, job_id: str) -> Record:
        """What Prefect has of the job now, and nothing beside it: one question, cheaper than `get`.

        Raises JobUnknown for an id that nobody has, PrefectUnavailable.
        """
        found = await self._read([job_id]) if is_job_id(job_id) else {}
        if job_id not in found:
            raise JobUnknown
        return found[job_id]

    async def get_many(self, job_ids: Sequence[str]) -> list[Snapshot | StillreelError]:
        """The same for many; an error stands in the place of the job that has it."""
        found = await asyncio.gather(*map(self.get, job_ids), return_exceptions=True)
        return [item if isinstance(item, StillreelError) else _raised(item) for item in found]

    async def complete(self, records: Sequence[Record]) -> list[Snapshot]:
        """The snapshots of records that were read just now, e.g. for a list."""
        asked_at = time.monotonic() - self._api.patience
        progress, attempts = await self._beside(records)
        made = [
            self._snapshot(r, progress.get(r.run_id), attempts.get(r.run_id, ()), asked_at)
            for r in records
        ]
        return [self._keep(snapshot) for snapshot in await asyncio.gather(*made)]

    def know(self, record: Record) -> None:
        """Remember which run a job is, so that reading it asks by id."""
        _put(self._run_ids, record.job_id, record.run_id)

    def forget(self, job_id: str) -> None:
        """Have the next read ask again: the job was changed."""
        _put(self._forgotten, job_id, time.monotonic())
        self._kept.pop(job_id, None)
        self._receipts.pop(job_id, None)
        self.rendered.pop(job_id, None)

    async def _work(self) -> None:
        """Read what is wanted, together; what is wanted meanwhile waits for the next reading."""
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            reading = asyncio.create_task(self._answer(wanted))
            self._readings.add(reading)
            reading.add_done_callback(self._readings.discard)
            await asyncio.wait({reading}, timeout=SLOW_SECONDS)
            while len(self._readings) >= READINGS:
                await asyncio.wait(self._readings, return_when=asyncio.FIRST_COMPLETED)

    async def _answer(self, wanted: Mapping[str, asyncio.Future[Snapshot]]) -> None:
        asked_at = time.monotonic()
        try:
            records = await self._read([*wanted, *self._due_soon(wanted)])
            progress, attempts = await self._beside(list(records.values()))
        except Exception as exc:  # everybody who waits is told, whatever it is
            for future in wanted.values():
                _fail(future, exc)
            return

        async def tell(record: Record) -> None:
            future = wanted.get(record.job_id)
            try:
                found, tried = progress.get(record.run_id), attempts.get(record.run_id, ())
                snapshot = self._keep(await self._snapshot(record, found, tried, asked_at))
            except Exception as exc:
                if future:
                    _fail(future, exc)
            else:
                if future and not future.done():
                    future.set_result(snapshot)

        for job_id in wanted.keys() - records.keys():
            _fail(wanted[job_id], JobUnknown())
        await asyncio.gather(*map(tell, records.values()))

    def _due_soon(self, wanted: Iterable[str]) -> list[str]:
        """Jobs that are polled now and then and will be asked for next: one question for all."""
        now = time.monotonic()
        self._polled = {k: at for k, at in self._polled.items() if now - at < HOT_SECONDS}
        due: list[str] = []
        for job_id in self._polled:
            kept = self._kept.get(job_id)
            if kept and now - kept.read_at > _lifetime(kept) * 0.7:
                due.append(job_id)
        known = set(wanted)
        return [job_id for job_id in due if job_id not in known][: PAGE // 2]

    async def _read(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        known = {self._run_ids[i]: i for i in ids if i in self._run_ids}
        for runs in _pages(list(known)):
            found |= await self._filter({"id": {"any_": runs}})
        missing = [i for i in ids if i not in found]
        for page in _pages(missing):
            found |= await self._filter({"idempotency_key": {"any_": page}})
        by_run = [run for i in missing if i not in found and (run := _run_id(i))]
        for runs in _pages(by_run):
            found |= await self._filter({"id": {"any_": runs}})
        return found

    async def _filter(self, runs: Mapping[str, Any]) -> dict[str, Record]:
        flows = {"name": {"any_": [marks.FLOW, marks.TOMBSTONE_FLOW]}}
        body = {"flow_runs": runs, "flows": flows, "limit": PAGE}
        records = [record_of(run) for run in await self._api.ask("/flow_runs/filter", body)]
        # While a job is being deleted there are two runs of it: the tombstone counts.
        records.sort(key=lambda record: record.is_deleted)
        for record in records:
            self.know(record)
        return {record.job_id: record for record in records}

    async def _beside(
        self, records: Sequence[Record]
    ) -> tuple[dict[str, tuple[Progress, datetime]], dict[str, tuple[DeliveryAttempt, ...]]]:
        """The progress of those that run, and the attempts to tell those that ended, by run.

        Heartbeats are brought up to date.
        """
        running = [r.run_id for r in records if r.state_type in ("RUNNING", "CANCELLING")]
        told = [r.run_id for r in records if marks.TRIED in r.labels and _is_over(r)]
        progress, attempts, _ = await asyncio.gather(
            self._progress(running), delivery_log.read(self._api, told), self._listen(running)
        )
        return progress, attempts

    async def _snapshot(
        self,
        record: Record,
        found: tuple[Progress, datetime] | None,
        attempts: tuple[DeliveryAttempt, ...],
        asked_at: float,
    ) -> Snapshot:
        progress, at = found or (None, None)
        nearly = progress is not None and progress.percent >= _NEARLY_DONE
        receipt, receipt_at = None, self._has_none_since(record)
        if receipt_at is None and not record.is_deleted and (record.is_final or nearly):
            receipt_at = time.monotonic()
            receipt = await self.receipt(record.job_id)
        status = record.status(has_receipt=receipt is not None)
        queued = status is JobStatus.QUEUED
        return Snapshot(
            record=record,
            status=status,
            read_at=time.monotonic(),
            progress=progress,
            progress_at=at,
            heartbeat_at=self._heartbeats.get(record.run_id),
            place=await self._places.place(record) if queued else None,
            attempts=attempts,
            receipt=receipt,
            receipt_at=receipt_at or 0.0,
            asked_at=asked_at,
        )

    def _has_none_since(self, record: Record) -> float | None:
        """When this end of the job was last found to have no receipt, where that was just now."""
        kept = self._kept.get(record.job_id)
        if kept is None or kept.receipt or not kept.receipt_at:
            return None
        is_same = record.is_final and kept.record.state_at == record.state_at
        is_fresh = time.monotonic() - kept.receipt_at < RECEIPT_SECONDS
        return kept.receipt_at if is_same and is_fresh else None

    async def receipt(self, job_id: str) -> Receipt | None:
        """The receipt of a job; None when it has none (yet)."""
        if kept := self._receipts.get(job_id):
            return kept
        key = keys.output_key(job_id, "receipt.json")
        try:
            found = json.loads(await asyncio.to_thread(self._storage.get_bytes, key))
        except ObjectMissing:
            return None
        except ValueError:  # somebody wrote into our storage; other jobs are not to suffer
            log.error("the receipt of %s is not JSON", job_id)
            return None
        _put(self._receipts, job_id, found)
        return found

    async def _progress(self, run_ids: Sequence[str]) -> dict[str, tuple[Progress, datetime]]:
        found: dict[str, tuple[Progress, datetime]] = {}
        for page in _pages(run_ids):
            runs = {"flow_run_id": {"any_": page}, "type": {"any_": ["progress"]}}
            body = {"artifacts": runs, "limit": PAGE}
            for item in await self._api.ask("/artifacts/latest/filter", body):
                if progress := Progress.parse(item.get("description") or ""):
                    at = datetime.fromisoformat(item["updated"])
                    found[item["flow_run_id"]] = (progress, at)
        return found

    async def _listen(self, run_ids: Sequence[str]) -> None:
        """Bring the heartbeats up to date, of those that are read now and at most each 5 s."""
        if not run_ids or time.monotonic() - self._heartbeats_at < HEARTBEAT_FRESH_SECONDS:
            return
        self._heartbeats_at = time.monotonic()
        since = datetime.now(UTC) - timedelta(minutes=5)
        query = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run}" for run in run_ids[:50]]},
            "occurred": {"since": since.isoformat()},
            "order": "DESC",
        }
        body = {"filter": query, "limit": 50}
        heard: dict[str, datetime] = {}
        for event in (await self._api.ask("/events/filter", body))["events"]:
            run = event["resource"]["prefect.resource.id"].removeprefix("prefect.flow-run.")
            heard.setdefault(run, datetime.fromisoformat(event["occurred"]))
        self._heartbeats = {k: v for k, v in self._heartbeats.items() if v > since} | heard

    def _keep(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot, kept unless the job was changed or read after its reading had begun."""
        job_id = snapshot.record.job_id
        kept = self._kept.get(job_id)
        newest = max(self._forgotten.get(job_id, 0.0), kept.asked_at if kept else 0.0)
        if snapshot.asked_at >= newest:
            _put(self._kept, job_id, snapshot)
        return snapshot

    def render(self, snapshot: Snapshot, make: Callable[[Snapshot], bytes]) -> bytes:
        """`make(snapshot)`, made once for as long as the snapshot is the newest of its job."""
        job_id = snapshot.record.job_id
        kept = self.rendered.get(job_id)
        if kept and kept[0] is snapshot:
            return kept[1]
        body = make(snapshot)
        if len(self.rendered) > KEPT:
            self.rendered.clear()
        self.rendered[job_id] = (snapshot, body)
        return body


def _is_over(record: Record) -> bool:
    return record.is_final or record.is_settled


def _lifetime(snapshot: Snapshot) -> float:
    return ENDED_SECONDS if snapshot.has_ended else ACTIVE_SECONDS


def _fail(future: asyncio.Future[Snapshot], exc: Exception) -> None:
    if not future.done():
        future.set_exception(exc)
        future.exception()  # a caller that left is no news


def _run_id(job_id: str) -> str | None:
    """The run's id inside `job_` + 32 hex digits, which runs have that the API did not make."""
    with suppress(ValueError):
        text = job_id.removeprefix("job_")
        return str(UUID(hex=text)) if len(text) == 32 else None
    return None


def _pages(items: Sequence[str]) -> list[list[str]]:
    return [list(items[n : n + PAGE]) for n in range(0, len(items), PAGE)]


def _put(kept: OrderedDict[str, _T], key: str, value: _T) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)


def _raised(item: Snapshot | BaseException) -> Snapshot:
    if isinstance(item, BaseException):
        raise item
    return item
