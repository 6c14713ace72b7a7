"""What each method of a client does, as steps: it asks for calls, and is given their responses.

Nothing here does any I/O on the network, so the client that blocks and the one that does not
share all of it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar
from uuid import uuid4

import httpx

from stillreel.client.answers import (
    Answer,
    Batch,
    BatchAnswer,
    Estimate,
    Job,
    JobPage,
    Looks,
    ModelInfo,
    ModelList,
    Redelivery,
    Upload,
    Usage,
    parse,
    path_of,
)
from stillreel.client.calls import Call
from stillreel.client.failures import ApiFailure
from stillreel.client.files import LocalImage, open_image
from stillreel.errors import JobDeleted, RequestRejected
from stillreel.job import JobStatus, Priority

T = TypeVar("T")
A = TypeVar("A", bound=Answer)
Steps: TypeAlias = Generator[Call, httpx.Response, T]
Image: TypeAlias = Path | str | bytes | Upload | None
"""A file, its path, its bytes, an http(s) or data: URL, or what `upload` gave."""

INLINE_BYTES = 8_000_000
"""A larger image is put into storage first; smaller ones travel with their order."""
BODY_BYTES = 24_000_000
"""What an API takes in one body, unless its operator changed that."""
PAGE = 100


class Options(TypedDict, total=False):
    """How a video is made; what is left out is the model's own choice."""

    model: str | None
    preset: str | None
    negative_prompt: str | None
    style: str | None
    camera: str | None
    duration: float | None
    width: int | None
    height: int | None
    fps: int | None
    seed: int | None
    steps: int | None
    audio: bool | None
    codec: Literal["h264", "av1"] | None
    quality: Literal["standard", "high"] | None
    reuse: bool | None
    embed_prompt: bool | None
    webhook_url: str | None
    priority: Priority | None
    deadline: datetime | str | None


class Item(Options, total=False):
    """One video of a batch."""

    prompt: str
    image: Image


class Filters(TypedDict, total=False):
    """Which jobs are listed."""

    status: JobStatus | str | Sequence[JobStatus | str] | None
    model: str | None
    batch_id: str | None
    created_after: datetime | str | None
    created_before: datetime | str | None
    q: str | None
    """Text in the prompt."""
    owner: str | None
    """For admins."""


def submit(prompt: str, image: Image, key: str | None, options: Mapping[str, Any]) -> Steps[Job]:
    fields = _fields({"prompt": prompt or None, **options})
    inline = yield from _attach(fields, image, BODY_BYTES if key else INLINE_BYTES, key)
    headers = {"Idempotency-Key": key or str(uuid4())}
    if inline is None:
        call = Call("POST", "/api/v1/generate", json=fields, headers=headers)
    else:
        form = {name: _form_text(value) for name, value in fields.items()}
        files = {"image": ("image", inline.read(), inline.content_type)}
        call = Call("POST", "/api/v1/generate", form=form, files=files, headers=headers)
    return (yield from _ask(Job, call))


def submit_batch(
    items: Sequence[Item], key: str | None, defaults: Mapping[str, Any]
) -> Steps[BatchAnswer]:
    room = BODY_BYTES if key else INLINE_BYTES
    values: list[dict[str, Any]] = []
    files: dict[str, tuple[str, bytes, str]] = {}
    for n, item in enumerate(items):
        fields = _fields({name: value for name, value in item.items() if name != "image"})
        inline = yield from _attach(fields, item.get("image"), room, key)
        if inline is not None:
            room -= inline.size
            files[f"image_{n}"] = ("image", inline.read(), inline.content_type)
        values.append(fields)
    headers = {"Idempotency-Key": key or str(uuid4())}
    body = {"items": values} | ({"defaults": _fields(defaults)} if defaults else {})
    if files:
        form = {name: json.dumps(value) for name, value in body.items()}
        call = Call("POST", "/api/v1/batches", form=form, files=files, headers=headers)
    else:
        call = Call("POST", "/api/v1/batches", json=body, headers=headers)
    return (yield from _ask(BatchAnswer, call))


def upload(image: Path | str | bytes) -> Steps[Upload]:
    return (yield from _upload(open_image(image)))


