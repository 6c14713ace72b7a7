"""What an S3 endpoint really does: each call that storage leans on, tried on a small object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import httpx
from botocore.exceptions import ClientError

from stillreel.errors import StorageError, StorageUnavailable
from stillreel.storage_s3 import S3Storage

SECONDS = 300
_BODY, _TYPE = b"stillreel looks what this storage can do", "application/octet-stream"


@dataclass(frozen=True)
class Check:
    """One thing that was tried; without a `needed` one nothing works here."""

    name: str
    works: bool
    needed: bool = True
    note: str = ""
    """What it means that it does not work, or what was answered."""


def read_checks(storage: S3Storage) -> list[Check]:
    """What can be tried without storing anything."""
    return [_tried("list", lambda: next(storage.list("temp/"), None))]


def all_checks(storage: S3Storage, *, origin: str) -> list[Check]:
    """Everything; what is stored for it under `temp/` is deleted again.

    `origin` is the page that the browser's question is asked for. Raises StorageUnavailable when
    the endpoint does not answer.
    """
    key = f"temp/check-{uuid4().hex}"
    try:
        return list(_checks(storage, key, origin))
    except httpx.HTTPError as exc:
        raise StorageUnavailable(
            f"Storage does not answer at a signed URL ({type(exc).__name__}); a later try may "
            "succeed."
        ) from exc
    finally:
        for name in (key, f"{key}-parts", f"{key}-signed"):
            with suppress(StorageError):  # the rule for temp/ takes it
                storage.delete(name)


def _checks(storage: S3Storage, key: str, origin: str) -> Iterator[Check]:
    yield _tried("put", lambda: storage.put_bytes(key, _BODY, content_type=_TYPE))
    yield _tried("get", lambda: _expect(storage.get_bytes(key) == _BODY, "other bytes came back"))
    yield _tried("head", lambda: _expect(_type_of(storage, key) == _TYPE, "the type was lost"))
    yield _tried("list", lambda: _expect(any(storage.list(key)), "a new object is not listed"))
    yield _tried("upload in parts", lambda: _put_parts(storage, f"{key}-parts"))
    yield _conditional(storage, key)
    yield from _signed(storage, f"{key}-signed", origin)
    yield _tried("delete", lambda: _deleted(storage, key))


def _signed(storage: S3Storage, key: str, origin: str) -> Iterator[Check]:
    url = storage.upload_url(key, content_type=_TYPE, size=len(_BODY), seconds=SECONDS)
    with httpx.Client(timeout=30) as http:
        answers = {
            "type": http.put(url, content=_BODY, headers={"Content-Type": "text/html"}),
            "length": http.put(url, content=_BODY + b"x", headers={"Content-Type": _TYPE}),
            "right": http.put(url, content=_BODY, headers={"Content-Type": _TYPE}),
        }
        right = answers["right"]
        yield Check("signed upload", right.is_success, note=_status(right))
        for what, name in (("type", "content type"), ("length", "length")):
            refused = answers[what].is_client_error
            note = "" if refused else "not held to what was signed; jobs check the image anyway"
            yield Check(f"signed upload binds its {name}", refused, needed=False, note=note)
        got = http.get(storage.download_url(key, seconds=SECONDS))
        yield Check("signed download", got.is_success and got.content == _BODY, note=_status(got))
        part = http.get(storage.download_url(key, seconds=SECONDS), headers={"Range": "bytes=1-3"})
        yield Check(
            "part of an object (seeking in a video)",
            part.status_code == 206 and part.content == _BODY[1:4],
            needed=False,
            note="" if part.status_code == 206 else _status(part),
        )
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "content-type",
        }
        allowed = http.options(url, headers=asked).headers.get("access-control-allow-origin")
        ok = allowed in ("*", origin)
        note = "" if ok else f"pages of {origin} cannot upload by themselves; see CORS"
        yield Check("upload from a browser", ok, needed=False, note=note)


def _conditional(storage: S3Storage, key: str) -> Check:
    name, missing = "put only where nothing is", "not used today: names of objects are the job's"
    try:
        storage.client.put_object(
            Bucket=storage.bucket.name, Key=key, Body=b"other", IfNoneMatch="*"
        )
    except ClientError as exc:
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        works = status == 412
        return Check(name, works, needed=False, note="" if works else missing)
    return Check(name, works=False, needed=False, note=f"overwrote it; {missing}")


def _put_parts(storage: S3Storage, key: str) -> None:
    target = {"Bucket": storage.bucket.name, "Key": key}
    with storage.errors(key):
        upload = storage.client.create_multipart_upload(**target, ContentType=_TYPE)["UploadId"]
        part = storage.client.upload_part(**target, UploadId=upload, PartNumber=1, Body=_BODY)
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        storage.client.complete_multipart_upload(**target, UploadId=upload, MultipartUpload=parts)
    _expect(storage.get_bytes(key) == _BODY, "other bytes came back")


def _type_of(storage: S3Storage, key: str) -> str:
    info = storage.head(key)
    return info.content_type if info else ""


def _deleted(storage: S3Storage, key: str) -> None:
    storage.delete(key)
    _expect(storage.head(key) is None, "the object is still there")


def _expect(ok: bool, otherwise: str) -> None:
    if not ok:
        raise StorageError(otherwise)


def _tried(name: str, call: Callable[[], object]) -> Check:
    try:
        call()
    except StorageUnavailable:
        raise
    except StorageError as exc:
        return Check(name, works=False, note=exc.message)
    return Check(name, works=True)


def _status(answer: httpx.Response) -> str:
    return "" if answer.is_success else f"answered {answer.status_code}"
