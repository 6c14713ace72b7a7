"""What owners used: sums of ended jobs by day, model and key, and how they outlive the runs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stillreel.errors import ObjectMissing
from stillreel.job import ENDED, JobStatus
from stillreel.jobs import marks
from stillreel.jobs.record import FINAL_STATES, Record, record_of
from stillreel.prefect_api import PAGE, PrefectApi

if TYPE_CHECKING:
    from stillreel.api.services import Services
    from stillreel.jobs.reader import Receipt

log = logging.getLogger("stillreel.usage")

OPEN_DAYS: Final = 2
"""Days before today whose sums can still change, e.g. by a retry; after them the roll-up counts."""
CATCH_UP_DAYS: Final = 14
"""How far back roll-ups are made that are missing: the keeper may have been away."""
ROLL_UP_EVERY: Final = timedelta(hours=1)
LOOK_SECONDS: Final = 600.0

NOBODY: Final = "-"
"""Stands for no owner in keys; owners' names begin otherwise."""
DAYS: Final = "_days"


class Line(NamedTuple):
    """What is summed up apart."""

    day: date
    model: str
    key_id: str


@dataclass(frozen=True, slots=True)
class Used:
    """Sums over jobs; `cancelled` has the expired ones too."""

    videos: int = 0
    failed: int = 0
    cancelled: int = 0
    gpu_seconds: float = 0.0
    usd: float = 0.0

    def __add__(self, other: Used) -> Used:
        return Used(
            self.videos + other.videos,
            self.failed + other.failed,
            self.cancelled + other.cancelled,
            self.gpu_seconds + other.gpu_seconds,
            self.usd + other.usd,
        )

    def to_json(self) -> dict[str, Any]:
        """As a caller sees it: seconds to the millisecond, US$ to the millionth."""
        return {
            "videos": self.videos,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "gpu_seconds": round(self.gpu_seconds, 3),
            "usd": round(self.usd, 6),
        }


Sums = Mapping[Line, Used]


@dataclass(frozen=True, slots=True)
class Ended:
    """One ended job as it is counted; its day is the UTC day of its end."""

    job_id: str
    owner: str
    model: str
    key_id: str
    at: datetime
    status: JobStatus
    took_seconds: float = 0.0
    gpu_seconds: float = 0.0
    usd: float = 0.0

    @property
    def line(self) -> Line:
        return Line(self.at.astimezone(UTC).date(), self.model, self.key_id)

    @property
    def used(self) -> Used:
        return Used(
            videos=int(self.status is JobStatus.COMPLETED),
            failed=int(self.status is JobStatus.FAILED),
            cancelled=int(self.status in (JobStatus.CANCELLED, JobStatus.EXPIRED)),
            gpu_seconds=self.gpu_seconds,
            usd=self.usd,
        )


# --- pure sums ----------------------------------------------------------------------------------


def add_up(jobs: Iterable[Ended]) -> dict[Line, Used]:
    """The sums of these jobs; a job that is given twice counts once, as it was given last."""
    sums: dict[Line, Used] = {}
    for job in {job.job_id: job for job in jobs}.values():
        sums[job.line] = sums.get(job.line, Used()) + job.used
    return sums


def merge(live: Sums, stored: Mapping[date, Sums], *, today: date) -> dict[Line, Used]:
    """Live sums, and stored ones in place of them for days that cannot change any more."""
    kept = {day for day in stored if not is_open(day, today=today)}
    merged = {line: used for line, used in live.items() if line.day not in kept}
    for day in kept:
        merged |= stored[day]
    return merged


