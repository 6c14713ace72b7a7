"""Storage of a rented host: no bucket keys, but signed URLs for the objects of its own job.

Each call asks the API by the lease's token, and bytes go straight to storage. What is stored is
looked at by the API before it counts (docs/security.md, "Storage of rented hosts").
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import httpx
import stamina
from pydantic import SecretStr

from stillreel.errors import (
    ObjectMissing,
    RequestRejected,
    ResultRefused,
    StaleExecution,
    StillreelError,
    StorageRefused,
    StorageUnavailable,
)
from stillreel.gateway.access import BY_UPLOAD, SMALL_BYTES
from stillreel.storage import (
    BYTES_LIMIT,
    ObjectInfo,
    checked_key,
    checked_prefix,
    checked_seconds,
    checked_size,
    replacing,
)

CHUNK = 256 * 1024
LOOKS = 60
"""How often it is asked whether the API has looked at an object; each time it waits itself."""
_SECONDS = httpx.Timeout(60.0, connect=10.0)
_PASSED_ON: tuple[type[StillreelError], ...] = (
    ObjectMissing,
    RequestRejected,
    ResultRefused,
    StaleExecution,
)
"""Errors of the API that mean the same here."""

_T = TypeVar("_T")


class LeaseStorage:
    """The objects of one run, by the lease's token; `attempts` bounds the tries of each request."""

    def __init__(self, url: str, token: SecretStr, run_id: str, *, attempts: int = 4) -> None:
        self._url = f"{url.rstrip('/')}/storage/{run_id}"
        self._token = token
        self.attempts = attempts

    def __repr__(self) -> str:
        return f"LeaseStorage({self._url!r})"

    def put_file(self, key: str, path: Path, *, content_type: str) -> ObjectInfo:
        checked_key(key)
        with path.open("rb") as file:
            size = path.stat().st_size
            if size <= SMALL_BYTES and content_type not in BY_UPLOAD:
                return self._put_small(key, file.read(SMALL_BYTES + 1), content_type)
            return self._retrying(lambda: self._upload(key, file, size, content_type))

    def put_bytes(self, key: str, data: bytes, *, content_type: str) -> ObjectInfo:
        from io import BytesIO

        checked_key(key)
        if len(data) <= SMALL_BYTES and content_type not in BY_UPLOAD:
            return self._put_small(key, data, content_type)
        return self._retrying(lambda: self._upload(key, BytesIO(data), len(data), content_type))

    def get_file(self, key: str, path: Path) -> None:
        checked_key(key)

        def fetch() -> None:
            url = self._find(key)["url"]  # before anything is written
            with replacing(path) as file, self._opened(key, url) as response:
                for chunk in response.iter_bytes(CHUNK):
                    file.write(chunk)

        self._retrying(fetch)

    def get_bytes(self, key: str, *, limit: int = BYTES_LIMIT) -> bytes:
        checked_key(key)

        def fetch() -> bytes:
            data = bytearray()
            with self._opened(key, self._find(key)["url"]) as response:
                for chunk in response.iter_bytes(CHUNK):
                    data.extend(chunk)
                    if len(data) > limit:
                        break
            return checked_size(key, bytes(data), limit)

        return self._retrying(fetch)

    def head(self, key: str) -> ObjectInfo | None:
        checked_key(key)
        try:
            return self._retrying(lambda: _info(self._find(key)))
        except ObjectMissing:
            return None

    def delete(self, key: str) -> None:
        checked_key(key)
        self._retrying(lambda: self._ask("DELETE", "/object", params={"key": key}))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        params = {"prefix": checked_prefix(prefix)}
        return self._listed(params)

    def upload_url(self, key: str, *, content_type: str, size: int | None, seconds: int) -> str:  # noqa: ARG002
        """Raises StorageRefused: what a rented host may store it stores itself."""
        checked_key(key)
        checked_seconds(seconds)
        raise StorageRefused(
            f"A rented host hands out no address to store {content_type} under; store it yourself."
        )

    def download_url(self, key: str, *, seconds: int) -> str:
        """As the port says, for no longer than the API lets a rented host have one."""
        params = {"key": checked_key(key), "seconds": str(checked_seconds(seconds))}
        return str(self._retrying(lambda: self._ask("GET", "/link", params=params))["url"])

    @cached_property
    def _client(self) -> httpx.Client:
        client = httpx.Client(timeout=_SECONDS, follow_redirects=False)
        weakref.finalize(self, client.close)  # a storage is never closed
        return client

    def _listed(self, params: Mapping[str, str]) -> Iterator[ObjectInfo]:
        told = self._retrying(lambda: self._ask("GET", "/objects", params=params))
        yield from map(_info, told["objects"])

    def _find(self, key: str) -> dict[str, Any]:
        return self._ask("GET", "/object", params={"key": key})

    def _put_small(self, key: str, data: bytes, content_type: str) -> ObjectInfo:
        headers = {"Content-Type": content_type}
        told = self._retrying(
            lambda: self._ask("PUT", "/object", params={"key": key}, content=data, headers=headers)
        )
        return _info(told)

    def _upload(self, key: str, file: BinaryIO, size: int, content_type: str) -> ObjectInfo:
        order = {"key": key, "content_type": content_type, "size": size}
        allowed = self._ask("POST", "/uploads", json=order)
        if "key" in allowed:  # the job is completed: nothing of it is changed any more
            return _info(allowed)
        file.seek(0)
        for part in allowed["parts"]:
            self._put_part(key, part, file)
        done = {"upload": allowed["upload"]}
        for _ in range(LOOKS):
            told = self._ask("POST", "/uploads/done", json=done)
            if "key" in told:
                return _info(told)
        raise StorageUnavailable("The API does not come to look at what was sent; send it again.")

    def _put_part(self, key: str, part: Mapping[str, Any], file: BinaryIO) -> None:
        size = int(part["size"])
        headers = {**part["headers"], "Content-Length": str(size)}
        with _errors():
            answer = self._client.put(part["url"], content=_slice(file, size), headers=headers)
        if answer.status_code != 412:  # it is there already: an answer was lost
            _check(answer, key)

    @contextmanager
    def _opened(self, key: str, url: str) -> Iterator[httpx.Response]:
        with _errors(), self._client.stream("GET", url) as response:
            if response.status_code == 404:
                raise ObjectMissing(f"There is no object {key}; it was removed just now.")
            _check(response, key)
            yield response

    def _ask(self, method: str, path: str, **what: Any) -> dict[str, Any]:
        """The API's answer. Raises what it says, StorageUnavailable, StorageRefused."""
        bearer = {"Authorization": f"Bearer {self._token.get_secret_value()}"}
        headers = bearer | what.pop("headers", {})
        with _errors():
            answer = self._client.request(method, self._url + path, headers=headers, **what)
            told = answer.json() if answer.content else {}
        if answer.is_success:
            return told
        code, detail = str(told.get("code") or ""), str(told.get("detail") or "")[:500]
        for error in _PASSED_ON:
            if error.code == code:
                raise error(detail)
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise StorageUnavailable(f"The API answers {answer.status_code}; try again later.")
        raise StorageRefused(f"The API refuses ({code or answer.status_code}): {detail}")

    def _retrying(self, work: Callable[[], _T]) -> _T:
        for attempt in stamina.retry_context(
            on=StorageUnavailable, attempts=self.attempts, wait_initial=0.5, wait_max=10
        ):
            with attempt:
                return work()
        raise AssertionError  # the last attempt raises


def _slice(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (chunk := file.read(min(size, CHUNK))):
        size -= len(chunk)
        yield chunk


def _check(answer: httpx.Response, key: str) -> None:
    """Raises for an answer of storage that is no success."""
    status = answer.status_code
    if answer.is_success:
        return
    if status >= 500 or status in (401, 403, 408, 409, 429):  # an old URL is made anew
        raise StorageUnavailable(f"Storage answers {status} for {key}; a later try may succeed.")
    raise StorageRefused(f"Storage refuses {key} ({status}).")


def _info(told: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        key=str(told["key"]),
        size=int(told["size"]),
        etag=str(told["etag"]),
        content_type=str(told["content_type"]),
        modified=datetime.fromisoformat(told["modified"]),
    )


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as exc:
        raise StorageUnavailable(
            f"Storage cannot be reached through the API ({type(exc).__name__}); a later try may "
            "succeed."
        ) from exc
