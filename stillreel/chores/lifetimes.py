"""Deletes what has lived its time in storage: old objects, unclaimed uploads, orphan inputs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from uuid import UUID

from stillreel.api.services import Services
from stillreel.bucket_rules import TEMP_DAYS
from stillreel.chores.tally import Tally
from stillreel.errors import StillreelError
from stillreel.jobs import marks
from stillreel.jobs.ids import is_job_id
from stillreel.jobs.record import Record, record_of
from stillreel.keys import SIGNED_RECEIPT, inputs_prefix
from stillreel.prefect_api import PAGE, PrefectApi
from stillreel.settings import StorageSettings
from stillreel.storage import ObjectInfo, Storage

EVERY_SECONDS = 600.0
"""A walk through storage begins this long after the one before, at the earliest."""
CHUNK = 1000
"""Objects in one go."""
ORPHAN_AGE = timedelta(hours=1)
"""An image that came inside a request is stored just before its job is made."""
TEMP = "temp/"
KEPT = ("/receipt.json", f"/{SIGNED_RECEIPT}")
"""Small, and what makes a job a completed one."""


class Lifetimes:
    """Walks through storage again and again, some objects at a time.

    Inputs, latents and results have lifetimes (settings.storage); of a job that has not ended
    nothing is deleted, but what lies under `temp/` for a day: in a bucket that is the bucket's to
    do. Inputs that no job has taken go earlier. What lies elsewhere under names that are no job's
    is an operator's, and stays.
    """

    def __init__(
        self,
        services: Services,
        tally: Tally,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._services = services
        self._tally = tally
        self._now = now
        self._walk: Iterator[ObjectInfo] | None = None
        self._begun_at = float("-inf")

    async def sweep(self) -> None:
        """Look at the next objects. Raises StorageError and its kind, PrefectUnavailable."""
        if self._walk is None:
            if time.monotonic() - self._begun_at < EVERY_SECONDS:
                return
            self._begun_at = time.monotonic()
            self._walk = _objects(self._services)
        try:
            found = await asyncio.to_thread(list, islice(self._walk, CHUNK))
            await self._sweep(found)
        except StillreelError:
            self._walk = None
            raise
        if len(found) < CHUNK:
            self._walk = None

    async def _sweep(self, found: Iterable[ObjectInfo]) -> None:
        now, storage = self._now(), self._services.settings.storage
        due = [i for i in found if _is_old(i, now, storage) or _may_be_orphan(i, now, storage)]
        jobs = await _records(self._services.api, sorted({_job_id(info) for info in due} - {""}))
        for info in due:
            job = jobs.get(_job_id(info))
            is_open = job is not None and not job.is_final and not job.is_deleted
            if is_open and not info.key.startswith(TEMP):
                continue
            if _is_old(info, now, storage):
                await self._delete(info, "outlived", "older than its lifetime")
            elif job is None or job.is_deleted:
                await self._delete(info, "orphan_swept", "no job has taken it")

    async def _delete(self, info: ObjectInfo, action: str, reason: str) -> None:
        storage = self._services.storage
        if await asyncio.to_thread(_delete_unless_changed, storage, info):
            self._tally.note(action, _job_id(info) or "nobody", f"{info.key}: {reason}")


def _objects(services: Services) -> Iterator[ObjectInfo]:
    """All objects that can be due; nothing is asked for before the first is taken."""
    settings = services.settings.storage
    prefixes = ["inputs/"]  # orphans are looked for whatever the lifetimes are
    if settings.latents_days:
        prefixes.append("latents/")
    if settings.output_days:
        prefixes.append("outputs/")
    if settings.kind == "local":
        prefixes.append(TEMP)
    return chain.from_iterable(map(services.storage.list, prefixes))


def _is_old(info: ObjectInfo, now: datetime, settings: StorageSettings) -> bool:
    kind, _, rest = info.key.partition("/")
    days = {
        "inputs": settings.input_days,
        "latents": settings.latents_days,
        "outputs": settings.output_days,
        "temp": TEMP_DAYS,
    }[kind]
    is_index = kind == "latents" and rest.startswith("index/")
    ours = bool(_job_id(info)) or is_index or kind == "temp"
    old = bool(days) and now - info.modified > timedelta(days=days)
    return ours and old and not info.key.endswith(KEPT)


def _may_be_orphan(info: ObjectInfo, now: datetime, settings: StorageSettings) -> bool:
    """Whether an input is so old that its job should be there."""
    job_id = _job_id(info)
    if not job_id or not info.key.startswith(f"inputs/{job_id}/input"):
        return False
    uploaded = info.key.startswith(inputs_prefix(job_id))
    claim = timedelta(seconds=settings.upload_claim_seconds)
    return now - info.modified > (claim if uploaded else ORPHAN_AGE)


def _job_id(info: ObjectInfo) -> str:
    """Whose object it is; empty where its name is no job's."""
    folder = info.key.split("/")[1]
    return folder if is_job_id(folder) else ""


async def _records(api: PrefectApi, job_ids: list[str]) -> dict[str, Record]:
    """The jobs that Prefect has of these; one that it has not is not in the answer."""
    found: dict[str, Record] = {}
    runs = [run for job_id in job_ids if (run := _run_id(job_id))]
    for name, values in (("idempotency_key", job_ids), ("id", runs)):
        for n in range(0, len(values), PAGE // 2):  # with a tombstone a job has two runs
            body = {
                "flow_runs": {name: {"any_": values[n : n + PAGE // 2]}},
                "flows": {"name": {"any_": [marks.FLOW, marks.TOMBSTONE_FLOW]}},
                "limit": PAGE,
            }
            records = [record_of(run) for run in await api.ask("/flow_runs/filter", body)]
            found |= {r.job_id: r for r in sorted(records, key=lambda r: r.is_deleted)}
    return found


def _run_id(job_id: str) -> str:
    """The run's id inside a job id that the API did not make; empty for those that it made."""
    with suppress(ValueError):
        return str(UUID(hex=job_id.removeprefix("job_")))
    return ""


def _delete_unless_changed(storage: Storage, info: ObjectInfo) -> bool:
    """Whether it was deleted; an object that was stored anew in the meantime is not."""
    now = storage.head(info.key)
    if now is None or now.modified != info.modified:
        return False
    storage.delete(info.key)
    return True