def group(sums: Sums, by: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each value of the fields in `by` (`day`, `model`, `key`), in their order."""
    rows: dict[tuple[str, ...], Used] = {}
    for line, used in sums.items():
        values = {"day": line.day.isoformat(), "model": line.model, "key": line.key_id}
        name = tuple(values[field] for field in by)
        rows[name] = rows.get(name, Used()) + used
    return [dict(zip(by, name, strict=True)) | rows[name].to_json() for name in sorted(rows)]


def spans(first: date, last: date, stored: Collection[date]) -> list[tuple[date, date]]:
    """The stretches of days from the first to the last that are not stored."""
    days = (first + timedelta(n) for n in range((last - first).days + 1))
    found: list[tuple[date, date]] = []
    for day in days:
        if day in stored:
            continue
        if found and found[-1][1] == day - timedelta(1):
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found


def is_open(day: date, *, today: date) -> bool:
    """Whether the sums of a day can still change."""
    return (today - day).days <= OPEN_DAYS


def ended_job(record: Record, receipt: Receipt | None) -> Ended | None:
    """An ended run or a tombstone as it is counted; None for a run that goes on.

    What `settle` wrote in the labels counts; where it has not been yet, the receipt does.
    """
    labels = record.labels
    at = labels.get(marks.ENDED) or record.ended_at
    if not record.is_final or not at:
        return None
    has_video = receipt is not None or _surely_has_video(record)
    status = JobStatus(labels.get(marks.STATUS) or record.status(has_receipt=has_video))
    if status not in ENDED:  # broken off, and not settled yet
        return None
    took = (record.ended_at - record.started_at) if record.ended_at and record.started_at else None
    gpu_seconds = usd = 0.0
    if is_settled(record):
        gpu_seconds, usd = _number(labels, marks.GPU_SECONDS), _number(labels, marks.USD)
    elif receipt:
        gpu_seconds = float(receipt["took"]["gpu_seconds"])
        usd = float(receipt["cost"]["usd"])
    return Ended(
        job_id=record.job_id,
        # By the tag, because Prefect finds an owner's runs by it; others are nobody's.
        owner=record.owner if marks.owner_tag(record.owner) in record.tags else "",
        model=record.model,
        key_id=str(labels.get(marks.KEY_ID) or ""),
        at=datetime.fromisoformat(at) if isinstance(at, str) else at,
        status=status,
        took_seconds=_number(labels, marks.TOOK_SECONDS) or (took.total_seconds() if took else 0.0),
        gpu_seconds=gpu_seconds,
        usd=usd,
    )


def is_settled(record: Record) -> bool:
    """Whether the labels say what the job took: always so on a tombstone."""
    return marks.STATUS in record.labels or record.is_settled


def _surely_has_video(record: Record) -> bool:
    """Whether the labels tell all, so that no receipt need be read."""
    return is_settled(record) and record.state_type == "COMPLETED"


def to_text(owner: str, day: date, sums: Sums) -> str:
    """A roll-up as it is stored."""
    lines = [
        {"model": line.model, "key": line.key_id} | used.to_json()
        for line, used in sorted(sums.items())
    ]
    return json.dumps({"owner": owner, "day": day.isoformat(), "lines": lines}, indent=1)


def from_text(text: str | bytes) -> dict[Line, Used]:
    """The sums of a stored roll-up."""
    found = json.loads(text)
    day = date.fromisoformat(found["day"])
    return {
        Line(day, item["model"], item["key"]): Used(
            item["videos"], item["failed"], item["cancelled"], item["gpu_seconds"], item["usd"]
        )
        for item in found["lines"]
    }


# --- from Prefect and storage -------------------------------------------------------------------


async def read_usage(
    services: Services, owner: str, first: date, last: date, *, today: date
) -> dict[Line, Used]:
    """The sums of an owner from the first to the last day (UTC), both included.

    Roll-ups are read for days that cannot change any more, Prefect for the others.
    """
    last = min(last, today)
    stored = await _stored(services, owner, first, min(last, today - timedelta(OPEN_DAYS + 1)))
    jobs: list[Ended] = []
    for start, end in spans(first, last, stored):
        jobs += await read_ended(services, start, end, owner=owner)
    return merge(add_up(jobs), stored, today=today)


async def read_ended(
    services: Services, first: date, last: date, *, owner: str | None = None
) -> list[Ended]:
    """The jobs that ended from the first to the last day (UTC); of one owner, or of all."""
    start, end = _midnight(first), _midnight(last + timedelta(1))
    tags = [marks.owner_tag(owner)] if owner else []
    # Runs first: a job that is deleted meanwhile is found again, among the tombstones.
    runs = await _read(services.api, marks.FLOW, tags, start, end)
    tombstones = await _read(services.api, marks.TOMBSTONE_FLOW, tags, start, None)
    found = {record.job_id: record for record in (*runs, *tombstones)}
    gate = asyncio.Semaphore(16)

    async def count(record: Record) -> Ended | None:
        if _surely_has_video(record):
            return ended_job(record, None)
        async with gate:
            return ended_job(record, await services.reader.receipt(record.job_id))

    jobs = await asyncio.gather(*map(count, found.values()))
    return [job for job in jobs if job and start <= job.at < end]


class RollUps:
    """The keeper's chore of storing sums, which has little to do and is called often."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._looked_at = float("-inf")

    async def write(self) -> None:
        """`roll_up`, every ten minutes at most. Raises PrefectUnavailable, StorageError."""
        if monotonic() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = monotonic()
            await roll_up(self._services)


async def roll_up(services: Services, *, now: datetime | None = None) -> None:
    """Store the sums of past days, so that they stay true when Prefect's vacuum deletes runs.

    Yesterday and the day before are written again each hour, older days once.
    """
    now = now or datetime.now(UTC)
    written = await _list(services, DAYS)
    for age in range(1, CATCH_UP_DAYS + 1):
        day = now.date() - timedelta(age)
        at = written.get(day)
        if at is None or (at < _closed_at(day) and now - at > ROLL_UP_EVERY):
            await _roll_up(services, day)


async def _roll_up(services: Services, day: date) -> None:
    jobs = await read_ended(services, day, day)
    # Who had a job on that day at the last writing, and has none now since it was tried again?
    owners = {job.owner for job in jobs} | set(await _owners_of(services, day))
    for owner in owners:
        sums = add_up(job for job in jobs if job.owner == owner)
        await _put(services, roll_up_key(owner or NOBODY, day), to_text(owner, day, sums))
    await _put(services, roll_up_key(DAYS, day), json.dumps({"owners": sorted(owners)}))
    log.info("usage of %s rolled up: %d jobs, %d owners", day, len(jobs), len(owners))


def roll_up_key(owner: str, day: date) -> str:
    """Where the roll-up of a day is stored."""
    return f"usage/{owner}/{day.isoformat()}.json"


async def _stored(
    services: Services, owner: str, first: date, last: date
) -> dict[date, Mapping[Line, Used]]:
    """The roll-ups of an owner that count; empty for a day on which the owner had no jobs."""
    if last < first:
        return {}
    closed = {day for day, at in (await _list(services, DAYS)).items() if at >= _closed_at(day)}
    own = await _list(services, owner or NOBODY)
    stored: dict[date, Mapping[Line, Used]] = {
        day: {} for day in closed if first <= day <= last and day not in own
    }
    wanted = [day for day in own if first <= day <= last]
    texts = await asyncio.gather(*(_get(services, owner or NOBODY, day) for day in wanted))
    return stored | {day: from_text(text) for day, text in zip(wanted, texts, strict=True)}


async def _list(services: Services, owner: str) -> dict[date, datetime]:
    """The days that have a roll-up, and when it was written."""
    folder = f"usage/{owner}/"
    found = await asyncio.to_thread(lambda: list(services.storage.list(folder)))
    names = {info.key.removeprefix(folder).removesuffix(".json"): info for info in found}
    return {date.fromisoformat(name): info.modified for name, info in names.items()}


async def _get(services: Services, owner: str, day: date) -> bytes:
    return await asyncio.to_thread(services.storage.get_bytes, roll_up_key(owner, day))


async def _owners_of(services: Services, day: date) -> list[str]:
    try:
        return json.loads(await _get(services, DAYS, day))["owners"]
    except ObjectMissing:
        return []


async def _put(services: Services, key: str, text: str) -> None:
    await asyncio.to_thread(
        services.storage.put_bytes, key, text.encode(), content_type="application/json"
    )


async def _read(
    api: PrefectApi, flow: str, tags: Sequence[str], start: datetime, end: datetime | None
) -> list[Record]:
    runs: dict[str, Any] = {
        "state": {"type": {"any_": sorted(FINAL_STATES)}},
        "end_time": {"after_": start.isoformat()},
    }
    if end:
        runs["end_time"]["before_"] = end.isoformat()
    if tags:
        runs["tags"] = {"all_": list(tags)}
    body = {"flow_runs": runs, "flows": {"name": {"any_": [flow]}}, "sort": "END_TIME_DESC"}
    found: dict[str, Record] = {}
    offset = 0
    while True:
        page = await api.ask("/flow_runs/filter", body | {"limit": PAGE, "offset": offset})
        found |= {run["id"]: record_of(run) for run in page}
        if len(page) < PAGE:
            return list(found.values())
        offset += PAGE


def _closed_at(day: date) -> datetime:
    """From when on the sums of a day cannot change."""
    return _midnight(day + timedelta(OPEN_DAYS + 1))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _number(labels: Mapping[str, Any], name: str) -> float:
    return float(labels.get(name) or 0.0)
