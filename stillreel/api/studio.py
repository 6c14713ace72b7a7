"""GET /: the studio page, from this server alone, and the two things that only it asks for."""

from __future__ import annotations

import asyncio
import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from stillreel import __version__, keys
from stillreel.api.auth import Reader
from stillreel.api.catalog import AnyKey
from stillreel.api.jobs import own_job
from stillreel.api.presign import IMAGE_TYPES
from stillreel.api.services import Services, services_of
from stillreel.api.timeline import Span, read_timeline
from stillreel.errors import NotThere
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.record import Record

router = APIRouter(include_in_schema=False)

TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
ASK_AGAIN = "no-cache"
"""Browsers keep the files and ask each time whether they are still those."""
_SHOWN = (
    *("width", "height", "fps", "steps", "audio", "codec", "quality"),
    *("image_url", "negative_prompt", "reuse", "embed_prompt", "webhook_url"),
)

_ADDRESSES = {"image_url", "webhook_url"}
"""Only their hosts are shown: what follows is often a secret of whoever ordered."""


class Session(BaseModel):
    """For whom a key speaks, and what bounds its orders."""

    owner: str
    scopes: list[str]
    version: str = __version__
    image_max_bytes: int
    body_max_bytes: int
    image_types: list[str] = list(IMAGE_TYPES)
    prefect_ui_url: str


class Details(BaseModel):
    """What one job's page shows beside the job itself."""

    parameters: dict[str, Any]
    input_url: str | None
    receipt: dict[str, Any] | None
    timeline: list[Span]


@router.api_route("/", methods=["GET", "HEAD"])
def show_studio(request: Request) -> Response:
    """The page; its addresses are relative, so it works behind a proxy that adds a prefix."""
    policy = policy_of(_origins(services_of(request), request))
    return _answer(request, "index.html", {"Content-Security-Policy": policy})


@router.get("/studio/session")
async def read_session(request: Request, caller: AnyKey) -> Session:
    """Who the pasted key is; where the Prefect UI is, to those who may see all of it."""
    settings = services_of(request).settings
    return Session(
        owner=caller.owner,
        scopes=sorted(caller.scopes),
        image_max_bytes=settings.fetch.image_max_bytes,
        body_max_bytes=settings.api.body_max_bytes,
        prefect_ui_url=settings.server.prefect_ui_url if caller.may("admin") else "",
    )


@router.get("/studio/jobs/{job_id}")
async def read_details(job_id: str, request: Request, caller: Reader) -> Details:
    """The parameters, image, receipt and stages of a job."""
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id)
    timeline, source = await asyncio.gather(
        read_timeline(services.api, snapshot.record), _input(services, snapshot, request)
    )
    given = snapshot.record.parameters
    shown = {name: given[name] for name in _SHOWN if given.get(name) not in (None, "")}
    return Details(
        parameters=shown | {name: host_of(shown[name]) for name in _ADDRESSES & shown.keys()},
        input_url=source,
        receipt=dict(snapshot.receipt) if snapshot.receipt else None,
        timeline=timeline,
    )


@router.get("/studio/{name}")
def send_file(name: str, request: Request) -> Response:
    """A file of the page."""
    return _answer(request, name)


def policy_of(origins: set[str]) -> str:
    """The page's Content-Security-Policy; pictures and films may come from `origins` too."""
    stored = " ".join(["'self'", *sorted(origins)])
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            f"img-src {stored} blob: data:",
            f"media-src {stored}",
            f"connect-src {stored}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


class _File(NamedTuple):
    data: bytes
    media_type: str
    etag: str


@lru_cache(maxsize=1)
def page_files() -> dict[str, _File]:
    """The files of the page by name; nothing else is served."""
    found: dict[str, _File] = {}
    for entry in (files("stillreel.api") / "static" / "studio").iterdir():
        data = entry.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
        found[entry.name] = _File(data, TYPES[entry.name.rpartition(".")[2]], etag)
    return found


def host_of(address: str) -> str:
    """Whom an address is of; the rest of it is often a secret."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.hostname or ''}"


def _answer(request: Request, name: str, headers: dict[str, str] | None = None) -> Response:
    file = page_files().get(name)
    if file is None:
        raise NotThere
    headers = {"ETag": file.etag, "Cache-Control": ASK_AGAIN} | (headers or {})
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers=headers, media_type=file.media_type)


def _origins(services: Services, request: Request) -> set[str]:
    """Where signed URLs lead beside this very server: a bucket, or the API's public address."""
    made = (
        services.download_url("outputs/x", seconds=60, request=request),
        services.upload_url(
            "inputs/x", content_type="image/png", size=None, seconds=60, request=request
        ),
    )
    parts = [urlsplit(url) for url in (*made, str(request.base_url))]
    *origins, own = (f"{part.scheme}://{part.netloc}" for part in parts)
    return {origin for origin in origins if origin != own}


async def _input(services: Services, snapshot: Snapshot, request: Request) -> str | None:
    """A URL of the job's image, as it was prepared or as it came; None where there is none."""
    key = await asyncio.to_thread(_input_key, services, snapshot.record)
    seconds = services.settings.storage.download_url_seconds
    return services.download_url(key, seconds=seconds, request=request) if key else None


def _input_key(services: Services, record: Record) -> str | None:
    prepared = keys.source_key(record.job_id)
    stored = [info.key for info in services.storage.list(f"inputs/{record.job_id}/")]
    return prepared if prepared in stored else next(iter(stored), None)
