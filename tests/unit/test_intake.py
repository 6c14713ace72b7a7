"""What arrives from rented hosts: in turns, within bounds, and nothing of a job that has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import SecretStr

from stillreel import storage as storage_module
from stillreel.errors import (
    DiskFull,
    NotLeased,
    ObjectMissing,
    ResultRefused,
    StaleExecution,
    StorageUnavailable,
    TooManyRequests,
)
from stillreel.gateway import intake as intake_module
from stillreel.gateway.intake import AT_ONCE, WAITING, Intake
from stillreel.gateway.looks import KEPT_MOST
from stillreel.gateway.uploads import PART_BYTES, Ticket, begin, bring
from stillreel.gateway.visit import Visit
from stillreel.job import JobSpec
from stillreel.keys import lent_key, output_key, source_key
from stillreel.settings import CONCERNS, Settings
from stillreel.storage import LocalStorage, ObjectInfo
from stillreel.storage_s3 import Bucket as S3Bucket
from stillreel.storage_s3 import S3Storage
from tests.lent import TOKEN, GivenDoor

JOB = "job_0123456789ab"
SPEC = JobSpec(prompt="slow zoom in", width=160, height=90, duration=0.5)
DIGEST = "0123456789abcdef" * 2
LATENTS = (2).to_bytes(8, "little") + b"{}" + bytes(100)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
OCTETS = "application/octet-stream"


class Held(LocalStorage):
    """A directory that gives no file before it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        self.at_work = 0

    def get_file(self, key: str, path: Path) -> None:
        self.at_work += 1
        self.begun.release()
        assert self.go_on.wait(60)
        super().get_file(key, path)


