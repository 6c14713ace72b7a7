"""Objects of the local storage over HTTP, by signed link: ranges of them, and uploads."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from stillreel.api.problems import PROBLEMS
from stillreel.api.services import services_of
from stillreel.api.stored_file import RANGES, StoredFile
from stillreel.errors import BodyTooLarge, BodyTooSlow, Forbidden, NotThere, RequestRejected
from stillreel.gateway.access import TEMP_FOLDER
from stillreel.gateway.uploads import URL_SECONDS
from stillreel.links import Links
from stillreel.storage import LocalStorage, check_room, missing

START_SECONDS = 30.0
SLOWEST = 16_000
"""Bytes per second of the slowest upload that is waited for, after START_SECONDS."""

ANY_PAGE = {"Access-Control-Allow-Origin": "*"}
"""For browsers: the link is the permission, and no cookie goes with it, whatever page it is on."""

Expires = Annotated[str, Query(description="Until when the link is good, in Unix time.")]
Signature = Annotated[str, Query(description="What makes the link ours.")]

router = APIRouter(tags=["files"], responses=PROBLEMS)


@router.head("/files/{key:path}", include_in_schema=False)
@router.get(
    "/files/{key:path}",
    response_class=StoredFile,
    responses=RANGES,
)
async def download_file(
    request: Request,
    key: str,
    expires: Expires = "",
    signature: Signature = "",
    download: Annotated[bool, Query(description="Have browsers save it; not signed.")] = False,
) -> StoredFile:
    """The object that a signed link is for; answers Range."""
    storage, links = _local(request)
    links.check("GET", key, expires=expires, signature=signature)
    info = await run_in_threadpool(storage.head, key)
    if info is None:
        raise missing(key)
    is_saved = download or _acts(info.content_type)
    return StoredFile(
        storage.path(key),
        media_type=info.content_type,
        # Shown in its place it has the name in its URL, or the one that the page's link gives it.
        filename=key.rpartition("/")[2] if is_saved else None,
        headers={
            "ETag": f'"{info.etag}"',
            "Cache-Control": "private",
            "X-Content-Type-Options": "nosniff",
        },
    )


@router.put(
    "/files/{key:path}",
    response_class=Response,
)
async def upload_file(
    request: Request,
    key: str,
    content_type: Annotated[str, Query(alias="type", description="The Content-Type.")] = "",
    size: Annotated[str, Query(description="The Content-Length.")] = "",
    expires: Expires = "",
    signature: Signature = "",
) -> Response:
    """Store the body as the object that a signed link is for: whole or not at all.

    Content-Type and Content-Length must be those of the link.
    """
    storage, links = _local(request)
    bound = (content_type, size) if size else (content_type,)
    links.check("PUT", key, *bound, expires=expires, signature=signature)
    sent = request.headers
    length = sent.get("content-length") or ""
    right = length == size if size else length.isascii() and length.isdigit()
    if sent.get("content-type") != content_type or not right:
        raise Forbidden(
            f"The link is for {size or 'a stated number of'} bytes of {content_type}; send exactly "
            "that as Content-Type and Content-Length."
        )
    if not size and int(length) > (limit := services_of(request).settings.fetch.image_max_bytes):
        raise BodyTooLarge(f"The body has {length} bytes; at most {limit:,} are allowed.")
    # What lies under temp/ comes from rented hosts: one at a time by each link, and not for long.
    is_lent = key.startswith(TEMP_FOLDER)
    seconds = START_SECONDS + int(length) / SLOWEST
    if is_lent:
        seconds = min(seconds, URL_SECONDS)
        await run_in_threadpool(check_room, storage.root, int(length))
    with ExitStack() as stack:
        opened = storage.replacing(key, alone=is_lent)
        file = await run_in_threadpool(stack.enter_context, opened)
        await _receive(request, file, int(length), seconds=seconds)
        await run_in_threadpool(stack.close)
    return Response()


@router.options("/files/{key:path}", include_in_schema=False)
async def allow_pages() -> Response:
    """What a browser asks before a page of another site may PUT an image."""
    allowed = {
        "Access-Control-Allow-Methods": "GET, HEAD, PUT",
        "Access-Control-Allow-Headers": "Content-Type, Range",
        "Access-Control-Max-Age": "7200",
    }
    return Response(status_code=204, headers=ANY_PAGE | allowed)


def _local(request: Request) -> tuple[LocalStorage, Links]:
    request.state.response_headers = ANY_PAGE
    services = services_of(request)
    if not isinstance(services.storage, LocalStorage) or services.links is None:
        raise NotThere
    return services.storage, services.links


def _acts(content_type: str) -> bool:
    """Whether a browser might run what is in such a file, with the rights of this site."""
    shown = ("image/", "video/", "audio/", "application/json")
    return not content_type.startswith(shown) or content_type == "image/svg+xml"


async def _receive(request: Request, file: BinaryIO, size: int, *, seconds: float) -> None:
    """Writes the body to `file`. Raises what its size, its pace or its end deserves."""
    received = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                received += len(chunk)
                if received > size:
                    raise BodyTooLarge(f"The body has more than the {size} bytes of the link.")
                await run_in_threadpool(file.write, chunk)
    except TimeoutError as exc:
        raise BodyTooSlow(
            f"The body was not here in full after {seconds:.0f} s; try again on a faster line."
        ) from exc
    except ClientDisconnect as exc:
        raise RequestRejected(f"The upload ended after {received} of {size} bytes.") from exc
    if received < size:
        raise RequestRejected(f"The body has {received} of the {size} bytes of the link.")
