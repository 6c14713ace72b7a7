"""Batches: many orders in one call, each with its own result; read and cancelled as one."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field

from stillreel.api.auth import Generator, Reader
from stillreel.api.batch_items import Item, read_items
from stillreel.api.generate import IdempotencyKey
from stillreel.api.jobs import json_response, view_of
from stillreel.api.orders import SEED_1_MODEL, accept, key_of
from stillreel.api.problems import PROBLEM_JSON, PROBLEMS, Problem, answer_of, problem_of
from stillreel.api.schemas import JobView
from stillreel.api.services import Services, services_of
from stillreel.api.views import status_for_now
from stillreel.audit import audit
from stillreel.errors import IdConflict, JobConflict, NotThere, RequestRejected, StillreelError
from stillreel.job import JobStatus
from stillreel.jobs.listing import CURSOR_LIMIT, Wanted
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.submit import Submitted
from stillreel.owners import Caller
from stillreel.prefect_api import PAGE
from stillreel.server_secret import sign

router = APIRouter(tags=["batches"], responses=PROBLEMS)
log = logging.getLogger("stillreel.api")

PAGE_LIMIT = 100

_BATCH_ID = re.compile(r"batch_[a-z2-7]{24}")


class BatchResult(BaseModel):
    """What became of one item: a job, or an error."""

    index: int
    job_id: str | None = None
    status: JobStatus | None = None
    error: Problem | None = None


class BatchAnswer(BaseModel):
    """What became of the items, in their order."""

    batch_id: str = Field(examples=["batch_abc123"])
    created: int = Field(description="Items that are jobs now, made now or by an earlier call.")
    failed: int
    results: list[BatchResult]


class BatchView(BaseModel):
    """A batch as it is now."""

    batch_id: str
    total: int
    counts: dict[JobStatus, int] = Field(description="Jobs by status; all six are there.")
    jobs: list[JobView] = Field(description="Newest first.")
    next_cursor: str | None = Field(None, description="Give it as `cursor` for the next page.")


_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["items"],
    "additionalProperties": False,
    "properties": {
        "items": {
            "type": "array",
            "minItems": 1,
            "items": {"$ref": "#/components/schemas/GenerateRequest"},
        },
        "defaults": {"$ref": "#/components/schemas/GenerateRequest"},
    },
    "example": {
        "defaults": {"prompt": "slow zoom in", "duration": 5},
        "items": [
            {"image_url": "https://example.com/1.jpg"},
            {"image_url": "https://example.com/2.jpg", "prompt": "pan left"},
        ],
    },
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _SCHEMA},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "items": {"type": "string", "description": "The items as a JSON array."},
                        "defaults": {"type": "string", "description": "A JSON object."},
                    },
                    "patternProperties": {
                        r"^image(_\d+|\[\d+\])$": {
                            "type": "string",
                            "format": "binary",
                            "description": "`image_0` is the image of the first item.",
                        }
                    },
                }
            },
        },
    }
}


@router.post("/api/v1/batches", response_model=BatchAnswer, openapi_extra=BODY)
async def order_batch(
    request: Request, caller: Generator, idempotency_key: IdempotencyKey = None
) -> Response:
    """Order many videos at once, from JSON or from a form with the files `image_0`, `image_1`...

    Each item stands for itself: `results` has its job or its error, in the order of the items.
    The answer is 200 when at least one is a job. When none is, it is a problem with the same
    `results`: 503 where Prefect was away, 429 where the quota is used up, else 422.

    With an `Idempotency-Key`, each item is made once under its key and place: a call that is
    repeated gives the jobs that there are, and makes those that are missing, whether a network or
    Prefect failed or an item was mended meanwhile. An item that was made with other contents is
    refused with `idempotency_key_reused`. `Idempotency-Replayed: true`: all were there.

    A form needs no `items` where all that differs is the images. Images count towards the largest
    body; more or larger ones are uploaded first (`presign/upload`) and named by their `job_id`.
    """
    services = services_of(request)
    key = key_of(idempotency_key)
    items = await read_items(request)
    batch_id = _batch_id(services.secret, caller.owner, key)
    outcomes = await _accept(services, caller, items, batch_id, key)
    results = await _results(request, services, outcomes)
    created = sum(isinstance(outcome, Submitted) for outcome in outcomes)
    body = {"batch_id": batch_id, "created": created, "failed": len(items) - created}
    body["results"] = results
    if not created:
        return _refusal(request, outcomes, body)
    headers = {"Location": f"/api/v1/batches/{batch_id}"}
    if all(isinstance(outcome, Submitted) and not outcome.is_new for outcome in outcomes):
        headers["Idempotency-Replayed"] = "true"
    return json_response(body, headers=headers)


@router.get("/api/v1/batches/{batch_id}", response_model=BatchView)
async def read_batch(
    batch_id: str,
    request: Request,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = PAGE_LIMIT,
    cursor: Annotated[str, Query(max_length=CURSOR_LIMIT)] = "",
) -> Response:
    """How many jobs of a batch are where, and the jobs themselves."""
    services = services_of(request)
    wanted = _wanted(caller, batch_id)
    found = await _jobs(services, wanted)
    jobs, next_cursor = found, ""
    if cursor or len(found) > limit:
        page = await services.lister.list(wanted, limit=limit, cursor=cursor)
        jobs, next_cursor = page.jobs, page.cursor
    counts = Counter(job.status for job in found)
    view = {
        "batch_id": batch_id,
        "total": len(found),
        "counts": {str(status): counts[status] for status in JobStatus},
        "jobs": [view_of(request, services, job) for job in jobs],
        "next_cursor": next_cursor or None,
    }
    return json_response(view)


@router.post("/api/v1/batches/{batch_id}/cancel", response_model=BatchView)
async def cancel_batch(batch_id: str, request: Request, caller: Generator) -> Response:
    """End all jobs of a batch that have not ended; doing it twice is the same as once."""
    services = services_of(request)
    found = await _jobs(services, _wanted(caller, batch_id))
    running = [job for job in found if not job.has_ended]
    await asyncio.gather(*(_cancel(services, caller, job) for job in running))
    return await read_batch(batch_id, request, caller)


# --- what becomes of it -------------------------------------------------------------------------


async def _accept(
    services: Services, caller: Caller, items: Sequence[Item], batch_id: str, key: str
) -> list[Submitted | Exception]:
    """The job of each item, or why there is none.

    They are accepted side by side, so that what they ask of Prefect is asked for all at once.
    """
    uploads: set[str] = set()

    async def make(item: Item) -> Submitted:
        order = item.order()
        if order.job_id:
            if order.job_id in uploads:
                raise IdConflict("Another item of the batch has this job_id; get one for each.")
            uploads.add(order.job_id)
        return await accept(
            services,
            caller,
            order,
            default_model=SEED_1_MODEL,
            idempotency_key=_item_key(services.secret, caller.owner, key, item.index),
            image=item.image,
            batch=batch_id,
        )

    try:
        await services.deployments.offered()  # read once, and not by each
    except StillreelError as exc:
        return [exc for _ in items]
    found = await asyncio.gather(*map(make, items), return_exceptions=True)
    return [_outcome(item) for item in found]


def _outcome(item: Submitted | BaseException) -> Submitted | Exception:
    if not isinstance(item, Submitted | Exception):
        raise item
    if not isinstance(item, Submitted | StillreelError | RequestValidationError):
        log.error("an item of a batch failed", exc_info=item)
    return item


async def _results(
    request: Request, services: Services, outcomes: Sequence[Submitted | Exception]
) -> list[dict[str, Any]]:
    replayed = [o.record.job_id for o in outcomes if isinstance(o, Submitted) and not o.is_new]
    found = await services.reader.get_many(replayed)
    now = {s.record.job_id: s.status for s in found if isinstance(s, Snapshot)}
    results: list[dict[str, Any]] = []
    for n, outcome in enumerate(outcomes):
        if isinstance(outcome, Submitted):
            record = outcome.record
            status = now.get(record.job_id) or status_for_now(record)
            results.append({"index": n, "job_id": record.job_id, "status": str(status)})
        else:
            request_id = request.scope["state"].get("request_id", "")
            results.append({"index": n, "error": problem_of(outcome, request.url.path, request_id)})
    return results


def _refusal(
    request: Request, outcomes: Sequence[Submitted | Exception], body: Mapping[str, Any]
) -> Response:
    """The problem of a batch of which no item is a job: what may pass goes before what will not."""
    passing = (e for e in outcomes if isinstance(e, StillreelError) and _may_pass(e))
    none = RequestRejected("None of the items could be made; `results` says why for each.")
    answer = answer_of(next(passing, none), request.scope)
    problem = json.loads(bytes(answer.body)) | body
    kept = {name: answer.headers[name] for name in ("Retry-After",) if name in answer.headers}
    return json_response(problem, status=answer.status_code, headers=kept, media_type=PROBLEM_JSON)


def _may_pass(error: StillreelError) -> bool:
    return error.retryable or error.http_status == 429


# --- the batch as it is -------------------------------------------------------------------------


async def _jobs(services: Services, wanted: Wanted) -> list[Snapshot]:
    """All jobs of a batch. Raises NotThere where there is none."""
    found: list[Snapshot] = []
    cursor = ""
    while True:
        page = await services.lister.list(wanted, limit=PAGE, cursor=cursor)
        found += page.jobs
        cursor = page.cursor
        if not cursor:
            break
    if not found:
        raise _unknown()
    return found


async def _cancel(services: Services, caller: Caller, job: Snapshot) -> None:
    try:
        cancelled = await services.actions.cancel(job)
    except JobConflict:
        return  # it ended meanwhile
    if cancelled:
        job_id = job.record.job_id
        audit("cancel", owner=caller.owner, key_id=caller.key_id, job_id=job_id)
        services.on_submitted(job.record)


def _wanted(caller: Caller, batch_id: str) -> Wanted:
    """Which jobs a batch has that the caller may see. Raises NotThere for what is no batch's id."""
    if not _BATCH_ID.fullmatch(batch_id):
        raise _unknown()
    return Wanted(owner=None if caller.may("admin") else caller.owner, batch=batch_id)


def _unknown() -> NotThere:
    return NotThere(
        "There is no such batch; check the id, and that the key belongs to the batch's owner."
    )


def _batch_id(secret: bytes, owner: str, key: str) -> str:
    """The id that belongs to this key of this owner; without a key a new one."""
    data = sign(secret, "batch", owner, key)[:15] if key else secrets.token_bytes(15)
    return "batch_" + base64.b32encode(data).decode().lower()


def _item_key(secret: bytes, owner: str, key: str, index: int) -> str | None:
    return sign(secret, "batch-item", owner, key, str(index)).hex() if key else None
