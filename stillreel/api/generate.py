"""Orders: `POST /api/v1/generate` of the first design document, `POST /generate` of the second."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from stillreel.api.auth import Generator
from stillreel.api.bodies import describe_body, read_body
from stillreel.api.jobs import json_response, view_of
from stillreel.api.orders import SEED_1_MODEL, SEED_2_MODEL, accept
from stillreel.api.problems import PROBLEMS
from stillreel.api.schemas import GenerateRequest, Queued, iso
from stillreel.api.services import Services, services_of
from stillreel.api.views import four_words, status_for_now, status_view
from stillreel.api.waiting import Wish, wait_for_end, wish_of
from stillreel.errors import StillreelError
from stillreel.job import JobStatus
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.record import Record
from stillreel.jobs.submit import Submitted
from stillreel.owners import Caller

router = APIRouter(tags=["jobs"], responses=PROBLEMS)
log = logging.getLogger("stillreel.api")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="The same key with the same body gives the same job, also after a failure of "
        "the network; with another body it is refused.",
    ),
]
Prefer = Annotated[
    str | None, Header(description="`wait=n` holds the answer up to n seconds for the job's end.")
]
FILES = ("image", "input_reference")

BODY = describe_body(GenerateRequest, file="image")


@router.post("/api/v1/generate", response_model=Queued, openapi_extra=BODY)
async def generate(
    request: Request,
    caller: Generator,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Order a video from an image (address, upload, base64, file) or from a prompt alone.

    The default model is `ltx-2`, or the installation's own where it has none.
    """
    services = services_of(request)
    submitted = await _accept(request, services, caller, SEED_1_MODEL, idempotency_key)
    record, wish = submitted.record, wish_of(prefer)
    if submitted.is_new and not wish.seconds:
        return _answer(submitted, wish, _queued(record, record.status(has_receipt=False)))
    snapshot = await _look_later(request, services, record, wish)
    if wish.seconds:
        return _answer(submitted, wish, view_of(request, services, snapshot))
    return _answer(submitted, wish, _queued(record, snapshot.status))


@router.post("/generate", response_model=Queued, openapi_extra=BODY)
async def generate_simply(
    request: Request,
    caller: Generator,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Order a video, and be told the place in the line.

    The default model is `wan-2.2`, or the installation's own where it has none.
    """
    services = services_of(request)
    submitted = await _accept(request, services, caller, SEED_2_MODEL, idempotency_key)
    record, wish = submitted.record, wish_of(prefer)
    snapshot = await _look_later(request, services, record, wish)
    body = _queued(record, snapshot.status) | {"position": snapshot.place}
    body["status"] = four_words(snapshot.status)
    if wish.seconds:
        body |= status_view(snapshot, services.settings.storage, url=services.urls(request))
    return _answer(submitted, wish, body)


async def look(services: Services, record: Record) -> Snapshot:
    """What is known about a job that was ordered just now.

    It is durable, so nothing that fails here may look as if it were not: where no more can be read
    now, the snapshot holds what its run says.
    """
    try:
        found = services.reader.peek(record.job_id)
        return found or (await services.reader.complete([record]))[0]
    except StillreelError as exc:
        log.warning("the job %s was ordered, and not read: %s", record.job_id, exc.message)
        return Snapshot(record, status_for_now(record), read_at=time.monotonic())


async def _accept(
    request: Request, services: Services, caller: Caller, default_model: str, key: str | None
) -> Submitted:
    order, files = await read_body(request, GenerateRequest, files=FILES)
    image = next((files[name] for name in FILES if name in files), None)
    return await accept(
        services, caller, order, default_model=default_model, idempotency_key=key, image=image
    )


async def _look_later(request: Request, services: Services, record: Record, wish: Wish) -> Snapshot:
    """The same after as long a wait as the caller wishes."""
    snapshot = await look(services, record)
    if wish.seconds:
        try:
            return await wait_for_end(request, services, snapshot, wish.seconds)
        except StillreelError as exc:
            log.warning("the job %s is not waited for: %s", record.job_id, exc.message)
    return snapshot


def _queued(record: Record, status: JobStatus) -> dict[str, Any]:
    return {
        "job_id": record.job_id,
        "status": str(status),
        "created_at": iso(record.created_at),
        "model": record.model,
        "position": None,
    }


def _answer(submitted: Submitted, wish: Wish, body: Mapping[str, Any]) -> Response:
    headers = dict(wish.headers)
    if not submitted.is_new:
        headers["Idempotency-Replayed"] = "true"
    headers["Location"] = f"/api/v1/jobs/{submitted.record.job_id}"
    return json_response(body, status=202 if wish.is_async else 200, headers=headers)
