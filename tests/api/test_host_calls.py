"""`/webhook/complete`: a host says that its run has ended, and the API looks for itself."""

from __future__ import annotations

import json

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed, Running

from stillreel.api.orders import token_of as run_token
from stillreel.keys import output_key
from stillreel.notifications import deliver_due
from stillreel.settings import get_settings
from tests.api.control import Control, Listen, say, token_of, wait_for_requests
from tests.receiver import answer, receiver


@pytest.mark.parametrize("header", ["Authorization", "X-Webhook-Secret"])
@pytest.mark.parametrize("who", ["stranger", "webhook secret", "api key", "other job", "nobody"])
def test_only_the_run_itself_is_heard(
    control: Control, listen: Listen, secret: str, header: str, who: str
) -> None:
    """The seed took any job's end from whoever knew the webhook secret (defect L8)."""
    heard = listen()
    job_id = control.cancelled(webhook_url=heard.url)
    control.wait(job_id, "delivered")
    waiting = control.api.submit(webhook_url=heard.url)["job_id"]
    given = {
        "stranger": "anything",
        "webhook secret": secret,
        "api key": control.api.settings.api.api_key.get_secret_value(),
        "other job": token_of(control, job_id),
        "nobody": "",
    }[who]
    bearer = "Bearer " if header == "Authorization" else ""
    answered = say(control, waiting, {header: bearer + given} if given else {})
    assert answered.status_code == 401
    job = control.api.job(waiting)
    assert (job["status"], job["result_url"]) == ("queued", None)
    assert len(heard.requests) == 1


@pytest.mark.parametrize("job_id", ["job_unknown12345", "../etc", "x\x00y", "\ud800", "j" * 81])
def test_ids_that_are_none_are_refused(control: Control, job_id: str) -> None:
    """Even with what would be their token."""
    token = run_token(control.services.secret, job_id)
    answered = httpx.post(
        f"{control.api.url}/webhook/complete",
        content=json.dumps({"job_id": job_id}),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        trust_env=False,
    )
    assert answered.status_code in (401, 404, 422)


def test_a_run_that_lies_about_its_end_changes_nothing(control: Control, listen: Listen) -> None:
    heard = listen()
    job_id = control.api.submit(webhook_url=heard.url)["job_id"]
    answered = say(control, job_id, {"Authorization": f"Bearer {token_of(control, job_id)}"})
    assert (answered.status_code, answered.json()["status"]) == (202, "queued")
    control.run(deliver_due(control.services))
    job = control.api.job(job_id)
    assert (job["status"], job["result_url"], job["delivery"]) == ("queued", None, None)
    assert heard.requests == []


@pytest.mark.parametrize("header", ["Authorization", "X-Webhook-Secret"])
def test_a_run_that_has_ended_is_told_from_state(
    control: Control, listen: Listen, secret: str, header: str
) -> None:
    heard = listen()
    job_id = control.cancelled(webhook_url=heard.url)
    bearer = "Bearer " if header == "Authorization" else ""
    for _ in range(3):
        answered = say(control, job_id, {header: bearer + token_of(control, job_id)})
        assert (answered.status_code, answered.json()["status"]) == (202, "cancelled")
    control.wait(job_id, "delivered")
    [request] = heard.requests
    message = request.verify(secret)
    assert (message["type"], message["video_url"]) == ("video.cancelled", None)


def test_a_run_cannot_use_up_the_attempts_of_a_receiver(control: Control, listen: Listen) -> None:
    heard = listen(answer(500))
    job_id = control.cancelled(webhook_url=heard.url)
    control.wait(job_id, "waiting", attempts=1)
    for _ in range(3):
        say(control, job_id, {"Authorization": f"Bearer {token_of(control, job_id)}"})
    control.wait(job_id, "waiting", attempts=1)
    assert len(heard.requests) == 1


def test_a_host_tells_the_api_with_the_runs_token_and_nothing_else(
    control: Control,
    listen: Listen,
    secret: str,
    monkeypatch: pytest.MonkeyPatch,
    inference_server: None,
) -> None:
    heard = listen()
    with receiver() as api_of_host:
        monkeypatch.setenv("STILLREEL_API_WEBHOOK_URL", api_of_host.url)
        get_settings.cache_clear()
        job_id = control.api.submit(webhook_url=heard.url)["job_id"]
        assert control.api.execute(job_id).is_completed()
    [request] = api_of_host.requests
    assert request.headers["authorization"] == f"Bearer {token_of(control, job_id)}"
    said = json.loads(request.body)
    assert said == {"job_id": job_id, "status": "completed", "video_url": None}
    control.wait(job_id, "delivered")
    assert [r.verify(secret)["status"] for r in heard.requests] == ["completed"]


def test_a_job_is_completed_and_told_while_its_run_still_works(
    control: Control, listen: Listen, secret: str, inference_server: None
) -> None:
    """The host calls after the receipt and before the end of the run, which changes nothing."""
    heard, api = listen(), control.api
    done, job_id = (api.submit(webhook_url=heard.url)["job_id"] for _ in range(2))
    assert api.execute(done).is_completed()
    control.wait(done, "delivered")
    run_id = control.read(job_id).record.run_id
    headers = {"Authorization": f"Bearer {token_of(control, job_id)}"}
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Running(), force=True)
        assert say(control, job_id, headers).json()["status"] == "processing"
        receipt = api.storage.get_bytes(output_key(done, "receipt.json"))
        key = output_key(job_id, "receipt.json")
        receipt = receipt.replace(done.encode(), job_id.encode())
        api.storage.put_bytes(key, receipt, content_type="application/json")
        assert say(control, job_id, headers).json()["status"] == "completed"
        wait_for_requests(heard, 2)
        assert client.read_flow_run(run_id).state_type == StateType.RUNNING
        client.set_flow_run_state(run_id, Crashed(), force=True)
    control.wait(job_id, "delivered", attempts=1)
    assert [r.verify(secret)["status"] for r in heard.requests] == ["completed"] * 2
    assert heard.requests[1].headers["webhook-id"] == f"{job_id}-r1"
