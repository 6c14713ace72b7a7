"""Videos as OpenAI's API has them, so that its clients and those of open servers work unchanged."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import RootModel

from stillreel import keys
from stillreel.api.auth import Generator, Reader
from stillreel.api.bodies import as_model, describe_body, read_body
from stillreel.api.generate import IdempotencyKey, look
from stillreel.api.jobs import json_response, own_job
from stillreel.api.openai_schemas import (
    ModelPage,
    ModelView,
    Reference,
    VideoDeleted,
    VideoPage,
    VideoRequest,
    VideoView,
)
from stillreel.api.orders import SEED_1_MODEL, accept, owned
from stillreel.api.problems import PROBLEMS
from stillreel.api.schemas import GenerateRequest
from stillreel.api.services import Services, services_of
from stillreel.api.stored_file import RANGES, StoredFile
from stillreel.api.views import facts
from stillreel.errors import (
    JobConflict,
    JobDeleted,
    ModelUnavailable,
    NotImplementedHere,
    NotThere,
    ObjectMissing,
    PrefectUnavailable,
    RequestRejected,
    StillreelError,
)
from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.erase import erase
from stillreel.jobs.ids import is_job_id
from stillreel.jobs.listing import Wanted
from stillreel.jobs.reader import Snapshot
from stillreel.models.registry import get_model
from stillreel.owners import Caller
from stillreel.storage import LocalStorage

PAGE_LIMIT = 100
POLL_MS, POLL_MS_LIMIT = 1000, 10_000
POLL_MS_PER_PLACE = 250
"""OpenAI's clients obey the first value that they get until the end, so it may never be long."""

_FILES = {"video": "output.mp4", "thumbnail": "poster.jpg"}
_STATUSES = {
    JobStatus.QUEUED: "queued",
    JobStatus.PROCESSING: "in_progress",
    JobStatus.COMPLETED: "completed",
}
_EXTRAS = ("extra_body", "extra_params")
_OBJECTS = ("input_reference", "image_reference", *_EXTRAS)
_BRACKETS = re.compile(r"(\w+)\[(\w+)\]")


class _Fields(RootModel[dict[str, Any]]):
    """Any fields, as they came."""


def poll_ms(place: int | None) -> int:
    """After how many milliseconds to ask again about a job with this place in the line."""
    return min(max((place or 0) * POLL_MS_PER_PLACE, POLL_MS), POLL_MS_LIMIT)


async def _mark_final(request: Request) -> AsyncIterator[None]:
    """Have OpenAI's clients not repeat in vain, or at the price of a second video.

    By themselves they send again what was answered with 409 or 5xx, and without any key.
    """
    try:
        yield
    except StillreelError as exc:
        in_vain = exc.http_status == 409 or (exc.http_status >= 500 and not exc.retryable)
        keyless = request.method == "POST" and "idempotency-key" not in request.headers
        if in_vain or (keyless and isinstance(exc, PrefectUnavailable)):
            state = request.scope["state"]
            headers = state.get("response_headers") or {}
            state["response_headers"] = {**headers, "x-should-retry": "false"}
        raise


router = APIRouter(
    prefix="/v1",
    tags=["openai"],
    responses=PROBLEMS,
    dependencies=[Depends(_mark_final)],
)

_NOT_HERE = (
    "Videos are made from an image or a prompt here; they are not remixed, edited or extended, "
    "and there are no characters. Use POST /v1/videos."
)


@router.post(
    "/videos",
    response_model=VideoView,
    openapi_extra=describe_body(VideoRequest, file="input_reference"),
)
async def create_video(
    request: Request, caller: Generator, idempotency_key: IdempotencyKey = None
) -> Response:
    """Order a video as with OpenAI, in JSON or multipart.

    `extra_body` and `extra_params` may hold any of the fields, and count before those beside them.
    """
    services = services_of(request)
    fields, files = await read_body(request, _Fields, files=("input_reference",))
    asked = as_model(VideoRequest, _unfold(fields.root))
    submitted = await accept(
        services,
        caller,
        await _order(services, asked),
        default_model=SEED_1_MODEL,
        idempotency_key=idempotency_key,
        image=files.get("input_reference"),
    )
    view = _view(services, await look(services, submitted.record))
    if asked.guidance_scale is not None:
        view["warnings"] += ["guidance_scale has no effect: every preset has its own."]
    headers = {} if submitted.is_new else {"Idempotency-Replayed": "true"}
    return json_response(view, headers=headers)


