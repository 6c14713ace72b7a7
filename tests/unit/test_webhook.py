"""A notification is signed, reaches its receiver once, and tells nobody a secret."""

from __future__ import annotations

import json
import traceback
from base64 import b64encode
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from stillreel.errors import (
    AddressRefused,
    ReceiverRefused,
    ReceiverUnavailable,
    SettingsInvalid,
    StillreelError,
)
from stillreel.job import JobStatus, Notification
from stillreel.settings import FetchSettings, WebhookSettings
from stillreel.signing import signature_headers, standard_secret
from stillreel.webhook import ReceiverGone, body_of, deliver, make_notification, tell_api
from tests.receiver import (
    Answer,
    Receiver,
    answer,
    drip_body,
    drip_headers,
    endless,
    hang,
    receiver,
    redirect,
    reset,
)

NEW = "whsec_" + b64encode(b"n" * 32).decode()
OLD = "whsec_" + b64encode(b"o" * 32).decode()
OTHER = "whsec_" + b64encode(b"x" * 32).decode()
AT = datetime(2026, 3, 1, 12, 30, 15, 250_000, UTC)
PUBLIC_ONLY = FetchSettings.model_validate({})
DONE = Notification(
    at=AT,
    id="job_0123456789-r1",
    job_id="job_0123456789",
    status=JobStatus.COMPLETED,
    video_url="https://cdn.example/output.mp4",
    data={"seconds": 5.0, "model": "preview"},
)
RECEIPT = {
    "model": {"name": "preview", "seed": 7},
    "video": {
        "video": "outputs/a/output.mp4",
        "poster": "outputs/a/poster.jpg",
        "teaser": "outputs/a/teaser.mp4",
        "width": 128,
        "sha256": "abc",
    },
    "cost": {"usd": 0.01},
    "took": {"gpu_seconds": 3.5},
    "warnings": ["small"],
}


def configured(secret: str = NEW, previous: str = "", **fields: object) -> WebhookSettings:
    return WebhookSettings.model_validate(
        {"webhook_secret": secret, "webhook_secret_previous": previous, **fields}
    )


def send(server: Receiver, settings: WebhookSettings | None = None) -> None:
    deliver(server.url, DONE, settings or configured(), allowing(server))


def allowing(server: Receiver) -> FetchSettings:
    return FetchSettings.model_validate({"allow_addresses": (f"{server.host}:{server.port}",)})


def test_a_delivery_verifies_with_the_standard_client() -> None:
    with receiver() as server:
        send(server)
    (request,) = server.requests
    message = request.verify(NEW)
    assert (request.method, request.headers["content-type"]) == ("POST", "application/json")
    assert request.headers["webhook-id"] == DONE.id
    assert message["job_id"] == DONE.job_id
    assert "x-webhook-secret" not in request.headers
    with pytest.raises(WebhookVerificationError):
        request.verify(OTHER)


def test_during_a_rotation_both_secrets_verify() -> None:
    with receiver() as server:
        send(server, configured(NEW, OLD))
    assert server.requests[0].verify(NEW) == server.requests[0].verify(OLD)
    with pytest.raises(WebhookVerificationError):
        server.requests[0].verify(OTHER)


@pytest.mark.parametrize("text", ["correct horse battery staple", "grün", "whse", "0"])
def test_any_text_is_a_secret(text: str) -> None:
    with receiver() as server:
        send(server, configured(text))
    secret = "whsec_" + b64encode(text.encode()).decode()
    assert standard_secret(text) == secret
    server.requests[0].verify(secret)


def test_unpadded_secrets_stay_as_they_are() -> None:
    assert standard_secret(NEW.rstrip("=")) == NEW.rstrip("=")


@given(st.text(min_size=1).filter(lambda text: text.isprintable() and text == text.strip()))
def test_every_printable_secret_signs_or_is_refused(text: str) -> None:
    try:
        secret = standard_secret(text)
    except SettingsInvalid:
        assert text.startswith("whsec_")
        return
    headers = signature_headers(b"{}", id="a", at=datetime.now(UTC), secrets=[text])
    assert Webhook(secret).verify(b"{}", headers) == {}


@pytest.mark.parametrize(
    "secret", ["whsec_", "whsec_not base64!", "secret\n", " secret", "sec\nret", "a\x00b"]
)
def test_an_unusable_secret_is_named_but_not_shown(secret: str) -> None:
    with receiver() as server, pytest.raises(SettingsInvalid, match="WEBHOOK_SECRET") as caught:
        send(server, configured(secret))
    assert secret.strip() not in caught.value.message.replace("whsec_ +", "").replace(
        "with whsec_,", ""
    )
    assert server.requests == []


