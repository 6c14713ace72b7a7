"""Jobs: read, list, cancel, retry; `GET /status/{id}` for clients of the second document."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from stillreel.api.auth import Generator, Reader
from stillreel.api.orders import owned
from stillreel.api.polls import render
from stillreel.api.problems import PROBLEMS
from stillreel.api.schemas import JobPage, JobView, StatusView
from stillreel.api.services import Services, services_of
from stillreel.api.times import Moment
from stillreel.api.views import job_view, status_view, to_bytes
from stillreel.api.waiting import wait_for_end, wish_of
from stillreel.audit import audit
from stillreel.job import JobStatus
from stillreel.jobs.listing import CURSOR_LIMIT, Wanted
from stillreel.jobs.reader import Snapshot
from stillreel.owners import Caller

router = APIRouter(tags=["jobs"], responses=PROBLEMS)

PAGE_LIMIT = 100
_WORD = r"^[A-Za-z0-9_.-]*$"


@router.get("/api/v1/jobs", response_model=JobPage)
async def list_jobs(
    request: Request,
    caller: Reader,
    status: Annotated[list[JobStatus] | None, Query(description="One or more.")] = None,
    model: Annotated[str, Query(max_length=40, pattern=_WORD)] = "",
    batch_id: Annotated[str, Query(max_length=80, pattern=_WORD)] = "",
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    q: Annotated[
        str, Query(max_length=200, description="Text in the prompt; searches the newest 1,000.")
    ] = "",
    owner: Annotated[
        str, Query(max_length=100, pattern=_WORD, description="Admins: of this owner only.")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = 20,
    cursor: Annotated[str, Query(max_length=CURSOR_LIMIT)] = "",
) -> Response:
    """Jobs, newest first."""
    services = services_of(request)
    wanted = Wanted(
        owner=(owner or None) if caller.may("admin") else caller.owner,
        statuses=tuple(status or ()),
        model=model,
        batch=batch_id,
        since=created_after,
        until=created_before,
        text=q,
    )
    page = await services.lister.list(wanted, limit=limit, cursor=cursor)
    jobs = [view_of(request, services, snapshot) for snapshot in page.jobs]
    body = {"jobs": jobs, "next_cursor": page.cursor or None, "scanned": page.scanned}
    return json_response(body)


@router.get("/api/v1/jobs/{job_id}", response_model=JobView)
async def read_job(
    job_id: str, request: Request, caller: Reader, prefer: Annotated[str | None, Header()] = None
) -> Response:
    """A job as it is, at most one second old; URLs are signed now.

    `Prefer: wait=n` holds the answer until the job has ended, n seconds at most.
    """
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id)
    wish = wish_of(prefer)
    if wish.seconds:
        snapshot = await wait_for_end(request, services, snapshot, wish.seconds)
    if snapshot.status is JobStatus.COMPLETED:
        return json_response(view_of(request, services, snapshot), headers=wish.headers)
    body = render(services, snapshot)
    return Response(body, media_type="application/json", headers=dict(wish.headers))


@router.get("/status/{job_id}", response_model=StatusView)
async def read_status(job_id: str, request: Request, caller: Reader) -> Response:
    """A job in four words; the video's URL is signed now and good for an hour."""
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id)
    view = status_view(snapshot, services.settings.storage, url=services.urls(request))
    return json_response(view)


@router.post("/api/v1/jobs/{job_id}/cancel", response_model=JobView)
async def cancel_job(job_id: str, request: Request, caller: Generator) -> Response:
    """End a job that waits or runs; doing it twice is the same as once."""
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id, fresh=True)
    if await services.actions.cancel(snapshot):
        audit("cancel", owner=caller.owner, key_id=caller.key_id, job_id=job_id)
        services.deliveries.start(services, snapshot.record)  # one that waited has ended
    return json_response(view_of(request, services, await services.reader.get(job_id)))


@router.post("/api/v1/jobs/{job_id}/retry", response_model=JobView)
async def retry_job(job_id: str, request: Request, caller: Generator) -> Response:
    """Open the next round of a job that failed, was cancelled or expired.

    It goes on at the stage that failed: finished tasks are not repeated. Like an order, it counts
    towards the quota of the job's owner.
    """
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id, fresh=True)
    if owner := await services.owners.get(snapshot.record.owner):
        await services.quotas.take(owner)
    await services.actions.retry(snapshot)
    audit("retry", owner=caller.owner, key_id=caller.key_id, job_id=job_id)
    return json_response(view_of(request, services, await services.reader.get(job_id)))


async def own_job(
    services: Services, caller: Caller, job_id: str, *, fresh: bool = False
) -> Snapshot:
    """The snapshot of a job that the caller may see. Raises JobUnknown, JobDeleted."""
    found = None if fresh else services.reader.peek(job_id)
    return owned(found or await services.reader.get(job_id, fresh=fresh), caller)


def view_of(request: Request, services: Services, snapshot: Snapshot) -> dict[str, Any]:
    """The whole job as its caller sees it."""
    return job_view(
        snapshot,
        services.settings.storage,
        url=services.urls(request),
        eta=services.estimates.eta,
    )


def json_response(
    body: Any, *, status: int = 200, headers: Any = None, media_type: str = "application/json"
) -> Response:
    """`body` as JSON, without another look at its types: it was made here."""
    return Response(
        to_bytes(body), status_code=status, headers=dict(headers or {}), media_type=media_type
    )
