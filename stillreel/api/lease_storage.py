"""`/lease/storage/...`: the objects of a rented host's own runs, for hosts without bucket keys."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from stillreel.api.auth import key_text
from stillreel.api.bodies import read_small_body
from stillreel.api.services import services_of
from stillreel.errors import BodyTooLarge
from stillreel.gateway.access import SMALL_BYTES
from stillreel.gateway.intake import WAIT_SECONDS, Intake
from stillreel.gateway.uploads import URL_SECONDS, Ticket, begin, unseal
from stillreel.gateway.visit import Visit
from stillreel.storage import ObjectInfo, checked_seconds, missing

LIST_LIMIT = 1000

router = APIRouter(prefix="/lease/storage/{run_id}", include_in_schema=False)

Key = Annotated[str, Query()]


class UploadOrder(BaseModel):
    """What a host wants to store."""

    key: str = Field(max_length=600)
    content_type: str = Field(max_length=100)
    size: int = Field(ge=0)


class UploadDone(BaseModel):
    """That the bytes of an upload are there."""

    upload: str = Field(max_length=4000)


@router.get("/object")
async def find(request: Request, run_id: str, key: Key) -> dict[str, Any]:
    """What is known about an object, and where to GET it for a moment."""
    services, visit = services_of(request), await _enter(request, run_id)
    visit.access.read(key)
    info = await run_in_threadpool(services.storage.head, key)
    if info is None:
        raise missing(key)
    url = services.download_url(key, seconds=URL_SECONDS, request=request)
    return _told(info) | {"url": url}


@router.get("/link")
async def link(request: Request, run_id: str, key: Key, seconds: int) -> dict[str, str]:
    """Where to GET an object, which need not exist; for no longer than an own look would take."""
    services, visit = services_of(request), await _enter(request, run_id)
    visit.access.read(key)
    short = min(checked_seconds(seconds), URL_SECONDS)
    return {"url": services.download_url(key, seconds=short, request=request)}


@router.get("/objects")
async def find_all(
    request: Request, run_id: str, prefix: Annotated[str, Query()] = ""
) -> dict[str, Any]:
    """What is known about all objects with a prefix, which lies within the job."""
    services, visit = services_of(request), await _enter(request, run_id)
    visit.access.list(prefix)

    def read() -> list[dict[str, Any]]:
        found = zip(range(LIST_LIMIT), services.storage.list(prefix), strict=False)
        return [_told(info) for _, info in found]

    return {"objects": await run_in_threadpool(read)}


@router.put("/object")
async def put(request: Request, run_id: str, key: Key) -> dict[str, Any]:
    """Store the body, which is small."""
    visit = await _enter(request, run_id, writes=True)
    content_type = request.headers.get("content-type", "")
    visit.access.write(key, content_type, 0)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > SMALL_BYTES:
            raise BodyTooLarge(f"At most {SMALL_BYTES:,} bytes are taken here; ask for an upload.")
    return _told(await _intake(request).take_bytes(visit, key, content_type, bytes(data)))


@router.post("/uploads")
async def allow_upload(request: Request, run_id: str) -> dict[str, Any]:
    """Where to PUT an object of exactly this type and length; the object that stays as it is."""
    services, visit = services_of(request), await _enter(request, run_id, writes=True)
    order = await read_small_body(request, UploadOrder)
    kept = await _intake(request).allow(visit, order.key, order.content_type, order.size)
    if kept:
        return _told(kept)

    def link_of(key: str) -> str:
        return services.upload_url(
            key,
            content_type=order.content_type,
            size=order.size,
            seconds=URL_SECONDS,
            request=request,
        )

    temp, multipart, parts = await run_in_threadpool(
        begin,
        services.storage,
        visit.job_id,
        content_type=order.content_type,
        size=order.size,
        link=link_of,
    )
    ticket = Ticket(
        visit.lease, visit.run_id, order.key, order.content_type, order.size, temp, multipart
    )
    told = [{"url": part.url, "headers": part.headers, "size": part.size} for part in parts]
    return {"upload": ticket.sealed(services.secret), "parts": told}


@router.post("/uploads/done")
async def take_upload(request: Request, run_id: str, response: Response) -> dict[str, Any]:
    """Have what was PUT looked at and stored; 202 while that goes on, then ask again."""
    services, visit = services_of(request), await _enter(request, run_id, writes=True)
    done = await read_small_body(request, UploadDone)
    ticket = unseal(done.upload, services.secret, lease=visit.lease, run_id=visit.run_id)
    info = await _intake(request).take(visit, ticket, seconds=WAIT_SECONDS)
    if info is None:
        response.status_code = 202
        return {"state": "checking"}
    return _told(info)


@router.delete("/object")
async def delete(request: Request, run_id: str, key: Key) -> Response:
    """Remove an object, where that is this host's to do."""
    services, visit = services_of(request), await _enter(request, run_id, writes=True)
    visit.access.delete(key)
    await run_in_threadpool(services.storage.delete, key)
    return Response(status_code=204)


async def _enter(request: Request, run_id: str, *, writes: bool = False) -> Visit:
    """The visit of the host that asks. Raises what `Door.enter` raises, and Unauthorized."""
    token = key_text(request.headers.get("authorization"), None)
    return await _intake(request).door.enter(token, run_id, writes=writes)


def _intake(request: Request) -> Intake:
    return request.app.state.intake


def _told(info: ObjectInfo) -> dict[str, Any]:
    return {
        "key": info.key,
        "size": info.size,
        "etag": info.etag,
        "content_type": info.content_type,
        "modified": info.modified.astimezone(UTC).isoformat(),
    }