@router.get("/videos", response_model=VideoPage)
async def list_videos(
    request: Request,
    caller: Reader,
    after: Annotated[str, Query(max_length=80, description="Id of the last one before.")] = "",
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """Your videos, newest first or oldest first."""
    services = services_of(request)
    wanted = Wanted(owner=caller.owner, oldest_first=order == "asc")
    if after:
        at = await _place_in_list(services, caller, after)
        wanted = replace(wanted, **{"since" if wanted.oldest_first else "until": at})
    page = await services.lister.list(wanted, limit=limit + 2)  # `after` itself, and one more
    found = [snapshot for snapshot in page.jobs if snapshot.record.job_id != after]
    data = [_view(services, snapshot) for snapshot in found[:limit]]
    ids = [view["id"] for view in data] or [None]
    return json_response(
        {
            "object": "list",
            "data": data,
            "first_id": ids[0],
            "last_id": ids[-1],
            "has_more": len(found) > limit,
        }
    )


@router.get("/videos/{video_id}", response_model=VideoView)
async def read_video(video_id: str, request: Request, caller: Reader) -> Response:
    """A video as it is; `openai-poll-after-ms` says when to ask again."""
    services = services_of(request)
    snapshot = await own_job(services, caller, video_id)
    headers = {} if snapshot.has_ended else {"openai-poll-after-ms": str(poll_ms(snapshot.place))}
    return json_response(_view(services, snapshot), headers=headers)


@router.get(
    "/videos/{video_id}/content",
    response_class=Response,
    responses={
        200: {"description": "The bytes.", "content": {"video/mp4": {}, "image/jpeg": {}}},
        302: {"description": "The bytes are at this address, for a time."},
        **RANGES,
    },
)
async def read_content(
    video_id: str,
    request: Request,
    caller: Reader,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
) -> Response:
    """The video itself, or a still of it; answers Range.

    Where storage is a bucket, its signed address is given, which needs no key of yours.
    """
    services = services_of(request)
    if variant not in _FILES:
        raise NotImplementedHere("There are no spritesheets here; take video or thumbnail.")
    snapshot = await own_job(services, caller, video_id)
    if snapshot.status is not JobStatus.COMPLETED:
        raise JobConflict(f"The job is {snapshot.status}; only a completed one has a video.")
    key = keys.output_key(snapshot.record.job_id, _FILES[variant])
    info = await asyncio.to_thread(services.storage.head, key)
    if info is None:
        raise ObjectMissing("The video is not there any more; it has expired or was deleted.")
    if isinstance(services.storage, LocalStorage):
        return StoredFile(services.storage.path(key), media_type=info.content_type)
    seconds = services.settings.storage.download_url_seconds
    url = services.download_url(key, seconds=seconds, request=request)
    return RedirectResponse(url, status_code=302, headers={"Cache-Control": "no-store"})


@router.delete("/videos/{video_id}", response_model=VideoDeleted)
async def delete_video(video_id: str, request: Request, caller: Generator) -> Response:
    """Delete a video with everything that belongs to it; one that is being made is cancelled."""
    services = services_of(request)
    snapshot = await own_job(services, caller, video_id, fresh=True)
    await erase(services, snapshot, caller=caller)
    return json_response({"id": video_id, "deleted": True, "object": "video.deleted"})


@router.post("/videos/edits", status_code=501)
@router.post("/videos/extensions", status_code=501)
@router.post("/videos/characters", status_code=501)
async def refuse(caller: Reader) -> None:  # noqa: ARG001
    """What OpenAI has and no model here can do."""
    raise NotImplementedHere(_NOT_HERE)


@router.post("/videos/{video_id}/remix", status_code=501)
async def refuse_remix(video_id: str, caller: Reader) -> None:  # noqa: ARG001
    """What OpenAI has and no model here can do."""
    raise NotImplementedHere(_NOT_HERE)


@router.get("/videos/characters/{character_id}", status_code=501)
async def refuse_character(character_id: str, caller: Reader) -> None:  # noqa: ARG001
    """What OpenAI has and no model here can do."""
    raise NotImplementedHere(_NOT_HERE)


@router.get("/models")
async def list_models(request: Request, caller: Reader) -> ModelPage:  # noqa: ARG001
    """The models that are offered here, the default first."""
    offered = await services_of(request).deployments.offered()
    return ModelPage(data=[ModelView(id=name) for name in offered])


@router.get("/models/{model}")
async def read_model(model: str, request: Request, caller: Reader) -> ModelView:  # noqa: ARG001
    """A model that is offered here."""
    try:
        return ModelView(
            id=(await services_of(request).deployments.choose(model, SEED_1_MODEL)).model
        )
    except ModelUnavailable as exc:
        raise NotThere(exc.message) from exc


def _unfold(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with those that a form has as JSON or in brackets as objects, and extras beside.

    Raises RequestRejected.
    """
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        if found := _BRACKETS.fullmatch(name):
            inner.setdefault(found[1], {})[found[2]] = value
        else:
            values[name] = value
    values |= inner
    for name in _OBJECTS:
        if isinstance(text := values.get(name), str):
            values[name] = _object(name, text)
    for name in _EXTRAS:
        extras = values.pop(name, None) or {}
        if not isinstance(extras, dict):
            raise RequestRejected(f"{name} is no JSON object; send one, with fields in it.")
        values |= extras
    return values


def _object(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise RequestRejected(
            f'{name} is no JSON object; send a text like {{"name": "value"}}'
            + (", or a file." if name == "input_reference" else ".")
        ) from exc


async def _order(services: Services, asked: VideoRequest) -> GenerateRequest:
    """The same order in our words. Raises ModelUnavailable, RequestRejected."""
    values = asked.model_dump(include=set(GenerateRequest.model_fields), exclude_none=True)
    if asked.seconds is not None:
        values["duration"] = asked.seconds
    if asked.num_frames:
        deployment = await services.deployments.choose(asked.model, SEED_1_MODEL)
        fps = asked.fps or get_model(deployment.model).fps[0]
        values["duration"] = (asked.num_frames - 1) / fps
    if asked.size:
        values["width"], values["height"] = map(int, asked.size.split("x"))
    if asked.num_inference_steps:
        values["steps"] = asked.num_inference_steps
    if reference := asked.input_reference or asked.image_reference:
        values |= _image_of(reference)
    return as_model(GenerateRequest, values)


def _image_of(reference: Reference) -> dict[str, str]:
    if reference.image_url:
        is_data = reference.image_url.startswith("data:")
        return {"image_base64" if is_data else "image_url": reference.image_url}
    if not is_job_id(reference.file_id or ""):
        raise RequestRejected(
            "There is no file store here. Send the image itself or its URL, or upload it with "
            "POST /api/v1/presign/upload and give the job_id from there as file_id."
        )
    return {"job_id": reference.file_id or ""}


async def _place_in_list(services: Services, caller: Caller, video_id: str) -> datetime:
    """Where in the list a job stands, or stood until it was deleted. Raises JobUnknown."""
    snapshot = await services.reader.get(video_id)
    with suppress(JobDeleted):  # who deletes what is listed goes on with the next page
        owned(snapshot, caller)
    record = snapshot.record
    if created := record.labels.get(marks.CREATED):
        return datetime.fromisoformat(created)
    return record.expected_at or record.created_at


def _view(services: Services, snapshot: Snapshot) -> dict[str, Any]:
    record = snapshot.record
    view = facts(snapshot, services.settings.storage, services.estimates.eta)
    video = view["video"] or {}
    sides = [video.get(side) or record.parameters.get(side) for side in ("width", "height")]
    failed = {"code": view["error_code"], "message": view["error"]}
    return {
        "id": record.job_id,
        "object": "video",
        "model": record.model,
        "status": _STATUSES.get(snapshot.status, "failed"),
        "progress": view["progress"],
        "created_at": int(record.created_at.timestamp()),
        "completed_at": _unix(view["completed_at"]),
        "expires_at": _unix(view["expires_at"]),
        "seconds": f"{view['duration']:g}",
        "size": "x".join(map(str, sides)) if all(sides) else "auto",
        "prompt": view["prompt"],
        "remixed_from_video_id": None,
        "error": failed if view["error_code"] else None,
        "usage": {"duration_seconds": video["seconds"]} if video else None,
        "cost": view["cost"],
        "warnings": view["warnings"],
    }


def _unix(text: str | None) -> int | None:
    return int(datetime.fromisoformat(text).timestamp()) if text else None