class Slow(LocalStorage):
    """A directory that stores no file before it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def put_file(self, key: str, path: Path, *, content_type: str) -> ObjectInfo:
        self.begun.set()
        assert self.go_on.wait(60)
        return super().put_file(key, path, content_type=content_type)


class Desk:
    """An intake, and hosts of any lease that come to it."""

    def __init__(self, storage: LocalStorage, home: Path) -> None:
        concerns = {name: concern() for name, concern in CONCERNS.items()}
        concerns["host"] = CONCERNS["host"].model_validate({"home": home})
        self.storage, self.door = storage, GivenDoor()
        self.intake = Intake(storage, Settings.model_validate(concerns), self.door)

    async def visit(self, job_id: str = JOB, *, lease: str = "lease-1") -> Visit:
        self.door.lease = lease
        return await self.door.enter(TOKEN, self.door.hand(job_id, SPEC), writes=True)

    def arrived(self, visit: Visit, key: str = "", *, data: bytes = LATENTS) -> Ticket:
        """An upload of latents that was PUT."""
        key = key or lent_key(visit.job_id, DIGEST)
        temp = f"temp/{visit.job_id}/{visit.lease}-{visit.run_id}"
        self.storage.put_bytes(temp, data, content_type=OCTETS)
        return Ticket(visit.lease, visit.run_id, key, OCTETS, len(data), temp)


@asynccontextmanager
async def desk(storage: LocalStorage, home: Path) -> AsyncIterator[Desk]:
    made = Desk(storage, home)
    yield made
    await made.intake.aclose()


def test_uploads_take_turns_and_keep_nobody_else_waiting(tmp_path: Path) -> None:
    storage = Held(tmp_path / "storage")

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visits = [
                await made.visit(f"job_{n:012}", lease=f"lease-{n % 3}") for n in range(3 * AT_ONCE)
            ]
            tickets = [made.arrived(visit) for visit in visits]
            for visit, ticket in zip(visits, tickets, strict=True):
                assert await made.intake.take(visit, ticket, seconds=0) is None
            for _ in range(AT_ONCE):
                assert await asyncio.to_thread(storage.begun.acquire, timeout=60)
            # What came with its request goes on meanwhile, and so does all else of the API.
            small = await made.visit("job_small0000000")
            key = lent_key(small.job_id, DIGEST)
            assert (await made.intake.take_bytes(small, key, OCTETS, LATENTS)).key == key
            assert storage.at_work == AT_ONCE
            storage.go_on.set()
            for visit, ticket in zip(visits, tickets, strict=True):
                assert (await made.intake.take(visit, ticket, seconds=60)) is not None

    asyncio.run(come())
    assert storage.at_work == 3 * AT_ONCE


def test_one_lease_has_one_turn_and_no_long_queue(tmp_path: Path) -> None:
    storage = Held(tmp_path / "storage")

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visits = [await made.visit(f"job_{n:012}") for n in range(WAITING + 1)]
            tickets = [made.arrived(visit) for visit in visits]
            for visit, ticket in zip(visits[:-1], tickets[:-1], strict=True):
                await made.intake.take(visit, ticket, seconds=0)
            with pytest.raises(TooManyRequests):
                await made.intake.take(visits[-1], tickets[-1], seconds=0)
            assert await asyncio.to_thread(storage.begun.acquire, timeout=60)
            other = await made.visit("job_other0000000", lease="lease-2")
            await made.intake.take(other, made.arrived(other), seconds=0)
            assert await asyncio.to_thread(storage.begun.acquire, timeout=60)
            assert storage.at_work == 2
            storage.go_on.set()
            for visit, ticket in zip(visits, tickets, strict=True):
                assert await made.intake.take(visit, ticket, seconds=60)

    asyncio.run(come())


def test_a_video_larger_than_its_order_comes_to_is_not_sent_at_all(tmp_path: Path) -> None:
    async def come() -> None:
        async with desk(LocalStorage(tmp_path / "storage"), tmp_path) as made:
            visit, key = await made.visit(), output_key(JOB, "output.mp4")
            await made.intake.allow(visit, key, "video/mp4", 1_000_000)
            with pytest.raises(ResultRefused, match=r"output.mp4 is refused: it has more than"):
                await made.intake.allow(visit, key, "video/mp4", 100_000_000)

    asyncio.run(come())


def test_what_a_lease_sends_is_counted_over_all_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "LEASE_BYTES", 1000)

    async def come() -> None:
        async with desk(LocalStorage(tmp_path / "storage"), tmp_path) as made:
            for n, size in enumerate((400, 400, 201)):
                visit = await made.visit(f"job_{n:012}")
                key = lent_key(visit.job_id, DIGEST)
                if n < 2:
                    await made.intake.allow(visit, key, OCTETS, size)
                    continue
                with pytest.raises(TooManyRequests):
                    await made.intake.allow(visit, key, OCTETS, size)
                with pytest.raises(TooManyRequests):
                    await made.intake.take_bytes(visit, key, OCTETS, bytes(size))
                other = await made.visit(visit.job_id, lease="lease-2")
                await made.intake.allow(other, key, OCTETS, size)

    asyncio.run(come())


KINDS = [
    (source_key(JOB), "image/png", PNG),
    (lent_key(JOB, DIGEST), OCTETS, LATENTS),
]


@pytest.mark.parametrize(("key", "content_type", "data"), KINDS)
@pytest.mark.parametrize("end", ["completed", "ended or deleted"])
def test_nothing_of_a_job_that_has_ended_is_stored(
    key: str, content_type: str, data: bytes, end: str, tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path / "storage")

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visit = await made.visit()
            if end == "completed":
                receipt = output_key(JOB, "receipt.json")
                storage.put_bytes(receipt, b"{}", content_type="application/json")
            else:
                made.door.is_taken = True
            with pytest.raises(StaleExecution):
                await made.intake.take_bytes(visit, key, content_type, data)

    asyncio.run(come())
    assert storage.head(key) is None


def test_what_a_completed_job_has_stays_as_it_is(tmp_path: Path) -> None:
    storage, key = LocalStorage(tmp_path / "storage"), lent_key(JOB, DIGEST)

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visit = await made.visit()
            await made.intake.take_bytes(visit, key, OCTETS, LATENTS)
            storage.put_bytes(output_key(JOB, "receipt.json"), b"{}", content_type="any")
            again = await made.intake.take_bytes(visit, key, OCTETS, LATENTS + b"more")
            assert again.size == len(LATENTS)

    asyncio.run(come())
    assert storage.get_bytes(key) == LATENTS


def test_a_job_that_ends_while_another_object_of_it_is_stored_takes_no_more(tmp_path: Path) -> None:
    storage = Slow(tmp_path / "storage")

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visit = await made.visit()
            first, second = (
                asyncio.create_task(made.intake.take_bytes(visit, *kind)) for kind in KINDS
            )
            assert await asyncio.to_thread(storage.begun.wait, 60)
            await asyncio.wait({second}, timeout=0.1)  # it could be past the question by now
            made.door.is_taken = True
            storage.go_on.set()
            await first
            with pytest.raises(StaleExecution):
                await second

    asyncio.run(come())
    assert storage.head(KINDS[1][0]) is None


@pytest.mark.parametrize("header", [b"[1]", b'{"a":[' + b"{}," * 33_333 + b"{}]}"])
def test_a_refusal_is_told_again_and_keeps_nothing_of_what_was_read(
    header: bytes, tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path / "storage")

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visit = await made.visit()
            data = len(header).to_bytes(8, "little") + header + bytes(100)
            ticket = made.arrived(visit, data=data)
            for _ in range(2):
                with pytest.raises(ResultRefused, match="no safetensors"):
                    await made.intake.take(visit, ticket, seconds=60)
            ((_, task),) = made.intake._taken.values()
            kept = task.result()
            assert isinstance(kept, ResultRefused)
            assert (kept.__traceback__, kept.__cause__, kept.__context__) == (None, None, None)

    asyncio.run(come())
    assert list(storage.list("")) == []


@pytest.mark.parametrize("end", ["completed", "ended or deleted"])
def test_what_came_for_a_job_that_has_ended_is_not_brought_here(end: str, tmp_path: Path) -> None:
    storage = Held(tmp_path / "storage")  # whoever brings something waits for ever

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visit, receipt = await made.visit(), output_key(JOB, "receipt.json")
            ticket = made.arrived(visit)
            made.door.is_taken = end != "completed"
            if end == "completed":
                storage.put_bytes(receipt, b"{}", content_type="application/json")
            with pytest.raises(StaleExecution):
                await made.intake.allow(visit, ticket.key, OCTETS, ticket.size)
            with pytest.raises(StaleExecution):
                await made.intake.take(visit, ticket, seconds=60)
            assert storage.head(ticket.temp) is None
            storage.put_bytes(receipt, b"{}", content_type="application/json")
            info = storage.put_bytes(ticket.key, LATENTS, content_type=OCTETS)
            assert await made.intake.allow(visit, ticket.key, OCTETS, ticket.size) == info

    asyncio.run(come())
    assert storage.at_work == 0


def test_each_time_that_an_upload_is_brought_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "LEASE_BYTES", 2 * len(LATENTS))
    storage = Unready(tmp_path / "storage")

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visit = await made.visit()
            ticket = made.arrived(visit)
            for _ in range(2):
                with pytest.raises(StorageUnavailable):
                    await made.intake.take(visit, ticket, seconds=60)
            with pytest.raises(TooManyRequests):
                await made.intake.take(visit, ticket, seconds=60)

    asyncio.run(come())


class Unready(LocalStorage):
    """A directory that takes no file now."""

    def put_file(self, key: str, path: Path, *, content_type: str) -> ObjectInfo:
        raise StorageUnavailable(f"{key}, {path.name}, {content_type}: not now")


def test_a_job_has_few_latents_of_a_size_and_a_run_few_results(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visit = await made.visit()
            for n in range(KEPT_MOST["latents"]):
                await made.intake.take_bytes(visit, lent_key(JOB, f"{n:032}"), OCTETS, LATENTS)
            await made.intake.take_bytes(visit, lent_key(JOB, f"{0:032}"), OCTETS, LATENTS)
            with pytest.raises(ResultRefused, match="of this kind already"):
                await made.intake.take_bytes(visit, lent_key(JOB, DIGEST), OCTETS, LATENTS)
            with pytest.raises(ResultRefused, match="of this kind already"):
                await made.intake.allow(visit, lent_key(JOB, DIGEST), OCTETS, 10)
            with pytest.raises(ResultRefused, match="more than"):
                await made.intake.allow(visit, lent_key(JOB, f"{0:032}"), OCTETS, 100_000_000)
            for n in range(KEPT_MOST["result"]):
                key = f"results/infer-2-{visit.run_id}-{n:x}"
                storage.put_bytes(key, b"{}", content_type=OCTETS)
            key = f"results/infer-2-{visit.run_id}-ff"
            with pytest.raises(ResultRefused, match="of this kind already"):
                await made.intake.take_bytes(visit, key, OCTETS, b"{}")

    asyncio.run(come())
    assert len(list(storage.list(f"latents/{JOB}/"))) == KEPT_MOST["latents"]


def test_nothing_comes_where_the_disk_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "FREE_BYTES", 10**18)

    async def come() -> None:
        async with desk(LocalStorage(tmp_path / "storage"), tmp_path) as made:
            visit = await made.visit()
            ticket = made.arrived(visit)
            with pytest.raises(DiskFull):
                await made.intake.allow(visit, ticket.key, OCTETS, ticket.size)
            with pytest.raises(DiskFull):
                await made.intake.take(visit, ticket, seconds=60)

    asyncio.run(come())


def test_what_comes_with_a_request_waits_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "WAIT_SECONDS", 0.05)
    storage = Slow(tmp_path / "storage")

    async def come() -> None:
        async with desk(storage, tmp_path) as made:
            visit = await made.visit()
            first = asyncio.create_task(made.intake.take_bytes(visit, *KINDS[0]))
            assert await asyncio.to_thread(storage.begun.wait, 60)
            with pytest.raises(TooManyRequests, match="ask again later"):
                await made.intake.take_bytes(visit, *KINDS[1])
            monkeypatch.setattr(intake_module, "WAIT_SECONDS", 600)
            others = [
                asyncio.create_task(made.intake.take_bytes(visit, *KINDS[1]))
                for _ in range(WAITING)
            ]
            await asyncio.sleep(0)  # each has come to its lock
            with pytest.raises(TooManyRequests, match="wait already"):
                await made.intake.take_bytes(visit, *KINDS[1])
            for name, kind in (("output.mp4", "video/mp4"), ("poster.jpg", "image/jpeg")):
                with pytest.raises(NotLeased, match="by an upload"):
                    await made.intake.take_bytes(visit, output_key(JOB, name), kind, b"x")
            storage.go_on.set()
            await asyncio.gather(first, *others)

    asyncio.run(come())


class Overtaken(LocalStorage):
    """A directory in which another process takes what has arrived first."""

    def get_file(self, key: str, path: Path) -> None:
        data = self.get_bytes(key)
        self.delete(key)
        self.put_bytes(lent_key(JOB, DIGEST), data, content_type=OCTETS)
        super().get_file(key, path)


@pytest.mark.parametrize("kind", [LocalStorage, Overtaken])
def test_an_upload_that_was_taken_already_is_told_again(
    kind: type[LocalStorage], tmp_path: Path
) -> None:
    """To whoever lost the answer, and by another process of the API than the one that took it."""
    storage = kind(tmp_path / "storage")

    async def come() -> None:
        async with desk(storage, tmp_path) as made, desk(storage, tmp_path / "other") as other:
            visit = await made.visit()
            other.door.orders = made.door.orders
            ticket = made.arrived(visit)
            first = await made.intake.take(visit, ticket, seconds=60)
            assert first is not None
            assert storage.head(ticket.temp) is None
            assert await other.intake.take(visit, ticket, seconds=60) == first
            short = replace(ticket, temp=f"{ticket.temp}-2", size=ticket.size - 1)
            with pytest.raises(ObjectMissing):
                await other.intake.take(visit, short, seconds=60)

    asyncio.run(come())
    assert storage.get_bytes(lent_key(JOB, DIGEST)) == LATENTS


def test_parts_that_were_joined_already_are_told_again(moto_url: str, tmp_path: Path) -> None:
    bucket = S3Storage(
        S3Bucket("arrivals", moto_url, "us-east-1", SecretStr("key"), SecretStr("secret"))
    )
    bucket.client.create_bucket(Bucket="arrivals")
    size = PART_BYTES + len(LATENTS)
    temp, name, parts = begin(bucket, JOB, content_type=OCTETS, size=size, link=str)
    seconds = parse_qs(urlsplit(parts[-1].url).query)["X-Amz-Expires"]
    assert seconds == [str(900 + size // 500_000)]
    ticket = Ticket("lease-1", "run", lent_key(JOB, DIGEST), OCTETS, size, temp, name)
    with pytest.raises(ObjectMissing):
        bring(bucket, ticket, tmp_path / "early")
    for part, data in zip(parts, (bytes(PART_BYTES), LATENTS), strict=True):
        httpx.put(part.url, content=data, headers=part.headers).raise_for_status()
    for n in range(2):  # the second time there are no parts any more
        assert bring(bucket, ticket, tmp_path / str(n)) is None
        assert (tmp_path / str(n)).stat().st_size == size
    info = bucket.put_file(ticket.key, tmp_path / "0", content_type=OCTETS)
    bucket.delete(temp)
    assert bring(bucket, ticket, tmp_path / "late") == info
    assert not (tmp_path / "late").exists()
