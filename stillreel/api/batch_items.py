"""Reads the items of a batch from a request: JSON, or a form with many images."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, field_validator
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from stillreel.api import schemas
from stillreel.api.bodies import as_model, read_body
from stillreel.api.schemas import GenerateRequest
from stillreel.api.services import services_of
from stillreel.errors import RequestRejected

_IMAGES = ("image_url", "image_base64", "job_id")
_FILE = re.compile(r"image(?:_(\d{1,4})|\[(\d{1,4})\])")


class BatchRequest(schemas.Request):
    """Many orders; what `defaults` says holds for each that does not say otherwise."""

    items: list[Any] = Field(min_length=1)
    defaults: GenerateRequest = Field(default_factory=lambda: as_model(GenerateRequest, {}))

    @field_validator("defaults")
    @classmethod
    def _small(cls, value: GenerateRequest) -> GenerateRequest:
        if value.image_base64 or value.job_id:
            raise ValueError(
                "image_base64 and job_id go with each item; many may share an image_url"
            )
        return value


@dataclass(frozen=True)
class Item:
    """One order of a batch as it was sent, with the defaults filled in."""

    index: int
    values: Any
    image: bytes | None

    def order(self) -> GenerateRequest:
        """The order. Raises RequestValidationError that names its place in the batch."""
        try:
            return as_model(GenerateRequest, self.values)
        except RequestValidationError as exc:
            place = ("body", "items", self.index)
            errors = [{**error, "loc": (*place, *error["loc"][1:])} for error in exc.errors()]
            body = {"items": {self.index: self.values}}
            raise RequestValidationError(errors, body=body) from exc


async def read_items(request: Request) -> list[Item]:
    """The items of a batch, each still to be checked.

    Raises RequestRejected and RequestValidationError for what concerns all of them.
    """
    settings = services_of(request).settings.api
    most = settings.batch_max
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        values, images = await _read_form(request, most, settings.body_max_bytes)
    else:
        values, images = (await read_body(request, BatchRequest))[0], {}
    if len(values.items) > most:
        raise RequestRejected(
            f"A batch has {most} items at most, and this one has {len(values.items)}; send several."
        )
    if images and max(images) >= len(values.items):
        raise RequestRejected(
            f"There is a file image_{max(images)} but no such item; the {len(values.items)} items "
            f"begin with image_0."
        )
    if values.defaults.job_id:
        raise RequestRejected("A job_id is good for one item; it cannot be among the defaults.")
    defaults = values.defaults.model_dump(mode="json", exclude_none=True)
    return [
        Item(n, _filled(item, defaults, has_file=n in images), images.get(n))
        for n, item in enumerate(values.items)
    ]


async def _read_form(
    request: Request, most: int, size: int
) -> tuple[BatchRequest, dict[int, bytes]]:
    values: dict[str, Any] = {}
    images: dict[int, bytes] = {}
    try:
        form = await request.form(max_files=most, max_fields=2, max_part_size=size)
    except MultiPartException as exc:
        raise RequestRejected(f"The multipart body cannot be read: {exc.message}") from exc
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                images[_place(name)] = await value.read()
            elif name in ("items", "defaults"):
                values[name] = _json(name, value)
            else:
                raise RequestRejected(
                    f"The field {name[:40]!r} is not known; send items, defaults and files."
                )
    finally:
        await form.close()
    if images:
        values.setdefault("items", [{} for _ in range(min(max(images), most) + 1)])
    return as_model(BatchRequest, values), images


def _place(name: str) -> int:
    found = _FILE.fullmatch(name)
    if not found:
        raise RequestRejected(
            f"The file field {name[:40]!r} is not known; image_0 is that of the first item."
        )
    return int(found[1] or found[2])


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise RequestRejected(f"The field {name} is not valid JSON.") from exc


def _filled(item: Any, defaults: Mapping[str, Any], *, has_file: bool) -> Any:
    """An item with the defaults that it does not overrule; its own image does so for any."""
    if not isinstance(item, Mapping):
        return item
    given = {k: v for k, v in cast("Mapping[str, Any]", item).items() if v is not None}
    has_image = has_file or any(given.get(name) for name in _IMAGES)
    return {k: v for k, v in defaults.items() if not (has_image and k in _IMAGES)} | given
