"""How long a video takes and what it costs: learned from finished jobs, else from the spec."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any, Final, Literal

from stillreel.errors import RequestRejected, StillreelError
from stillreel.job import PRIORITIES, JobSpec, JobStatus, Shot, spec_of
from stillreel.jobs import marks
from stillreel.jobs.reader import JobReader, Receipt, Snapshot
from stillreel.jobs.record import Record, record_of
from stillreel.models.registry import get_model
from stillreel.models.shots import resolve
from stillreel.prefect_api import PAGE, PrefectApi
from stillreel.recent import Recent

log = logging.getLogger("stillreel.estimates")

FRESH_SECONDS: Final = 60.0
HOSTS_FRESH_SECONDS: Final = 5.0
NEAREST: Final = 30
"""Of the finished jobs of a model and preset, so many that are most like the new one count."""
ALIKE: Final = 1.1
"""Two jobs are of one size when their work differs by no more than this factor."""
SPREAD_ALIKE, SPREAD_SCALED = 1.15, 1.5
"""A range reaches at least so far to both sides, as a factor."""
SPEC_LIKELY, SPEC_HIGH = 1.7, 2.5
"""What to expect over the arithmetic floor: GPUs reach 55 to 70 % of their peak; our own bar."""
KEPT: Final = 20_000

Source = Literal["learned", "spec"]


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do, as far as time depends on it."""

    model: str
    preset: str
    steps: int
    volume: int
    """Frames times pixels."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one finished job took."""

    job_id: str
    work: Work
    seconds: float
    """From the start of its run to the stored video."""
    gpu_seconds: float
    usd_per_hour: float
    at: datetime


@dataclass(frozen=True, slots=True)
class Range:
    """Most jobs lie between low and high, half of them below `likely`."""

    low: float
    likely: float
    high: float

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Guess:
    """An estimate for one job once it runs; US$ are None where no host's price is known."""

    seconds: Range
    gpu_seconds: Range
    usd_per_hour: float | None
    source: Source
    samples: int

    @property
    def usd(self) -> Range | None:
        return None if self.usd_per_hour is None else self.gpu_seconds * (self.usd_per_hour / 3600)


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that arithmetic allows on the model's GPU, for one volume and number of steps."""

    denoise: float
    decode: float
    steps: int
    volume: int


FLOORS: Final[Mapping[tuple[str, str], Floor]] = {
    # TFLOP of a forward and of a decode over the GPU's dense bf16 peak: A100 312, A10G 70.
    ("ltx-2", "standard"): Floor(24.0, 1.0, 11, 1920 * 1080 * 121),
    ("ltx-2", "one-stage"): Floor(44.0, 1.0, 8, 1920 * 1080 * 121),
    ("ltx-2", "dev"): Floor(883.0, 1.0, 40, 1920 * 1080 * 121),
    ("ltx-2", "dev-two-stage"): Floor(158.0, 1.0, 43, 1920 * 1080 * 121),
    ("ltx-2.3", "standard"): Floor(24.0, 2.0, 11, 1920 * 1080 * 121),
    ("ltx-2.3", "one-stage"): Floor(44.0, 2.0, 8, 1920 * 1080 * 121),
    ("ltx-2.3", "dev"): Floor(662.0, 2.0, 30, 1920 * 1080 * 121),
    ("ltx-2.5", "standard"): Floor(24.0, 2.0, 11, 1920 * 1080 * 121),
    ("ltx-2.5", "one-stage"): Floor(44.0, 2.0, 8, 1920 * 1080 * 121),
    ("ltx-2.5", "dev"): Floor(662.0, 2.0, 30, 1920 * 1080 * 121),
    ("wan-2.2", "fast"): Floor(22.3, 28.7, 3, 1280 * 704 * 121),
    ("wan-2.2", "standard"): Floor(744.0, 28.7, 50, 1280 * 704 * 121),
    # No GPU: one encode of 121 frames on two CPU cores.
    ("preview", "standard"): Floor(0.3, 2.0, 8, 1280 * 720 * 121),
}


# --- pure ---------------------------------------------------------------------------------------


def work_of(spec: JobSpec) -> tuple[Work, Shot]:
    """What an order has to do, and its exact numbers. Raises RequestRejected.

    The image is not looked at: it is taken to have the shape of the model's default size.
    """
    model = get_model(spec.model)
    has_image = bool(spec.image_url or spec.image_key)
    image_size = model.default_size if has_image else None
    shot = resolve(spec, model, job_id="estimate", image_size=image_size)
    volume = shot.crop_width * shot.crop_height * shot.frames
    return Work(spec.model, shot.preset, shot.steps, volume), shot


def with_image(spec: JobSpec) -> JobSpec:
    """The order as if it had an image, where it has neither that nor a prompt yet."""
    given = spec.image_url or spec.image_key or spec.prompt
    return spec if given else spec.model_copy(update={"image_key": "inputs/x"})


