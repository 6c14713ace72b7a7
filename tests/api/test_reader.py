"""Jobs as callers read them while other processes change them, and how owners' jobs are counted."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import stamina

from stillreel import keys
from stillreel.api.quotas import Quotas
from stillreel.api.services import Services
from stillreel.errors import QuotaExceeded, StorageError
from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.reader import Snapshot
from stillreel.owners import Owner, Quota, make_owner
from stillreel.storage import BYTES_LIMIT
from tests.api.background import keep
from tests.api.conftest import Api


def cancelled(api: Api) -> str:
    job_id = api.submit()["job_id"]
    assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    return job_id


def test_an_ended_job_that_another_process_retries_is_seen_to_wait_again(api: Api) -> None:
    job_id = cancelled(api)

    async def look(services: Services) -> None:
        assert (await services.reader.get(job_id)).has_ended
        assert api.client.post(f"/api/v1/jobs/{job_id}/retry").is_success
        async for attempt in stamina.retry_context(
            on=AssertionError, timeout=10, attempts=None, wait_initial=0.2
        ):
            with attempt:
                assert (await services.reader.get(job_id)).status is JobStatus.QUEUED

    keep(api, look)


def test_a_reading_that_began_before_a_change_is_not_kept(api: Api) -> None:
    job_id = api.submit()["job_id"]

    async def look(services: Services) -> None:
        reading = asyncio.create_task(services.reader.get(job_id))
        await asyncio.sleep(0.001)
        assert not reading.done()
        services.reader.forget(job_id)
        await reading
        assert services.reader.peek(job_id) is None
        await services.reader.get(job_id)
        assert services.reader.peek(job_id)

    keep(api, look)


def test_a_receipt_that_cannot_be_read_is_the_trouble_of_its_job_alone(api: Api) -> None:
    good, bad = cancelled(api), cancelled(api)
    too_long = bytes(BYTES_LIMIT + 1)
    key = keys.output_key(bad, "receipt.json")
    api.storage.put_bytes(key, too_long, content_type="application/json")

    async def look(services: Services) -> list[Any]:
        return await services.reader.get_many([good, bad])

    try:
        found, trouble = keep(api, look)
    finally:
        api.storage.delete(key)
    assert isinstance(found, Snapshot)
    assert isinstance(trouble, StorageError)


# --- quotas -----------------------------------------------------------------------------------


def owner_with(**quota: int) -> Owner:
    made = make_owner(f"counted-{uuid4().hex[:8]}")
    return made.model_copy(update={"quota": Quota(**quota)})


async def bury(services: Services, owner: Owner, *, created: datetime) -> None:
    """Store the tombstone of a job that was made at that time and deleted now."""
    flow = await services.api.post("/flows/", {"name": marks.TOMBSTONE_FLOW})
    job_id = f"job_{uuid4().hex[:26]}"
    run = {
        "flow_id": flow["id"],
        "name": job_id,
        "idempotency_key": job_id,
        "state": {"type": "COMPLETED", "name": "Deleted"},
        "tags": [marks.owner_tag(owner.name)],
        "labels": {marks.CREATED: created.isoformat(), marks.DELETED: created.isoformat()},
    }
    await services.api.post("/flow_runs/", run)


async def takes(services: Services, owner: Owner, jobs: int) -> int:
    """How many of so many orders of one moment are within the owner's quota."""
    quotas = Quotas(services.queues, services.settings.api)
    tried = await asyncio.gather(*(quotas.take(owner) for _ in range(jobs)), return_exceptions=True)
    assert all(each is None or isinstance(each, QuotaExceeded) for each in tried)
    return tried.count(None)


def test_a_deleted_job_counts_for_the_day_that_it_was_made_on(api: Api) -> None:
    owner = owner_with(jobs_per_day=3)

    async def look(services: Services) -> tuple[int, int]:
        now = datetime.now(UTC)
        for _ in range(4):
            await bury(services, owner, created=now - timedelta(days=1))
        old = await takes(services, owner, 5)
        await bury(services, owner, created=now)
        return old, await takes(services, owner, 5)

    assert keep(api, look) == (3, 2)


def test_orders_of_one_moment_do_not_get_past_a_quota_together(api: Api) -> None:
    owner = owner_with(jobs_waiting=4, jobs_per_day=2)

    async def look(services: Services) -> int:
        return await takes(services, owner, 8)

    assert keep(api, look) == 2
