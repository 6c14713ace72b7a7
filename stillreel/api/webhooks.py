"""Ends of jobs: a host says that there is news, an owner has a notification sent again."""

from __future__ import annotations

import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, Field

from stillreel.api.auth import Generator, key_text
from stillreel.api.bodies import describe_body, read_small_body
from stillreel.api.jobs import json_response, own_job, view_of
from stillreel.api.orders import token_of
from stillreel.api.problems import PROBLEMS
from stillreel.api.schemas import CompleteRequest, Delivery
from stillreel.api.services import services_of
from stillreel.audit import audit
from stillreel.errors import JobConflict, JobDeleted, Unauthorized
from stillreel.job import JobStatus
from stillreel.jobs.ids import is_job_id
from stillreel.notifications import read_ended, reopen

router = APIRouter(tags=["webhooks"], responses=PROBLEMS)


class Heard(BaseModel):
    """The job as it is, whatever the host said."""

    job_id: str = Field(examples=["job_abc123"])
    status: JobStatus = Field(examples=["completed"])


class Redelivery(BaseModel):
    """A notification that is being sent again, with the id that it had."""

    job_id: str = Field(examples=["job_abc123"])
    status: JobStatus = Field(examples=["completed"])
    notification_id: str = Field(examples=["job_abc123-r1"])
    delivery: Delivery


@router.post(
    "/webhook/complete",
    status_code=202,
    response_model=Heard,
    openapi_extra=describe_body(CompleteRequest),
)
async def complete(
    request: Request,
    authorization: Annotated[
        str | None, Header(description="`Bearer` and the run's own token.")
    ] = None,
    x_webhook_secret: Annotated[
        str | None, Header(description="The run's own token, where the first header is not sent.")
    ] = None,
) -> Response:
    """For hosts: have the API look at a job, and tell its owner if it has ended.

    Only the token that the job's run was made with is accepted: no API key, no webhook secret, no
    other run's token. What the body says is not believed; the job is read from state.
    """
    services = services_of(request)
    given = key_text(authorization, x_webhook_secret)
    job_id = (await read_small_body(request, CompleteRequest)).job_id
    right = token_of(services.secret, job_id).encode()
    if not hmac.compare_digest(given.encode(errors="replace"), right) or not is_job_id(job_id):
        raise Unauthorized("This is not the token of this job's run.")
    snapshot = await read_ended(services, job_id)
    if snapshot.record.is_deleted:
        raise JobDeleted
    if snapshot.has_ended:
        services.deliveries.start(services, snapshot.record)
    return json_response({"job_id": job_id, "status": str(snapshot.status)}, status=202)


@router.post("/api/v1/jobs/{job_id}/redeliver", status_code=202, response_model=Redelivery)
async def redeliver(job_id: str, request: Request, caller: Generator) -> Response:
    """Send the notification of an ended job again, now, under the id that it had."""
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id, fresh=True)
    if not snapshot.has_ended:
        raise JobConflict(f"The job is {snapshot.status}; only the end of a job is told.")
    await reopen(services, snapshot.record)
    audit("redeliver", owner=caller.owner, key_id=caller.key_id, job_id=job_id)
    snapshot = await services.reader.get(job_id)
    services.deliveries.start(services, snapshot.record)
    view = view_of(request, services, snapshot)
    body: dict[str, Any] = {name: view[name] for name in ("job_id", "status", "delivery")}
    number = snapshot.record.round
    return json_response({**body, "notification_id": f"{job_id}-r{number}"}, status=202)
