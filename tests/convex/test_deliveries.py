"""Across the languages: the API signs and delivers, the component's handler decides in the edge."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from stillreel.signing import signature_headers
from tests.api.background import eventually
from tests.api.control import OTHER_SECRET, Control
from tests.api.outside import another_owner
from tests.convex.conftest import KEY, Deploy, Deployment, Relay, relayed
from tests.receiver import answer

pytestmark = pytest.mark.timeout(600)  # a Prefect server may need minutes on a busy machine

AWAY = 4
"""Attempts within an hour: at once, after 5 s, 5 min and 30 min; the next is 2 h later."""


@pytest.fixture(scope="module")
def secret(control: Control) -> str:
    """What the API signs with first; rotated once at most, so that it stays good for the module."""
    return control.rotate()[0]


@pytest.fixture(scope="module")
def way(control: Control) -> Iterator[Relay]:
    with relayed(control) as relay:
        yield relay


@pytest.fixture(scope="module")
def app(deploy: Deploy, control: Control, way: Relay, secret: str) -> Deployment:
    """A deployment that knows the API's webhook secret."""
    return start(deploy, control, way, secret)


@pytest.fixture
def relay(way: Relay) -> Relay:
    """What is between the API and that deployment; it has heard nothing yet."""
    way.outcomes.clear()
    return way


def start(
    deploy: Deploy, control: Control, relay: Relay, secret: str, key: str = KEY
) -> Deployment:
    deployed = deploy(
        "example",
        VIDEO_API_URL=control.api.url,
        VIDEO_API_KEY=key,
        VIDEO_WEBHOOK_SECRET=secret,
        CONVEX_SITE_URL=relay.receiver.url,
    )
    relay.to = deployed.url
    return deployed


def end(control: Control, app: Deployment, job_id: str) -> str:
    """The job's id at the API, where somebody has cancelled it."""
    external = app.job(job_id)["externalId"]
    assert control.api.client.post(f"/api/v1/jobs/{external}/cancel").is_success
    return external


def test_good_replayed_tampered_and_stale_deliveries(
    control: Control, app: Deployment, relay: Relay, secret: str
) -> None:
    job_id = app.order()
    external = end(control, app, job_id)
    control.wait(external, "delivered")
    assert relay.outcomes == [(200, "applied")]
    job = app.job(job_id)
    assert (job["status"], job["error"]) == ("cancelled", "The job was cancelled.")
    good = relay.last
    assert good.verify(secret)["job_id"] == external

    # The API itself sends it again, under the same id.
    assert control.api.client.post(f"/api/v1/jobs/{external}/redeliver").is_success
    control.wait(external, "delivered")
    assert relay.outcomes == [(200, "applied"), (200, "duplicate")]
    assert relay.last.headers["webhook-id"] == good.headers["webhook-id"]
    assert app.job(job_id) == job

    tampered = good.body.replace(b"cancelled", b"completed")
    assert tampered != good.body
    assert relay.send(good, tampered) == (401, "unauthorized")
    assert relay.send(good, webhook_id="another") == (401, "unauthorized")

    at = datetime.now(UTC) - timedelta(minutes=6)
    old = signature_headers(good.body, id=f"{external}-r1", at=at, secrets=[secret])
    assert relay.send(good, **old) == (400, "stale")
    assert app.job(job_id) == job


def test_while_the_secret_is_rotated_no_delivery_is_lost(
    control: Control, app: Deployment, relay: Relay, secret: str
) -> None:
    assert control.rotate()[1] == secret, "the app knows what is now the previous secret"
    job_id = app.order()
    external = end(control, app, job_id)
    control.wait(external, "delivered")
    assert len(relay.last.headers["webhook-signature"].split()) == 2
    assert relay.outcomes == [(200, "applied")]
    assert app.job(job_id)["status"] == "cancelled"