def sample_of(record: Record, receipt: Receipt) -> Sample | None:
    """What a finished job teaches; None when it was interrupted or took over stored latents."""
    cost, video, model = receipt["cost"], receipt["video"], receipt["model"]
    if record.started_at is None or record.run_count > 1 or cost["reused_from"]:
        return None
    completed_at = datetime.fromisoformat(receipt["completed_at"])
    volume = video["width"] * video["height"] * video["frames"]
    return Sample(
        job_id=record.job_id,
        work=Work(model["name"], model["preset"], model["steps"], volume),
        seconds=max(0.0, (completed_at - record.started_at).total_seconds()),
        gpu_seconds=receipt["took"]["gpu_seconds"],
        usd_per_hour=cost["usd_per_hour"],
        at=completed_at,
    )


def guess(work: Work, samples: Iterable[Sample], *, usd_per_hour: float = 0.0) -> Guess | None:
    """The estimate for this work; `usd_per_hour` counts where no sample has a price.

    None for a model of which nothing at all is known.
    """
    of_model = [s for s in samples if s.work.model == work.model]
    prices = [s.usd_per_hour for s in sorted(of_model, key=_age) if s.usd_per_hour]
    price = (prices[-1] if prices else usd_per_hour) or None
    if get_model(work.model).elsewhere:
        price = None  # that of this host says nothing about it
    alike = [s for s in of_model if s.work.preset == work.preset]
    if alike:
        return _learned(work, alike, price)
    return _from_spec(work, price)


def wait_seconds(ahead: int, typical: float, hosts: int) -> float | None:
    """How long until a job starts that has so many before it; None without any host."""
    return ahead * typical / hosts if hosts else None


def left_seconds(total: float, percent: float) -> int:
    """Seconds that a running job still takes, by what is counted as done; never negative."""
    return max(0, round(total * (1 - min(max(percent, 0.0), 100.0) / 100)))


def _learned(work: Work, samples: Sequence[Sample], price: float | None) -> Guess:
    nearest = sorted(samples, key=lambda s: (_distance(s.work, work), -s.at.timestamp()))[:NEAREST]
    same = [s for s in nearest if _distance(s.work, work) <= ALIKE]
    chosen, spread = (same, SPREAD_ALIKE) if same else (nearest, SPREAD_SCALED)
    factors = [_scale(s.work, work) for s in chosen]
    seconds = [s.seconds * factor for s, factor in zip(chosen, factors, strict=True)]
    gpu = [s.gpu_seconds * factor for s, factor in zip(chosen, factors, strict=True)]
    return Guess(_range(seconds, spread), _range(gpu, spread), price, "learned", len(chosen))


def _from_spec(work: Work, price: float | None) -> Guess | None:
    floor = FLOORS.get((work.model, work.preset))
    if floor is None:
        return None
    part = work.volume / floor.volume
    least = part * (floor.denoise * work.steps / floor.steps + floor.decode)
    seconds = Range(least, least * SPEC_LIKELY, least * SPEC_HIGH)
    return Guess(seconds, seconds, price, "spec", 0)


def _scale(known: Work, wanted: Work) -> float:
    """By what factor time grows from one work to another of the same model and preset."""
    return (wanted.volume * wanted.steps) / (known.volume * known.steps)


def _distance(one: Work, other: Work) -> float:
    factor = _scale(one, other)
    return max(factor, 1 / factor)


def _range(values: Sequence[float], spread: float) -> Range:
    ordered = sorted(values)
    likely = median(ordered)
    edge = len(ordered) // 10
    low, high = ordered[edge], ordered[-1 - edge]
    return Range(min(low, likely / spread), likely, max(high, likely * spread))


def _age(sample: Sample) -> datetime:
    return sample.at


# --- from Prefect and storage -------------------------------------------------------------------