@pytest.mark.parametrize("previous", ["", OLD])
def test_nothing_is_sent_unsigned(previous: str) -> None:
    with receiver() as server, pytest.raises(SettingsInvalid, match="STILLREEL_WEBHOOK_SECRET"):
        send(server, configured("", previous))
    assert server.requests == []


def test_the_timestamp_is_that_of_the_attempt_in_any_zone() -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=9)))
    here = signature_headers(b"{}", id="a", at=AT, secrets=[NEW, OLD])
    assert here == signature_headers(b"{}", id="a", at=elsewhere, secrets=[NEW, OLD])
    assert here["webhook-timestamp"] == "1772368215"
    assert [part[:3] for part in here["webhook-signature"].split(" ")] == ["v1,", "v1,"]


@pytest.mark.parametrize("status", [s for s in JobStatus if s not in ("queued", "processing")])
def test_the_flat_status_is_the_one_the_seeds_know(status: JobStatus) -> None:
    message = json.loads(body_of(DONE.model_copy(update={"status": status})))
    assert message["status"] == ("completed" if status == "completed" else "failed")
    assert message["type"] == f"video.{status}"
    assert message["data"]["status"] == status


def test_the_body_is_the_seeds_fields_beside_the_envelope() -> None:
    assert json.loads(body_of(DONE)) == {
        "job_id": "job_0123456789",
        "status": "completed",
        "video_url": "https://cdn.example/output.mp4",
        "error": None,
        "type": "video.completed",
        "timestamp": "2026-03-01T12:30:15.250Z",
        "data": {
            "job_id": "job_0123456789",
            "status": "completed",
            "seconds": 5.0,
            "model": "preview",
        },
    }
    failed = DONE.model_copy(
        update={"status": JobStatus.FAILED, "video_url": "", "error": "The image is tiny."}
    )
    message = json.loads(body_of(failed))
    assert (message["video_url"], message["error"]) == (None, "The image is tiny.")


@pytest.mark.parametrize(
    "update",
    [
        pytest.param({"data": {"note": "x" * 50_000}}, id="data"),
        pytest.param({"error": "\N{FIRE}" * 50_000}, id="error"),
        pytest.param({"error": "\udc80" * 50_000, "data": {"n": "\u20ac" * 9000}}, id="both"),
    ],
)
def test_a_body_stays_below_twenty_kilobytes(update: dict[str, object]) -> None:
    body = body_of(DONE.model_copy(update=update))
    assert len(body) < 20_000
    assert json.loads(body)["data"]["status"] == "completed"


@pytest.mark.parametrize("number", [1, 2])
def test_a_notification_says_what_the_receipt_says(number: int) -> None:
    made = make_notification(
        "job_0123456789",
        number,
        JobStatus.COMPLETED,
        at=AT,
        receipt=RECEIPT,
        more={"batch_id": "batch_1"},
        url=lambda key: f"https://cdn.example/{key}",
    )
    message = json.loads(body_of(made))
    assert (made.id, made.at) == (f"job_0123456789-r{number}", AT)
    assert message["video_url"] == "https://cdn.example/outputs/a/output.mp4"
    assert message["data"] == {
        "job_id": "job_0123456789",
        "status": "completed",
        "round": number,
        "batch_id": "batch_1",
        "model": "preview",
        "seed": 7,
        "poster_url": "https://cdn.example/outputs/a/poster.jpg",
        "teaser_url": "https://cdn.example/outputs/a/teaser.mp4",
        "video": {"width": 128, "sha256": "abc"},
        "cost": {"usd": 0.01, "gpu_seconds": 3.5},
        "warnings": ["small"],
    }


def test_a_job_without_a_receipt_has_no_video() -> None:
    made = make_notification("job_0123456789", 1, JobStatus.EXPIRED, at=AT, error="Late.", url=str)
    message = json.loads(body_of(made))
    assert (message["video_url"], message["error"]) == (None, "Late.")
    assert message["data"] == {"round": 1, "job_id": "job_0123456789", "status": "expired"}


def test_the_api_is_told_with_the_token_of_the_run_only() -> None:
    with receiver() as api:
        tell_api(api.url, "token", job_id="job_1", status=JobStatus.CANCELLED, seconds=5)
    [request] = api.requests
    assert json.loads(request.body) == {"job_id": "job_1", "status": "failed", "video_url": None}
    assert request.headers["authorization"] == "Bearer token"
    assert not {"webhook-signature", "x-webhook-secret"} & set(request.headers)


def test_the_plain_secret_goes_to_registered_addresses_only() -> None:
    with receiver() as own, receiver() as other:
        settings = configured("plain text", webhook_plain_urls=(own.url,))
        deliver(own.url, DONE, settings, PUBLIC_ONLY)
        deliver(other.url, DONE, settings, allowing(other))
        deliver(own.url + "?x=1", DONE, settings, allowing(own))
    assert [r.headers.get("x-webhook-secret") for r in own.requests] == ["plain text", None]
    assert "x-webhook-secret" not in other.requests[0].headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with receiver() as other, receiver(redirect(other.url, status)) as own:
        settings = configured("plain text", webhook_plain_urls=(own.url,))
        with pytest.raises(ReceiverRefused, match=str(status)):
            send(own, settings)
    assert own.requests[0].headers["x-webhook-secret"] == "plain text"
    assert other.requests == []


