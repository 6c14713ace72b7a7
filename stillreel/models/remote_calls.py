"""Calls to the operator's remote server: bounded, its key for itself alone, errors in our words."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from stillreel.errors import (
    AddressRefused,
    ContentRefused,
    RemoteAccountRefused,
    RemoteError,
    RemoteRefused,
    RemoteUnavailable,
    StillreelError,
)
from stillreel.guard import EVERYWHERE, MAX_REDIRECTS, guarded_client
from stillreel.safety import clean_reason
from stillreel.settings import InferenceSettings

CALL_SECONDS = 60.0
DOWNLOAD_SECONDS = 900.0
TICK_SECONDS = 0.5
ANSWER_LIMIT = 10_000_000
"""Bytes; Replicate gives the whole input back with each answer."""
LONGEST_WAIT = 300.0
"""Seconds; a server that asks for a longer pause is asked again after this."""

Tick = Callable[[], None]
File = tuple[str, tuple[str | None, str | bytes] | tuple[str | None, str | bytes, str]]
T = TypeVar("T")

_REFUSAL = re.compile(r"moderat|content.?polic|sensitive|nsfw|safety|\(E005\)", re.IGNORECASE)
_INNER = (
    (re.compile(r"\b\w+://\S+|\bdata:\S+"), "(address)"),
    (
        re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\[[0-9a-fA-F:]{2,}\](?::\d+)?"),
        "(address)",
    ),
    (re.compile(r"(?<![\w.])/(?:[\w.@-]+/)+[\w.@-]*"), "(path)"),
)


@dataclass(frozen=True)
class Answer:
    """What the server said; `body` is None where that is no JSON."""

    status: int
    headers: httpx.Headers
    body: Any

    @property
    def wait_seconds(self) -> float | None:
        """How long it asks to wait, in seconds."""
        return wait_seconds(self.headers)


class Calls:
    """Calls to the server of these settings; each has a connection and a deadline of its own."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._base = httpx.URL(f"{settings.remote_url}/")
        self._key = settings.remote_key.get_secret_value()
        self._allow = settings.remote_allow_addresses
        self._limit = settings.remote_max_bytes

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        files: Sequence[File] | None = None,
        headers: Mapping[str, str] = {},
        seconds: float = CALL_SECONDS,
    ) -> Answer:
        """The answer to one call, if it is a good one.

        Raises RemoteUnavailable, RemoteRefused, RemoteAccountRefused, ContentRefused.
        """
        try:
            async with (
                asyncio.timeout(seconds),
                guarded_client(EVERYWHERE) as client,
                client.stream(
                    method,
                    self._base.join(path),
                    json=body,
                    files=files,
                    headers={**self._headers(own=True), **headers},
                ) as response,
            ):
                answer = _answer(response, await _read(response, ANSWER_LIMIT))
        except (AddressRefused, httpx.ConnectError, httpx.ConnectTimeout) as exc:
            error = RemoteUnavailable("The remote video server cannot be reached now.")
            error.sent = False
            raise error from exc
        except (TimeoutError, httpx.HTTPError, OSError) as exc:
            raise RemoteUnavailable(
                "The connection to the remote video server was lost before it answered."
            ) from exc
        if not 200 <= answer.status < 300:
            raise self.refusal(answer)
        return answer

    async def download(self, place: str) -> bytes:
        """The bytes at `place`: a path of the server, any address that it named, or a data: URL.

        Another origin never gets the key, and is called only where it is public or allowed by the
        settings. Raises what `ask` raises, and RemoteError where the operator has to act.
        """
        if place.startswith("data:"):
            return _inline(place, self._limit)
        try:
            async with asyncio.timeout(DOWNLOAD_SECONDS):
                return await self._follow(self._base.join(place))
        except httpx.InvalidURL as exc:
            raise RemoteError("The remote server names no address of its video.") from exc
        except AddressRefused as exc:
            raise RemoteError(
                "The remote server keeps its video at an address that is not public. Name it in "
                "STILLREEL_REMOTE_ALLOW_ADDRESSES, then try the job again: it is not paid twice."
            ) from exc
        except (TimeoutError, httpx.HTTPError, OSError) as exc:
            raise RemoteUnavailable(
                "The video did not come over whole from the remote server."
            ) from exc

    async def _follow(self, target: httpx.URL) -> bytes:
        own = True
        for _ in range(MAX_REDIRECTS + 1):
            own = own and _origin(target) == _origin(self._base)
            async with (
                guarded_client(EVERYWHERE if own else self._allow) as client,
                client.stream("GET", target, headers=self._headers(own=own)) as response,
            ):
                if response.is_redirect and "location" in response.headers:
                    target = target.join(response.headers["location"])
                    continue
                if response.status_code == 200:
                    return await _read(response, self._limit)
                answer = _answer(response, await _read(response, ANSWER_LIMIT))
                if not own and answer.status in (401, 403, 404, 410):
                    raise _refused(answer.status, str(answer.status))  # a signed address that ended
                raise self.refusal(answer)
        raise RemoteError("The remote server sends us from one address of its video to another.")

    def refusal(self, answer: Answer) -> StillreelError:
        """The error of our tree for an answer that is no good one."""
        code, message = said(answer.body)
        reason = self.clean(message)
        status = answer.status
        told = f"{status}: {reason}" if reason else str(status)
        if status in (400, 403, 422) and is_refusal(code, message):
            return ContentRefused(f"The remote video server refuses this content ({told}).")
        if status in (401, 402, 403) or (status == 429 and code == "insufficient_quota"):
            return RemoteAccountRefused(
                f"The remote video server refuses our account ({told}). Check "
                "STILLREEL_REMOTE_KEY, and the rights and the credit of that account."
            )
        if status in (408, 425, 429) or status >= 500:
            error = RemoteUnavailable(f"The remote video server cannot do it now ({told}).")
            error.status, error.retry_after = status, answer.wait_seconds
            return error
        return _refused(status, told)

    def clean(self, text: object) -> str:
        """What the server says, as a caller may read it: short, without secrets and addresses."""
        found = text if isinstance(text, str) else ""
        if self._key:
            found = found.replace(self._key, "(key)")
        for pattern, instead in _INNER:
            found = pattern.sub(instead, found[:20_000])
        return clean_reason(found)

    def _headers(self, *, own: bool) -> dict[str, str]:
        plain = {"Accept-Encoding": "identity"}
        return {**plain, "Authorization": f"Bearer {self._key}"} if own and self._key else plain