class Estimates:
    """What finished jobs teach, at most a minute old, and how many hosts there are."""

    def __init__(self, api: PrefectApi, reader: JobReader, *, usd_per_hour: float = 0.0) -> None:
        self._api = api
        self._reader = reader
        self._usd_per_hour = usd_per_hour
        self._samples: dict[str, Sample] = {}
        self._read_at = float("-inf")
        self._reading = Recent(self._read, seconds=0.0)
        self._refreshing: asyncio.Task[None] | None = None
        self._guesses: dict[Work, Guess | None] = {}
        self._works: dict[str, Work | None] = {}
        self._hosts: dict[str, tuple[float, int]] = {}
        self.receipts: list[tuple[str, Receipt]] = []
        """Model and receipt of the newest completed jobs."""

    async def guess(self, work: Work) -> Guess | None:
        """The estimate for this work. Raises PrefectUnavailable, StorageError."""
        await self.refresh()
        return self._guess(work)

    async def waiting(self, pool: str, queue: str) -> int:
        """How many jobs wait before a new one in this queue of a pool. Raises PrefectUnavailable.

        Queues that are served earlier count as well.
        """
        names = PRIORITIES[: PRIORITIES.index(queue) + 1] if queue in PRIORITIES else (queue,)
        body = {
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            "flows": {"name": {"any_": [marks.FLOW]}},
            "work_pools": {"name": {"any_": [pool]}},
            "work_pool_queues": {"name": {"any_": list(names)}},
        }
        return await self._api.ask("/flow_runs/count", body)

    async def hosts(self, pool: str) -> int:
        """Hosts of a pool that gave a sign of life just now. Raises PrefectUnavailable."""
        at, found = self._hosts.get(pool, (float("-inf"), 0))
        if time.monotonic() - at > HOSTS_FRESH_SECONDS:
            found = await _hosts_online(self._api, pool)
            self._hosts[pool] = (time.monotonic(), found)
        return found

    async def refresh(self) -> None:
        """Read the newest finished jobs, where that was not done in the last minute."""
        if time.monotonic() - self._read_at >= FRESH_SECONDS:
            await self._reading.get()

    def eta(self, snapshot: Snapshot) -> int | None:
        """Seconds until the job ends, as far as is known now; None where nothing is learned.

        Asks nobody: old numbers are brought up to date in the background.
        """
        if snapshot.has_ended:
            return None
        self._refresh_soon(snapshot.record.pool)
        work = self._work(snapshot.record)
        found = self._guess(work) if work else None
        if found is None or found.source != "learned":
            return None
        if snapshot.status is JobStatus.PROCESSING:
            return left_seconds(found.seconds.likely, snapshot.percent)
        _, hosts = self._hosts.get(snapshot.record.pool, (0.0, 0))
        wait = wait_seconds(snapshot.place or 0, typical_seconds(found), hosts)
        return None if wait is None else round(wait + found.seconds.likely)

    def _guess(self, work: Work) -> Guess | None:
        if work not in self._guesses:
            self._guesses[work] = guess(
                work, self._samples.values(), usd_per_hour=self._usd_per_hour
            )
        return self._guesses[work]

    def _work(self, record: Record) -> Work | None:
        if record.job_id not in self._works:
            if len(self._works) > KEPT:
                self._works.clear()
            self._works[record.job_id] = _work_of_record(record)
        return self._works[record.job_id]

    def _refresh_soon(self, pool: str) -> None:
        now = time.monotonic()
        fresh = now - self._read_at < FRESH_SECONDS
        hosts_fresh = now - self._hosts.get(pool, (float("-inf"), 0))[0] < HOSTS_FRESH_SECONDS
        if (fresh and hosts_fresh) or (self._refreshing and not self._refreshing.done()):
            return
        self._refreshing = asyncio.create_task(self._refresh(pool))

    async def _refresh(self, pool: str) -> None:
        try:
            await self.refresh()
            await self.hosts(pool)
        except StillreelError as exc:
            log.info("estimates are not brought up to date: %s", exc.message)
        except Exception:  # nobody waits for this task
            log.exception("estimates are not brought up to date")

    async def _read(self) -> None:
        since = datetime.now(UTC) - timedelta(days=90)
        body: dict[str, Any] = {
            "flow_runs": {
                "state": {"type": {"any_": ["COMPLETED"]}},
                "end_time": {"after_": since.isoformat()},
            },
            "flows": {"name": {"any_": [marks.FLOW]}},
            "sort": "END_TIME_DESC",
            "limit": PAGE,
        }
        records = [record_of(run) for run in await self._api.ask("/flow_runs/filter", body)]
        gate = asyncio.Semaphore(16)

        async def receipt_of(record: Record) -> Receipt | None:
            async with gate:
                return await self._reader.receipt(record.job_id)

        receipts = await asyncio.gather(*map(receipt_of, records))
        pairs = [(record, r) for record, r in zip(records, receipts, strict=True) if r]
        samples = [s for record, receipt in pairs if (s := sample_of(record, receipt))]
        self._samples = {sample.job_id: sample for sample in samples}
        self.receipts = [(record.model, receipt) for record, receipt in pairs]
        self._guesses.clear()
        self._read_at = time.monotonic()


def typical_seconds(found: Guess) -> float:
    """How long one such job keeps a host from the next one: encoding overlaps with inference."""
    return found.gpu_seconds.likely or found.seconds.likely


def _work_of_record(record: Record) -> Work | None:
    try:
        spec = spec_of({**record.parameters, "model": record.model})
        return work_of(spec)[0]
    except RequestRejected:  # made in the Prefect UI, and will fail
        return None


async def _hosts_online(api: PrefectApi, pool: str) -> int:
    since = datetime.now(UTC) - timedelta(minutes=5)
    recent = {"last_heartbeat_time": {"after_": since.isoformat()}}
    body = {"workers": recent, "limit": PAGE}
    workers = await api.ask(f"/work_pools/{pool}/workers/filter", body)
    return sum(worker["status"] == "ONLINE" for worker in workers)