def test_with_another_secret_nothing_is_taken_and_the_api_says_so(
    control: Control, deploy: Deploy
) -> None:
    # Of another owner: convex-test counts its ids from one, and they are idempotency keys.
    with relayed(control) as relay, another_owner(control.api, receiver=relay.address) as client:
        key = client.headers["authorization"].removeprefix("Bearer ")
        app = start(deploy, control, relay, OTHER_SECRET, key)
        job_id = app.order()
        external = end(control, app, job_id)
        job = control.wait(external, "waiting", attempts=1)
        assert relay.outcomes == [(401, "unauthorized")]
        assert "401" in job["delivery"]["error"]
        app.wait(job_id, "cancelled")  # by the reconciler, which asks with the key


def test_an_outage_of_an_hour_on_the_way_loses_nothing(
    control: Control, app: Deployment, relay: Relay
) -> None:
    relay.first = [answer(503)] * AWAY
    job_id = app.order()
    external = end(control, app, job_id)
    for attempts in range(1, AWAY + 1):
        control.wait(external, "waiting", attempts=attempts)
        control.pass_time(external)
    control.wait(external, "delivered")
    assert relay.outcomes == [(200, "applied")]
    assert app.job(job_id)["status"] == "cancelled"


def test_a_plain_secret_is_taken_where_a_receiver_gets_one(
    control: Control, app: Deployment, relay: Relay, secret: str
) -> None:
    job_id = app.order()
    external = app.job(job_id)["externalId"]
    flat = {"job_id": external, "status": "failed", "video_url": None, "error": "no GPU"}
    for plain, status in ((OTHER_SECRET, 401), (secret, 200)):
        told = httpx.post(
            f"{app.url}/video/webhook",
            json=flat,
            headers={"X-Webhook-Secret": plain},
            trust_env=False,
        )
        assert told.status_code == status
    assert app.job(job_id)["error"] == "no GPU"


def test_a_video_is_made_and_its_end_told_across_the_languages(
    control: Control, app: Deployment, relay: Relay, inference_server: None
) -> None:
    job_id = app.order()
    external = app.job(job_id)["externalId"]
    assert control.api.execute(external).is_completed()
    control.wait(external, "delivered")
    assert relay.outcomes == [(200, "applied")]
    job = app.job(job_id)
    seen = control.api.job(external)
    assert (job["status"], job["progress"], job["seed"]) == ("completed", 100, 7)
    assert (job["costUsd"], job["gpuSeconds"]) == (seen["cost"]["usd"], seen["cost"]["gpu_seconds"])
    for name in ("videoUrl", "posterUrl", "teaserUrl"):
        assert httpx.get(job[name], trust_env=False).is_success


def test_what_is_refused_is_told_in_the_apis_words(app: Deployment) -> None:
    job_id = app.mutation("videos:create", prompt="slow zoom in", width=1)
    job = app.wait(job_id, "failed")
    assert job["errorCode"] == "request_rejected"
    assert "width" in job["error"]


def test_cancel_and_retry_reach_the_api(control: Control, app: Deployment) -> None:
    job_id = app.order(priority="backlog")
    external = app.job(job_id)["externalId"]
    app.mutation("videos:cancel", jobId=job_id)
    app.wait(job_id, "cancelled")
    assert control.api.job(external)["status"] == "cancelled"
    app.mutation("videos:retry", jobId=job_id)
    assert app.wait(job_id, "queued")["round"] == 2
    for attempt in eventually():
        with attempt:
            control.api.forget()
            job = control.api.job(external)
            assert (job["status"], job["round"]) == ("queued", 2)


def test_the_deployments_order_is_made_once(control: Control, app: Deployment) -> None:
    """The row's id is the key: the same order sent by hand is the same job."""
    job_id = app.order(prompt="only once")
    external = app.job(job_id)["externalId"]
    order = {"prompt": "only once", "width": 128, "height": 72, "duration": 0.5, "seed": 7}
    order |= {"webhook_url": control.read(external).record.text("webhook_url")}
    told = control.api.client.post(
        "/api/v1/generate",
        json=order,
        headers={"Idempotency-Key": job_id},
    )
    assert told.headers["idempotency-replayed"] == "true"
    assert told.json()["job_id"] == external
