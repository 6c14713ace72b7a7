"""The message about an ended round: built, signed by Standard Webhooks, posted once per call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from stillreel.errors import (
    AddressRefused,
    ReceiverError,
    ReceiverGone,
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

_OWN = ("video", "poster", "teaser", "encoder")
"""Of a receipt's facts about the video, those that are keys in our storage."""


async def post_signed(
    url: str,
    notification: Notification,
    *,
    secrets: Sequence[str],
    plain: bool = False,
    allow: Sequence[str] = (),
    seconds: float,
) -> int:
    """Posts `notification` to `url`, signed with each of `secrets`; one attempt, `seconds` in all.

    The status of the receiver's answer, a 2xx. `plain`: it also gets the first secret itself, as
    `X-Webhook-Secret`. `allow` is the guard's: EVERYWHERE for a URL that the operator registered.
    Redirects are not followed. Raises ReceiverUnavailable (with its `retry_after`),
    ReceiverRefused, ReceiverGone, each with what was `answered`, AddressRefused, SettingsInvalid.
    """
    if not secrets:
        raise SettingsInvalid(
            "There is no webhook secret, and notifications are never sent unsigned; set "
            "STILLREEL_WEBHOOK_SECRET, or have one made with `stillreel owners webhook`."
        )
    body = body_of(notification)
    headers: dict[str, str | bytes] = {
        "Content-Type": "application/json",
        **signature_headers(body, id=notification.id, at=datetime.now(UTC), secrets=secrets),
    }
    if plain:
        headers["X-Webhook-Secret"] = secrets[0].encode()
    return await _post(url, body, headers, allow=allow, seconds=seconds)


def deliver(
    url: str, notification: Notification, settings: WebhookSettings, fetch: FetchSettings
) -> None:
    """The same from a machine that is trusted with the installation's own webhook secret."""
    registered = url in (settings.webhook_url, *settings.webhook_plain_urls)
    wait_for(
        post_signed(
            url,
            notification,
            secrets=_secrets(settings),
            plain=url in settings.webhook_plain_urls,
            allow=EVERYWHERE if registered else fetch.allow_addresses,
            seconds=settings.webhook_seconds,
        )
    )


def tell_api(url: str, token: str, *, job_id: str, status: JobStatus, seconds: float) -> None:
    """Tells the API at `url`, which is the operator's own, to look at the job: it has news.

    `token` is the run's. Raises what `post_signed` raises.
    """
    message = {"job_id": job_id, "status": _flat(status), "video_url": None}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    wait_for(_post(url, _json(message), headers, allow=EVERYWHERE, seconds=seconds))


def make_notification(
    job_id: str,
    number: int,
    status: JobStatus,
    *,
    at: datetime,
    receipt: Mapping[str, Any] | None = None,
    error: str = "",
    more: Mapping[str, Any] | None = None,
    url: Callable[[str], str | None],
) -> Notification:
    """The message that round `number` of a job has ended, with what its receipt says.

    `url` makes an address from a key; `more` is told beside the receipt.
    """
    data: dict[str, Any] = {"round": number, **(more or {})}
    video_url = None
    if receipt:
        stored = receipt["video"]
        video_url = url(stored["video"])
        data |= {
            "model": receipt["model"]["name"],
            "seed": receipt["model"]["seed"],
            "poster_url": url(stored["poster"]),
            "teaser_url": url(stored["teaser"]),
            "video": {name: fact for name, fact in stored.items() if name not in _OWN},
            "cost": {**receipt["cost"], "gpu_seconds": receipt["took"]["gpu_seconds"]},
            "warnings": receipt["warnings"],
        }
    return Notification(
        id=f"{job_id}-r{number}",
        job_id=job_id,
        at=at,
        status=status,
        video_url=video_url or "",
        error=error,
        data=data,
    )


def body_of(notification: Notification) -> bytes:
    """The message as JSON in ASCII, under 20 kB: flat fields beside `type`, `timestamp`, `data`.

    The flat `status` is `completed` or `failed`; `data.status` is the true one. `data` also has
    what the notification brings, left out (`data.truncated`) where it would not fit.
    """
    event = notification.to_json()
    facts = {"job_id": notification.job_id, "status": event["status"]}
    message: dict[str, Any] = {
        "job_id": notification.job_id,
        "status": _flat(notification.status),
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


def _flat(status: JobStatus) -> str:
    """The status in the words of the first design document."""
    return "completed" if status is JobStatus.COMPLETED else "failed"


def _secrets(settings: WebhookSettings) -> list[str]:
    both = (settings.webhook_secret, settings.webhook_secret_previous)
    current, previous = (secret.get_secret_value() for secret in both)
    return [text for text in (current, previous) if text] if current else []


async def _post(
    url: str,
    body: bytes,
    headers: Mapping[str, str | bytes],
    *,
    allow: Sequence[str],
    seconds: float,
) -> int:
    raw_headers = [(name.encode(), _as_bytes(value)) for name, value in headers.items()]
    try:
        async with (
            asyncio.timeout(seconds),
            guarded_client(allow) as client,
            client.stream("POST", url, content=body, headers=raw_headers) as response,
        ):
            return _expect_taken(response)  # it says it all; the answer's body is not read
    except httpx.InvalidURL as exc:
        raise AddressRefused from exc
    except TimeoutError as exc:
        raise ReceiverUnavailable(f"The webhook receiver did not answer in {seconds:g} s.") from exc
    except (httpx.HTTPError, OSError) as exc:
        raise ReceiverUnavailable("The connection to the webhook receiver failed.") from exc


def _expect_taken(response: httpx.Response) -> int:
    status = response.status_code
    if 200 <= status < 300:
        return status
    error = _refusal(response)
    error.answered = status
    raise error


def _refusal(response: httpx.Response) -> ReceiverError:
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        unavailable = ReceiverUnavailable(f"The webhook receiver answers {status}.")
        unavailable.retry_after = _seconds_of(response.headers.get("retry-after", ""))
        return unavailable
    if 300 <= status < 400:
        return ReceiverRefused(
            f"The webhook receiver answers {status}, and redirects are not followed; "
            "give the final address."
        )
    if status == 410:
        return ReceiverGone("The webhook receiver answers 410: it wants no notification any more.")
    return ReceiverRefused(
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
