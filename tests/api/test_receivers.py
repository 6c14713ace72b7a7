"""Receivers with trouble are told later and nobody waits for them; secrets and who sees them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError

from stillreel.jobs import marks
from stillreel.notifications import PAUSES, conclude, deliver_due
from tests.api.control import OTHER_SECRET, OWNER, SECONDS, Control, Listen, say, token_of
from tests.receiver import answer, hang, redirect
from tests.stack import free_port


def test_a_receiver_that_was_down_is_told_when_it_is_up(
    control: Control, listen: Listen, secret: str
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    control.register(url)
    job_id = control.cancelled(webhook_url=url)
    job = control.wait(job_id, "waiting", attempts=1)
    assert "connection" in job["delivery"]["error"]
    heard = listen(port=port)
    control.pass_time(job_id)
    job = control.wait(job_id, "delivered", attempts=2)
    assert (job["delivery"]["error"], job["delivery"]["next_attempt_at"]) == (None, None)
    assert heard.requests[0].verify(secret)["job_id"] == job_id


@pytest.mark.parametrize("trouble", [500, 503, 429, 400, 404])
def test_a_receiver_with_trouble_is_told_again_under_the_same_id(
    control: Control, listen: Listen, trouble: int
) -> None:
    heard = listen(answer(trouble), answer(204))
    job_id = control.cancelled(webhook_url=heard.url)
    job = control.wait(job_id, "waiting", attempts=1)
    assert str(trouble) in job["delivery"]["error"]
    control.pass_time(job_id)
    control.wait(job_id, "delivered", attempts=2)
    assert len({request.headers["webhook-id"] for request in heard.requests}) == 1
    assert len(heard.requests) == 2


@pytest.mark.parametrize(
    ("answered", "before", "least"),
    [
        (answer(500), 0, PAUSES[0]),
        (answer(500), 3, PAUSES[3]),
        (answer(503, Retry_After="1800"), 0, 1800),
        (answer(503, Retry_After="1"), 2, PAUSES[2]),
    ],
    ids=["first", "fourth", "as asked", "no sooner than planned"],
)
def test_the_next_attempt_waits_as_planned_or_asked(
    control: Control, listen: Listen, answered: Any, before: int, least: float
) -> None:
    heard = listen(answered)
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    control.label(job_id, ATTEMPTS=before)
    started = datetime.now(UTC)
    assert control.api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    job = control.wait(job_id, "waiting", attempts=before + 1)
    pause = datetime.fromisoformat(job["delivery"]["next_attempt_at"]) - started
    assert timedelta(seconds=least) <= pause < timedelta(seconds=least * 1.1 + SECONDS)
    control.run(deliver_due(control.services))
    control.run(conclude(control.services, control.read(job_id).record))
    assert len(heard.requests) == 1


def test_the_plan_reaches_over_three_days() -> None:
    assert len(PAUSES) + 1 == 10
    assert timedelta(days=3) <= timedelta(seconds=sum(PAUSES)) < timedelta(days=4)


@pytest.mark.parametrize(("status", "attempts"), [(410, 1), (500, 10)], ids=["gone", "the last"])
def test_nobody_is_told_for_ever(
    control: Control, listen: Listen, status: int, attempts: int
) -> None:
    heard = listen(answer(status), answer())
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    control.label(job_id, ATTEMPTS=attempts - 1)
    assert control.api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    job = control.wait(job_id, "failing", attempts=attempts)
    assert str(status) in job["delivery"]["error"]
    assert job["delivery"]["next_attempt_at"] is None
    control.wait_until_untagged(job_id, marks.UNDELIVERED)
    answered = control.api.client.post(f"/api/v1/jobs/{job_id}/redeliver")
    assert answered.status_code == 202
    control.wait(job_id, "delivered", attempts=1)
    assert [r.headers["webhook-id"] for r in heard.requests] == [f"{job_id}-r1"] * 2


@pytest.mark.parametrize("status", [301, 307, 308])
def test_redirects_are_not_followed(control: Control, listen: Listen, status: int) -> None:
    target = listen()
    heard = listen(redirect(target.url, status), plain=True)
    job_id = control.cancelled(webhook_url=heard.url)
    job = control.wait(job_id, "waiting", attempts=1)
    assert "redirect" in job["delivery"]["error"]
    assert target.requests == []


def test_a_receiver_that_hangs_delays_nobody_else(control: Control, listen: Listen) -> None:
    hanging, good = listen(hang), listen(host="127.0.0.2")
    stuck = [control.cancelled(webhook_url=hanging.url) for _ in range(12)]
    control.run(deliver_due(control.services))
    told = control.cancelled(webhook_url=good.url)
    control.wait(told, "delivered")
    assert len(good.requests) == 1
    assert 1 <= len(hanging.requests) < len(stuck), "two at a time wait for it"
    assert not all(control.read(job_id).record.labels.get(marks.ATTEMPTS) for job_id in stuck)


def test_a_private_receiver_is_told_only_while_it_is_registered(
    control: Control, listen: Listen
) -> None:
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    control.unregister(heard.url)
    refused = control.api.client.post("/api/v1/generate", json={"webhook_url": heard.url})
    assert refused.status_code == 422
    assert control.api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    job = control.wait(job_id, "waiting", attempts=1)
    assert "public" in job["delivery"]["error"]
    assert heard.requests == []
    control.register(heard.url)
    control.pass_time(job_id)
    control.wait(job_id, "delivered")
    assert len(heard.requests) == 1


# --- secrets ------------------------------------------------------------------------------------


def test_during_a_rotation_both_secrets_verify(
    control: Control, listen: Listen, secret: str
) -> None:
    heard = listen()
    new, old = control.rotate()
    job_id = control.cancelled(webhook_url=heard.url)
    control.wait(job_id, "delivered")
    [request] = heard.requests
    assert request.verify(new) == request.verify(old)
    assert new != old
    with pytest.raises(WebhookVerificationError):
        request.verify(OTHER_SECRET)


def test_a_convex_action_of_the_first_document_takes_it(
    control: Control, listen: Listen, secret: str
) -> None:
    """It compares `X-Webhook-Secret` and reads the four flat fields, and nothing else."""
    plain, signed = listen(plain=True), listen()
    current = control.run(control.services.owners.webhook_secrets(OWNER))[0]
    jobs = [control.cancelled(webhook_url=heard.url) for heard in (plain, signed)]
    for job_id in jobs:
        control.wait(job_id, "delivered")
    assert plain.requests[0].headers["x-webhook-secret"] == current
    assert "x-webhook-secret" not in signed.requests[0].headers
    body = json.loads(plain.requests[0].body)
    seen = {name: body[name] for name in ("job_id", "status", "video_url", "error")}
    assert seen == {
        "job_id": jobs[0],
        "status": "failed",
        "video_url": None,
        "error": "The job was cancelled.",
    }


def test_no_log_shows_a_secret(
    control: Control, listen: Listen, secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    good, bad = listen(plain=True), listen(answer(500), plain=True)
    for heard, status in ((good, "delivered"), (bad, "waiting")):
        url = heard.url + "?key=hidden"
        control.register(url, plain=True)
        job_id = control.cancelled(webhook_url=url)
        token = token_of(control, job_id)
        say(control, job_id, {"Authorization": f"Bearer {token}"})
        say(control, job_id, {"X-Webhook-Secret": secret})
        job = control.wait(job_id, status, attempts=1)
        control.unregister(url)
        told = str([vars(record) for record in caplog.records]) + str(job)
        for hidden in (secret, secret.removeprefix("whsec_"), token):
            assert hidden not in told
    ours = [vars(record) for record in caplog.records if record.name.startswith("stillreel")]
    assert "hidden" not in str(ours)
    outcomes = [facts["outcome"] for facts in ours if "outcome" in facts]
    assert {"delivered", "receiver_unavailable"} <= set(outcomes)