def page(filters: Mapping[str, Any], limit: int, cursor: str | None) -> Steps[JobPage]:
    params = _fields(filters) | {"limit": limit} | ({"cursor": cursor} if cursor else {})
    return (yield from _ask(JobPage, Call("GET", "/api/v1/jobs", params=params)))


def get(job_id: str) -> Steps[Job]:
    return (yield from _ask(Job, Call("GET", path_of(job_id))))


def cancel(job_id: str) -> Steps[Job]:
    return (yield from _ask(Job, Call("POST", f"{path_of(job_id)}/cancel")))


def retry(job_id: str) -> Steps[Job]:
    # Not repeated where it may have been done: the round that it opened may be over already.
    return (yield from _ask(Job, Call("POST", f"{path_of(job_id)}/retry", repeatable=False)))


def redeliver(job_id: str) -> Steps[Redelivery]:
    return (yield from _ask(Redelivery, Call("POST", f"{path_of(job_id)}/redeliver")))


def delete(job_id: str) -> Steps[bool]:
    try:
        response = yield Call("DELETE", path_of(job_id))
    except JobDeleted:  # by an earlier call, or by this one at a try whose answer was lost
        return True
    return response.status_code != httpx.codes.ACCEPTED


def batch(batch_id: str, cursor: str | None) -> Steps[Batch]:
    path = path_of(batch_id, "batches")
    return (yield from _ask(Batch, Call("GET", path, params={"cursor": cursor})))


def cancel_batch(batch_id: str) -> Steps[Batch]:
    return (yield from _ask(Batch, Call("POST", f"{path_of(batch_id, 'batches')}/cancel")))


def usage(
    first: date | str | None, last: date | str | None, group_by: Sequence[str], owner: str | None
) -> Steps[Usage]:
    names = None if not group_by else ",".join(group_by)
    params = {"from": first, "to": last, "group_by": names, "owner": owner}
    return (yield from _ask(Usage, Call("GET", "/api/v1/usage", params=_fields(params))))


def models() -> Steps[tuple[ModelInfo, ...]]:
    return (yield from _ask(ModelList, Call("GET", "/api/v1/models"))).models


def styles() -> Steps[Looks]:
    return (yield from _ask(Looks, Call("GET", "/api/v1/styles")))


def estimate(values: Mapping[str, Any]) -> Steps[Estimate]:
    call = Call("POST", "/api/v1/estimate", json=_fields(values))
    return (yield from _ask(Estimate, call))


def _ask(model: type[A], call: Call) -> Steps[A]:
    return parse(model, _json((yield call)))


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as exc:
        kind = response.headers.get("content-type") or "nothing"
        raise ApiFailure.about(
            f"{response.url.host} answered {kind} instead of JSON; is that the address of a "
            "stillreel API?"
        ) from exc


def _attach(
    fields: dict[str, Any], image: Image, room: int, key: str | None
) -> Steps[LocalImage | None]:
    """Put an image's address or id into `fields`; an image that is to go along is returned."""
    match image:
        case None:
            return None
        case Upload():
            fields["job_id"] = image.job_id
            return None
        case str() if image.startswith(("http://", "https://")):
            fields["image_url"] = image
            return None
        case str() if image.startswith("data:"):
            fields["image_base64"] = image
            return None
    local = open_image(image)
    if local.size <= room:
        return local
    if key:  # each upload has an id of its own, so the key would not find the job again
        raise RequestRejected(
            f"With an idempotency_key of your own, images of {BODY_BYTES:,} bytes at most are "
            "sent; keep what upload() gives for a larger one, and submit that each time."
        )
    fields["job_id"] = (yield from _upload(local)).job_id
    return None


def _upload(image: LocalImage) -> Steps[Upload]:
    wanted = {"content_type": image.content_type, "content_length": image.size}
    target = _json((yield Call("POST", "/api/v1/presign/upload", json=wanted)))
    made = parse(Upload, target)
    headers = {"Content-Type": image.content_type}
    yield Call("PUT", target["upload_url"], content=image.read(), headers=headers)
    return made


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as JSON data, without those that are None."""
    return {
        name: value.isoformat() if isinstance(value, date) else value
        for name, value in values.items()
        if value is not None
    }


def _form_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
