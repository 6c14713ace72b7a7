"""Signed URLs: to upload an image before the job is ordered, to download its video."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request

from stillreel import keys
from stillreel.api.auth import Generator, Reader
from stillreel.api.bodies import describe_body, read_body
from stillreel.api.jobs import own_job
from stillreel.api.problems import PROBLEMS
from stillreel.api.schemas import DownloadTarget, UploadRequest, UploadTarget, iso
from stillreel.api.services import Services, services_of
from stillreel.errors import (
    IdConflict,
    ImageTooLarge,
    JobConflict,
    JobUnknown,
    ObjectMissing,
    RequestRejected,
)
from stillreel.job import JobStatus
from stillreel.jobs.ids import is_job_id, mint, minted_at
from stillreel.owners import Caller

router = APIRouter(tags=["files"], responses=PROBLEMS)

IMAGE_TYPES = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "image/avif": "avif",
}


@router.post("/api/v1/presign/upload", openapi_extra=describe_body(UploadRequest))
async def presign_upload(request: Request, caller: Generator) -> UploadTarget:
    """Where to PUT an image, and the id that `generate` takes instead of it.

    Without `job_id` a new id is given. With the id of a job of yours that still waits and was
    ordered with `image_url` or a prompt alone, the image is the one that moves.
    """
    services = services_of(request)
    body, _ = await read_body(request, UploadRequest)
    content_type = body.content_type.partition(";")[0].strip().lower()
    extension = IMAGE_TYPES.get(content_type)
    if extension is None:
        raise RequestRejected(
            f"The content type {content_type[:40]!r} is not one of images that we read: "
            f"{', '.join(IMAGE_TYPES)}."
        )
    limit = services.settings.fetch.image_max_bytes
    if body.content_length and body.content_length > limit:
        raise ImageTooLarge(f"At most {limit:,} bytes are allowed for an image.")
    now = datetime.now(UTC)
    job_id = body.job_id or mint(services.secret, caller.owner, at=now)
    if body.job_id:
        await _check_usable(services, caller, body.job_id)
    seconds = services.settings.storage.upload_url_seconds
    url = services.upload_url(
        keys.input_key(job_id, extension),
        content_type=content_type,
        size=body.content_length,
        seconds=seconds,
        request=request,
    )
    minted = minted_at(services.secret, caller.owner, job_id) or now
    claim = timedelta(seconds=services.settings.storage.upload_claim_seconds)
    return UploadTarget(
        upload_url=url,
        expires_in=seconds,
        job_id=job_id,
        expires_at=iso(minted + claim) or "",
    )


@router.get("/api/v1/presign/download/{job_id}")
async def presign_download(job_id: str, request: Request, caller: Reader) -> DownloadTarget:
    """Where to GET the finished video."""
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id)
    if snapshot.status is not JobStatus.COMPLETED:
        raise JobConflict(f"The job is {snapshot.status}; only a completed one has a video.")
    key = keys.output_key(job_id, "output.mp4")
    if await asyncio.to_thread(services.storage.head, key) is None:
        raise ObjectMissing("The video is not there any more; it has expired or was deleted.")
    seconds = services.settings.storage.download_url_seconds
    url = services.download_url(key, seconds=seconds, request=request)
    return DownloadTarget(download_url=url, expires_in=seconds)


async def _check_usable(services: Services, caller: Caller, job_id: str) -> None:
    """Raises JobUnknown for an id that is not the caller's, IdConflict for one that is used."""
    try:
        snapshot = await own_job(services, caller, job_id, fresh=True)
    except JobUnknown:
        if is_job_id(job_id) and minted_at(services.secret, caller.owner, job_id):
            return
        raise JobUnknown(
            "There is no such job_id for this key; leave job_id out, and you get one."
        ) from None
    if snapshot.record.text("image_key"):
        raise IdConflict(
            "This job was ordered with an image of its own, which stays; order another one."
        )
    if snapshot.record.state_type != "SCHEDULED":
        raise IdConflict(f"This job is {snapshot.status}; its image cannot be replaced any more.")
