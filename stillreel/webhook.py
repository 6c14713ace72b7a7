"""The message about an ended job: built, signed by Standard Webhooks, delivered once per call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from stillreel.errors import (
    AddressRefused,
    ReceiverRefused,
    ReceiverUnavailable,
    SettingsInvalid,
)
from stillreel.guard import EVERYWHERE, guarded_client, wait_for
from stillreel.job import JobStatus, Notification
from stillreel.settings import FetchSettings, WebhookSettings
from stillreel.signing import signature_headers

BODY_LIMIT = 20_000
"""Bytes; Standard Webhooks asks for less."""
ERROR_LIMIT = 1000
"""Characters of the error text in a notification."""
RETRY_AFTER_LIMIT = 3600.0
"""Seconds; a receiver that asks for more is asked again after this."""


def deliver(
    url: str, notification: Notification, settings: WebhookSettings, fetch: FetchSettings
) -> None:
    """Posts `notification` to `url`, signed; one attempt, `settings.webhook_seconds` in all.

    Returns when the receiver answered 2xx. A URL that the operator registered may be private; any
    other must be public or in `fetch.allow_addresses`. Redirects are not followed. Raises
    ReceiverUnavailable (with its `retry_after`), ReceiverRefused, AddressRefused, SettingsInvalid.
    """
    at = datetime.now(UTC)
    body = body_of(notification)
    headers: dict[str, str | bytes] = {
        "Content-Type": "application/json",
        **signature_headers(body, id=notification.id, at=at, secrets=_secrets(settings)),
    }
    if url in settings.webhook_plain_urls:
        headers["X-Webhook-Secret"] = settings.webhook_secret.get_secret_value().encode()
    registered = url in (settings.webhook_url, *settings.webhook_plain_urls)
    allow = EVERYWHERE if registered else fetch.allow_addresses
    wait_for(_post(url, body, headers, allow=allow, seconds=settings.webhook_seconds))


def body_of(notification: Notification) -> bytes:
    """The message as JSON in ASCII, under 20 kB: flat fields beside `type`, `timestamp`, `data`.

    The flat `status` is `completed` or `failed`; `data.status` is the true one. `data` also has
    what the notification brings, left out (`data.truncated`) where it would not fit.
    """
    event = notification.to_json()
    done = notification.status is JobStatus.COMPLETED
    facts = {"job_id": notification.job_id, "status": event["status"]}
    message: dict[str, Any] = {
        "job_id": notification.job_id,
        "status": "completed" if done else "failed",
        "video_url": notification.video_url or None,
        "error": notification.error[:ERROR_LIMIT] or None,
        "type": f"video.{event['status']}",
        "timestamp": _iso(notification.at),
        "data": {**event["data"], **facts},
    }
    body = _json(message)
    if len(body) < BODY_LIMIT:
        return body
    return _json({**message, "data": {**facts, "truncated": True}})


def _secrets(settings: WebhookSettings) -> list[str]:
    both = (settings.webhook_secret, settings.webhook_secret_previous)
    secrets = [secret.get_secret_value() for secret in both]
    if not secrets[0]:
        raise SettingsInvalid(
            "STILLREEL_WEBHOOK_SECRET is not set, and notifications are never sent unsigned; "
            "set it to whsec_ + base64 of 24 to 64 random bytes"
        )
    return [secret for secret in secrets if secret]


async def _post(
    url: str,
    body: bytes,
    headers: Mapping[str, str | bytes],
    *,
    allow: Sequence[str],
    seconds: float,
) -> None:
    raw_headers = [(name.encode(), _as_bytes(value)) for name, value in headers.items()]
    try:
        async with (
            asyncio.timeout(seconds),
            guarded_client(allow) as client,
            client.stream("POST", url, content=body, headers=raw_headers) as response,
        ):
            _expect_taken(response)  # the status says it all; the answer's body is not read
    except httpx.InvalidURL as exc:
        raise AddressRefused from exc
    except TimeoutError as exc:
        raise ReceiverUnavailable(f"The webhook receiver did not answer in {seconds:g} s.") from exc
    except (httpx.HTTPError, OSError) as exc:
        raise ReceiverUnavailable("The connection to the webhook receiver failed.") from exc


def _expect_taken(response: httpx.Response) -> None:
    status = response.status_code
    if 200 <= status < 300:
        return
    if status in (408, 425, 429) or status >= 500:
        unavailable = ReceiverUnavailable(f"The webhook receiver answers {status}.")
        unavailable.retry_after = _seconds_of(response.headers.get("retry-after", ""))
        raise unavailable
    if 300 <= status < 400:
        raise ReceiverRefused(
            f"The webhook receiver answers {status}, and redirects are not followed; "
            "give the final address."
        )
    raise ReceiverRefused(
        f"The webhook receiver answers {status}; have it answer 2xx to what it takes."
    )


def _seconds_of(retry_after: str) -> float | None:
    """Seconds from a Retry-After header, which holds a number or a date (RFC 9110, 10.2.3)."""
    if retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), RETRY_AFTER_LIMIT)
    try:
        at = parsedate_to_datetime(retry_after)
    except (TypeError, ValueError):
        return None
    at = at.replace(tzinfo=at.tzinfo or UTC)
    return min(max((at - datetime.now(UTC)).total_seconds(), 0.0), RETRY_AFTER_LIMIT)


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _json(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()