def test_a_registered_receiver_may_be_private() -> None:
    with receiver() as server:
        deliver(server.url, DONE, configured(webhook_url=server.url), PUBLIC_ONLY)
        with pytest.raises(AddressRefused):
            deliver(server.url + "x", DONE, configured(webhook_url=server.url), PUBLIC_ONLY)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "not a url",
        "http://[",
        "ftp://127.0.0.1/",
        "http://user:word@127.0.0.1/",
        "http://localhost/",
        "http://2130706433/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_callers_cannot_have_private_addresses_called(url: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        deliver(url, DONE, configured(), PUBLIC_ONLY)
    assert caught.value.message == AddressRefused().message


def test_a_pair_lets_callers_reach_its_port_only() -> None:
    with receiver() as server, receiver() as other:
        deliver(server.url, DONE, configured(), allowing(server))
        for url in (other.url, f"http://localhost:{server.port}/"):
            with pytest.raises(AddressRefused):
                deliver(url, DONE, configured(), allowing(server))
    assert (len(server.requests), other.requests) == (1, [])


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_two_hundreds_are_taken(status: int) -> None:
    with receiver(answer(status)) as server:
        send(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
def test_a_refusal_is_final(status: int) -> None:
    with receiver(answer(status)) as server, pytest.raises(ReceiverRefused, match=str(status)):
        send(server)


def test_a_receiver_that_is_gone_is_told_apart() -> None:
    with receiver(answer(410)) as server, pytest.raises(ReceiverGone):
        send(server)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_trouble_is_worth_a_retry(status: int) -> None:
    with receiver(answer(status), answer(200)) as server:
        with pytest.raises(ReceiverUnavailable, match=str(status)):
            send(server)
        send(server)
    assert server.requests[0].headers["webhook-id"] == server.requests[1].headers["webhook-id"]


@pytest.mark.parametrize(
    "misbehave",
    [
        pytest.param(hang, id="no answer"),
        pytest.param(drip_headers, id="header by header"),
        pytest.param(reset, id="reset"),
        pytest.param(lambda exchange: exchange.write(b"nonsense\r\n\r\n"), id="not http"),
    ],
)
def test_a_bad_connection_is_worth_a_retry(misbehave: Answer) -> None:
    with receiver(misbehave) as server, pytest.raises(ReceiverUnavailable) as caught:
        send(server, configured(webhook_seconds=0.3))
    assert "127.0.0.1" not in caught.value.message


@pytest.mark.parametrize("talk", [drip_body, endless])
def test_an_answer_that_never_ends_holds_nobody(talk: Answer) -> None:
    with receiver(talk) as server:
        send(server)
    assert len(server.requests) == 1


def in_seconds(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("0", 0, 0),
        ("17", 17, 17),
        ("9" * 5000, 3600, 3600),
        (7200, 3600, 3600),
        (1800, 1700, 1800),
        (-60, 0, 0),
        ("Sun, 01 Mar 2020 00:00:00 -0000", 0, 0),
    ],
)
def test_retry_after_is_told_within_an_hour(value: str | int, low: float, high: float) -> None:
    """Seconds as the receiver writes them, or a date that is so many seconds from now."""
    busy = answer(429, Retry_After=in_seconds(value) if isinstance(value, int) else value)
    with receiver(busy) as server, pytest.raises(ReceiverUnavailable) as caught:
        send(server)
    assert caught.value.retry_after is not None
    assert low <= caught.value.retry_after <= high


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "nan", "\u00b2"])
def test_an_unreadable_retry_after_is_none(value: str) -> None:
    busy = answer(503, Retry_After=value)
    with receiver(busy) as server, pytest.raises(ReceiverUnavailable) as caught:
        send(server)
    assert caught.value.retry_after is None


@pytest.mark.parametrize(
    "misbehave", [answer(500), answer(404), redirect("/x"), reset, hang], ids=range(5)
)
def test_no_failure_shows_a_secret(misbehave: Answer) -> None:
    with receiver(misbehave) as server:
        settings = configured(
            "plain text", OLD, webhook_plain_urls=(server.url,), webhook_seconds=0.3
        )
        with pytest.raises(StillreelError) as caught:
            send(server, settings)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(settings)
    for secret in ("plain text", standard_secret("plain text"), OLD):
        assert secret not in told
        assert secret.removeprefix("whsec_") not in told
    assert settings.webhook_secret == SecretStr("plain text")
