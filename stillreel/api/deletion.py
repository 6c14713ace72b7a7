"""`DELETE /api/v1/jobs/{id}`: a job goes with everything that it made."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from stillreel.api.auth import Generator
from stillreel.api.jobs import json_response, own_job
from stillreel.api.problems import PROBLEMS
from stillreel.api.services import services_of
from stillreel.jobs.erase import erase

router = APIRouter(tags=["jobs"], responses=PROBLEMS)


class Deleting(BaseModel):
    """The answer about a job whose process is still to end."""

    job_id: str = Field(examples=["job_abc123"])
    status: Literal["deleting"]


ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {"model": Deleting, "description": "Cancelled; deleted as soon as its process has ended."},
    204: {"description": "Deleted."},
}


@router.delete("/api/v1/jobs/{job_id}", status_code=204, response_class=Response, responses=ANSWERS)
async def delete_job(job_id: str, request: Request, caller: Generator) -> Response:
    """Delete a job with its images, latents, videos, prompt, URLs, artifacts and logs.

    For callers it is gone at once (410 from then on). A job that waits is cancelled and deleted;
    one that runs is cancelled, answered with 202, and deleted when its host has stopped the work.
    Its end is not told to a webhook. What stays is a tombstone (id, owner, key, model, times,
    seconds, US$, a hash of the request) and, for 7 days, Prefect's own event log, in which the
    name of the run has up to 50 characters of the prompt.
    """
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id, fresh=True)
    done = await erase(services, snapshot, caller=caller)
    if done:
        return Response(status_code=204)
    return json_response({"job_id": job_id, "status": "deleting"}, status=202)
