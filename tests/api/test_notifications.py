"""Every end of a job is told: signed, from state, under one id per round, until it is taken."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Crashed, Running
from standardwebhooks import WebhookVerificationError

from stillreel.errors import ImageUnavailable
from stillreel.jobs import marks
from stillreel.notifications import Deliveries, conclude, deliver, deliver_due, is_due
from tests.api.control import OTHER_SECRET, Control, Listen, wait_for_requests
from tests.receiver import hang

# --- which ends are told ------------------------------------------------------------------------


def test_a_completed_job_is_told_once_with_all_that_it_made(
    control: Control, listen: Listen, secret: str, inference_server: None
) -> None:
    heard, api = listen(), control.api
    job_id = api.submit(webhook_url=heard.url, prompt="a secret prompt")["job_id"]
    assert api.execute(job_id).is_completed()
    job = control.wait(job_id, "delivered")
    [request] = heard.requests
    message = request.verify(secret)
    with pytest.raises(WebhookVerificationError):
        request.verify(OTHER_SECRET)
    assert request.headers["webhook-id"] == f"{job_id}-r1"
    assert (message["job_id"], message["status"], message["error"]) == (job_id, "completed", None)
    assert (message["type"], message["timestamp"]) == ("video.completed", job["completed_at"])
    for url in (message["video_url"], *(message["data"][f"{n}_url"] for n in ("poster", "teaser"))):
        assert httpx.get(url, trust_env=False).is_success
    data = message["data"]
    assert (data["round"], data["model"], data["status"]) == (1, "preview", "completed")
    assert data["cost"]["usd"] == job["cost"]["usd"]
    assert data["cost"]["gpu_seconds"] == job["cost"]["gpu_seconds"]
    assert data["video"] == job["video"]
    assert b"secret prompt" not in request.body
    control.wait_until_untagged(job_id, marks.UNDELIVERED)
    record = control.read(job_id).record
    assert record.labels[marks.SETTLED] == record.round
    assert record.labels[marks.USD] == job["cost"]["usd"]
    assert record.labels[marks.GPU_SECONDS] == job["cost"]["gpu_seconds"]
    assert record.labels[marks.TOOK_SECONDS] > 0


def test_a_job_that_failed_is_told_with_its_reason(
    control: Control, listen: Listen, secret: str
) -> None:
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    record = control.read(job_id).record
    control.run(control.services.actions.fail(record, ImageUnavailable("It is not there.")))
    control.wait(job_id, "delivered")
    message = heard.requests[0].verify(secret)
    assert (message["status"], message["video_url"]) == ("failed", None)
    assert (message["error"], message["type"]) == ("It is not there.", "video.failed")
    assert message["data"]["error_code"] == "image_unavailable"
    labels = control.read(job_id).record.labels
    assert (labels[marks.SETTLED], labels[marks.USD]) == (1, 0.0)


def test_a_job_that_was_cancelled_while_it_waited_is_told(
    control: Control, listen: Listen, secret: str
) -> None:
    heard = listen()
    job_id = control.cancelled(webhook_url=heard.url)
    control.wait(job_id, "delivered")
    message = heard.requests[0].verify(secret)
    assert (message["status"], message["type"]) == ("failed", "video.cancelled")
    assert message["data"]["status"] == "cancelled"
    assert message["error"] == "The job was cancelled."


def test_a_job_that_was_cancelled_while_it_ran_is_told_when_it_has_ended(
    control: Control, listen: Listen, secret: str
) -> None:
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    run_id = control.read(job_id).record.run_id
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Running(), force=True)
        assert control.api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
        control.run(deliver_due(control.services))
        assert control.read(job_id).status == "processing"
        assert heard.requests == []
        client.set_flow_run_state(run_id, Cancelled(), force=True)  # as its worker does
    control.wait(job_id, "delivered")
    [request] = heard.requests
    assert request.verify(secret)["type"] == "video.cancelled"


def test_a_job_that_expired_is_told(control: Control, listen: Listen, secret: str) -> None:
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    control.run(control.services.actions.expire(control.read(job_id).record))
    control.wait(job_id, "delivered")
    message = heard.requests[0].verify(secret)
    assert (message["status"], message["type"]) == ("failed", "video.expired")


def test_a_job_is_told_to_the_owners_default_receiver(control: Control, listen: Listen) -> None:
    other, default = listen(), listen(default=True)
    job_id = control.cancelled()
    control.wait(job_id, "delivered")
    assert (len(default.requests), len(other.requests)) == (1, 0)


def test_a_job_with_nobody_to_tell_leaves_the_outbox(control: Control, secret: str) -> None:
    job_id = control.cancelled()
    job = control.wait(job_id, "none")
    control.wait_until_untagged(job_id, marks.UNDELIVERED)
    record = control.read(job_id).record
    assert record.labels[marks.SETTLED] == 1
    assert job["delivery"]["attempts"] == 0


def test_a_run_from_prefects_own_form_is_in_the_outbox_too(control: Control) -> None:
    deployment = control.run(control.services.deployments.choose("preview", "preview"))
    path = f"/deployments/{deployment.id}/create_flow_run"
    run = control.run(control.services.api.post(path, {"parameters": {"prompt": "zoom"}}))
    assert {marks.UNDELIVERED, marks.model_tag("preview")} <= set(run["tags"])
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run["id"], Cancelled(), force=True)
    control.wait(f"job_{run['id'].replace('-', '')}", "none")


def test_a_run_that_crashed_is_not_told_before_it_has_had_its_attempts(
    control: Control, listen: Listen
) -> None:
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(control.read(job_id).record.run_id, Crashed(), force=True)
    control.run(conclude(control.services, control.read(job_id).record))
    assert control.read(job_id).status == "processing"
    assert heard.requests == []


# --- one id per round ---------------------------------------------------------------------------


def test_each_round_has_its_own_id(control: Control, listen: Listen) -> None:
    heard, client = listen(), control.api.client
    job_id = control.cancelled(webhook_url=heard.url)
    control.wait(job_id, "delivered")
    assert client.post(f"/api/v1/jobs/{job_id}/retry").is_success
    assert control.read(job_id).record.round == 2
    assert client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    control.wait(job_id, "delivered")
    ids = [request.headers["webhook-id"] for request in heard.requests]
    assert ids == [f"{job_id}-r1", f"{job_id}-r2"]


def test_a_round_that_was_opened_during_a_delivery_stays_in_the_outbox(
    control: Control, listen: Listen
) -> None:
    heard = listen()
    job_id = control.cancelled(webhook_url=heard.url)
    before = control.read(job_id)
    control.wait(job_id, "delivered")
    assert control.api.client.post(f"/api/v1/jobs/{job_id}/retry").is_success
    stale = replace(before.record, labels=before.record.labels | {marks.DELIVERED: 1})
    control.run(deliver(control.services, replace(before, record=stale)))
    assert marks.UNDELIVERED in control.read(job_id).record.tags


def test_what_is_written_down_as_told_is_not_told_again(control: Control, listen: Listen) -> None:
    """The process was killed after the label and before the tag."""
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    control.label(job_id, DELIVERED=1, ATTEMPTS=1)
    assert control.api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    control.wait(job_id, "delivered")
    control.run(deliver_due(control.services))
    control.run(conclude(control.services, control.read(job_id).record))
    control.wait_until_untagged(job_id, marks.UNDELIVERED)
    assert heard.requests == []


def test_the_end_of_a_job_is_not_told_twice_at_once(control: Control, listen: Listen) -> None:
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]

    async def all_at_once() -> None:
        services = control.services
        await services.actions.cancel(await services.reader.get(job_id, fresh=True))
        record = (await services.reader.get(job_id, fresh=True)).record
        for _ in range(5):
            services.deliveries.start(services, record)
            await deliver_due(services)

    control.run(all_at_once())
    control.wait(job_id, "delivered")
    assert len(heard.requests) == 1


def test_two_processes_do_not_tell_the_same_at_once(control: Control, listen: Listen) -> None:
    heard = listen(hang)
    job_id = control.cancelled(webhook_url=heard.url)
    control.run(deliver_due(control.services))
    wait_for_requests(heard, 1)
    other = replace(control.services, deliveries=Deliveries())
    control.run(conclude(other, control.read(job_id).record))
    assert len(heard.requests) == 1
    assert not other.deliveries.counts


def test_a_delivery_that_ends_while_a_round_is_opened_makes_none_due(
    control: Control, listen: Listen, secret: str
) -> None:
    heard, services = listen(), control.services
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    control.run(services.actions.cancel(control.read(job_id)))
    before = control.read(job_id)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    control.label(job_id, ROUND=2, NEXT_ATTEMPT=later)  # as a retry does first
    control.run(deliver(services, before))
    assert heard.requests[0].headers["webhook-id"] == f"{job_id}-r1"
    record = control.read(job_id).record
    assert record.labels[marks.DELIVERED] == 1
    assert marks.UNDELIVERED in record.tags
    assert not is_due(record)
    control.pass_time(job_id)
    control.wait(job_id, "delivered")
    assert heard.requests[1].headers["webhook-id"] == f"{job_id}-r2"


# --- once more ----------------------------------------------------------------------------------


def test_redelivery_has_the_same_id(control: Control, listen: Listen, secret: str) -> None:
    heard = listen()
    job_id = control.cancelled(webhook_url=heard.url)
    control.wait(job_id, "delivered")
    answered = control.api.client.post(f"/api/v1/jobs/{job_id}/redeliver")
    assert answered.status_code == 202
    assert answered.json()["notification_id"] == f"{job_id}-r1"
    assert answered.json()["delivery"]["status"] == "waiting"
    control.wait(job_id, "delivered", attempts=1)
    first, second = heard.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.verify(secret) == second.verify(secret)


def test_only_an_end_is_told_again(control: Control) -> None:
    client = control.api.client
    job_id = control.api.submit()["job_id"]
    assert client.post(f"/api/v1/jobs/{job_id}/redeliver").status_code == 409
    assert client.post("/api/v1/jobs/job_unknown12345/redeliver").status_code == 404
    nobody = httpx.post(f"{control.api.url}/api/v1/jobs/{job_id}/redeliver", trust_env=False)
    assert nobody.status_code == 401
