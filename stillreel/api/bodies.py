"""Reads the order of a video from a request: JSON or multipart."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from stillreel.api.services import services_of
from stillreel.errors import BodyTooLarge, ImageRejected, RequestRejected

M = TypeVar("M", bound=BaseModel)

FIELDS_LIMIT, FILES_LIMIT = 60, 4
SMALL_BYTES = 64_000
VALUES_LIMIT = 500_000
"""Fields and items in one body; to parse more, everybody else would wait for seconds."""
_JSON = "application/json"


async def read_body(
    request: Request, model: type[M], *, files: tuple[str, ...] = ()
) -> tuple[M, dict[str, bytes]]:
    """The body as a `model`, and the files of a multipart one whose names are in `files`.

    Raises RequestValidationError naming each wrong field, RequestRejected for what is no JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        values, found = await _read_form(request, files)
        return as_model(model, values), found
    return as_model(model, _object(await request.body())), {}


async def read_small_body(request: Request, model: type[M]) -> M:
    """The body of somebody unknown as a `model`: nothing large is taken in or parsed.

    Raises BodyTooLarge, and what `read_body` raises.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > SMALL_BYTES:
            raise BodyTooLarge(f"At most {SMALL_BYTES:,} bytes are taken here; send what is asked.")
    return as_model(model, _object(bytes(raw)))


def as_model(model: type[M], values: Any) -> M:
    """`values` as a `model`.

    Raises RequestValidationError, and RequestRejected for more fields than can be named one by one.
    """
    if isinstance(values, Mapping) and len(cast("Mapping[str, Any]", values)) > FIELDS_LIMIT:
        raise RequestRejected(f"There are more than {FIELDS_LIMIT} fields; send only known ones.")
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**error, "loc": ("body", *error["loc"])} for error in errors], body=values
        ) from exc


def decode_image(text: str) -> bytes:
    """The bytes of an image sent as base64 or as a data: URL. Raises ImageRejected."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ImageRejected("The data: URL is not base64; write data:image/png;base64,...")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ImageRejected(
            "image_base64 is not base64; send the file's bytes in base64, or use image_url."
        ) from exc


def describe_body(model: type[BaseModel], *, file: str = "") -> dict[str, Any]:
    """The OpenAPI of a body that is read by `read_body`: JSON, or a form with one file more."""
    schema = model.model_json_schema()
    if not file:
        return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}
    binary = {"type": "string", "format": "binary"}
    form = schema | {"properties": schema["properties"] | {file: binary}}
    content = {_JSON: {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def name_bodies(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with each JSON body as a schema of its own, which others refer to."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for operations in document.get("paths", {}).values():
        for operation in operations.values():
            body = operation.get("requestBody", {}).get("content", {}).get(_JSON, {})
            if name := body.get("schema", {}).get("title"):
                schemas[name] = body["schema"]
                operation["requestBody"]["content"][_JSON] = body | {"schema": _reference(name)}
    return document


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body, whatever its Content-Type: `curl -d` calls it a form."""
    if not raw.strip():
        raise RequestRejected("The request has no body; send a JSON object.")
    if raw.count(b":") + raw.count(b",") > VALUES_LIMIT:
        raise RequestRejected(
            f"The body has more than {VALUES_LIMIT:,} fields and items; send only known fields."
        )
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        where = _place(exc)
        raise RequestRejected(
            f"The body is not valid JSON{where}; send a JSON object, or a form as "
            "multipart/form-data."
        ) from exc
    if not isinstance(found, dict):
        raise RequestRejected("The body is JSON but no object; send a JSON object, {...}.")
    return cast("dict[str, Any]", found)


def _place(exc: Exception) -> str:
    if not isinstance(exc, json.JSONDecodeError):
        return ""
    return f" (line {exc.lineno}, column {exc.colno})"


async def _read_form(
    request: Request, files: tuple[str, ...]
) -> tuple[Mapping[str, Any], dict[str, bytes]]:
    size = services_of(request).settings.api.body_max_bytes
    try:
        form = await request.form(
            max_fields=FIELDS_LIMIT, max_files=FILES_LIMIT, max_part_size=size
        )
    except MultiPartException as exc:
        raise RequestRejected(f"The multipart body cannot be read: {exc.message}") from exc
    values: dict[str, Any] = {}
    found: dict[str, bytes] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in files:
                    raise RequestRejected(
                        f"The file field {name[:40]!r} is not known; use {' or '.join(files)}."
                    )
                found[name] = await value.read()
            elif value:
                values[name] = value
    finally:
        await form.close()
    return values, found