async def attended(work: Coroutine[Any, Any, T], tick: Tick) -> T:
    """The result of `work`; `tick` is called all the time, and what it raises ends the work."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=TICK_SECONDS))[0]:
            tick()
        return task.result()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


def said(body: Any) -> tuple[str, str]:
    """Code and message in the body of an error, in any of the usual forms; empty where not."""
    if not isinstance(body, dict):
        return "", ""
    error = body.get("error")
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or ""), str(error.get("message") or "")
    detail = body.get("detail")
    if isinstance(detail, list):
        parts = [d for d in detail if isinstance(d, dict)]
        places = (".".join(map(str, d.get("loc") or ())) for d in parts)
        detail = "; ".join(
            f"{place}: {d.get('msg')}" for place, d in zip(places, parts, strict=True)
        )
    texts = (error, detail, body.get("message"), body.get("title"))
    return str(body.get("code") or ""), next((t for t in texts if isinstance(t, str) and t), "")


def is_refusal(code: str, message: str) -> bool:
    """Whether an error of a server means the content, not the order."""
    return bool(_REFUSAL.search(code) or _REFUSAL.search(message))


def wait_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds by openai-poll-after-ms, retry-after-ms or Retry-After; None where none is usable."""
    for name in ("openai-poll-after-ms", "retry-after-ms"):
        if (text := headers.get(name, "")).isdecimal():
            return min(int(text) / 1000, LONGEST_WAIT)
    text = headers.get("retry-after", "").strip()
    with suppress(ValueError, TypeError):
        seconds = (
            float(int(text))
            if text.isdecimal()
            else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        )
        return min(max(0.0, seconds), LONGEST_WAIT)
    return None


def _refused(status: int, told: str) -> RemoteRefused:
    error = RemoteRefused(f"The remote video server refuses this order ({told}).")
    error.status = status
    return error


def _answer(response: httpx.Response, raw: bytes) -> Answer:
    body = None
    with suppress(ValueError, RecursionError):
        body = json.loads(raw)
    return Answer(response.status_code, response.headers, body)


async def _read(response: httpx.Response, limit: int) -> bytes:
    stated = response.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _inline(text: str, limit: int) -> bytes:
    head, _, data = text.partition(",")
    if len(data) > limit * 4 // 3 + 4:
        raise _too_large(limit)
    try:
        return b64decode(data, validate=True) if head.endswith(";base64") else data.encode()
    except (Base64Error, ValueError) as exc:
        raise RemoteError(
            "The remote server gives its video in a form that we cannot read."
        ) from exc


def _too_large(limit: int) -> RemoteError:
    return RemoteError(
        f"The remote server sends more than {limit:,} bytes. Raise STILLREEL_REMOTE_MAX_BYTES, "
        "then try the job again: it is not paid twice."
    )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)
