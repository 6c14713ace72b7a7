"""Every end of a job is told: signed, from state, under one id per round, until it is taken."""

from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Event
from time import monotonic
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled, Crashed, Running
from standardwebhooks import WebhookVerificationError

from stillreel.api.orders import token_of as run_token
from stillreel.api.services import Services
from stillreel.errors import ImageUnavailable
from stillreel.jobs import marks
from stillreel.jobs.reader import Snapshot
from stillreel.keys import output_key
from stillreel.notifications import (
    CRASH_REST,
    PAUSES,
    Deliveries,
    conclude,
    deliver,
    deliver_due,
    is_due,
)
from stillreel.owners import add_receiver, add_salt, new_salt, remove_receiver
from stillreel.settings import get_settings
from tests.api.conftest import Api
from tests.receiver import Receiver, answer, hang, receiver, redirect
from tests.stack import free_port

SECONDS = 30.0
OWNER = "default"
OTHER_SECRET = "whsec_" + b64encode(b"x" * 32).decode()


@dataclass(frozen=True)
class Control:
    """The API's own services, worked with in the API's own loop."""

    api: Api
    loop: asyncio.AbstractEventLoop

    @property
    def services(self) -> Services:
        return self.api.app.state.services

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def read(self, job_id: str) -> Snapshot:
        return self.run(self.services.reader.get(job_id, fresh=True))

    def label(self, job_id: str, **labels: Any) -> None:
        named = {getattr(marks, name): value for name, value in labels.items()}
        self.run(self.services.actions.label(self.read(job_id).record.run_id, named))

    def register(self, url: str, **how: bool) -> None:
        change = self.services.owners.change
        self.run(change(OWNER, lambda owner: add_receiver(owner, url, **how), "test"))

    def unregister(self, url: str) -> None:
        change = self.services.owners.change
        self.run(change(OWNER, lambda owner: remove_receiver(owner, url), "test"))

    def rotate(self) -> list[str]:
        """Both webhook secrets, the new one first."""
        owners = self.services.owners
        salt = new_salt(owners.secret, OWNER)
        self.run(owners.change(OWNER, lambda owner: add_salt(owner, salt), "test"))
        return self.run(owners.webhook_secrets(OWNER))

    def wait(self, job_id: str, status: str, *, attempts: int | None = None) -> dict[str, Any]:
        """The job, once its delivery is as wanted; the keeper works meanwhile."""
        job: dict[str, Any] = {}
        deadline = monotonic() + SECONDS
        while monotonic() < deadline:
            self.run(deliver_due(self.services))
            self.services.reader.forget(job_id)
            job = self.api.job(job_id)
            found = job["delivery"] or {}
            if found.get("status") == status and attempts in (None, found["attempts"]):
                return job
            Event().wait(0.1)
        raise AssertionError(f"not {status}: {job['status']} {job['delivery']}")

    def pass_time(self, job_id: str) -> None:
        """The next attempt is due now."""
        self.label(job_id, NEXT_ATTEMPT="")

    def cancelled(self, **values: Any) -> str:
        """The id of a job that was cancelled while it waited: the quickest of all ends."""
        job_id = self.api.submit(**values)["job_id"]
        assert self.api.client.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 200
        return job_id


def wait_for_requests(heard: Receiver, count: int) -> None:
    deadline = monotonic() + SECONDS
    while len(heard.requests) < count:
        assert monotonic() < deadline, f"{len(heard.requests)} requests, not {count}"
        Event().wait(0.05)


Listen = Callable[..., Receiver]


@pytest.fixture(scope="module")
def control(api: Api) -> Control:
    loops: list[asyncio.AbstractEventLoop] = []

    async def note() -> None:
        loops.append(asyncio.get_running_loop())

    api.app.add_api_route("/loop-of-this-app", note, include_in_schema=False)
    api.client.get("/loop-of-this-app").raise_for_status()
    return Control(api, loops[0])


@pytest.fixture(scope="module")
def secret(control: Control) -> str:
    return control.rotate()[0]


@pytest.fixture
def listen(control: Control, secret: str) -> Iterator[Listen]:
    """`listen(answer(500), answer(), plain=True)`: a registered receiver that answers so."""
    with ExitStack() as stack:

        def start(*answers: Any, host: str = "127.0.0.1", port: int = 0, **how: bool) -> Receiver:
            heard = stack.enter_context(receiver(*answers, host=host, port=port))
            control.register(heard.url, **how)
            stack.callback(control.unregister, heard.url)
            return heard

        yield start


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
    record = control.read(job_id).record
    assert marks.UNDELIVERED not in record.tags
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
    record = control.read(job_id).record
    assert marks.UNDELIVERED not in record.tags
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


def test_a_run_that_crashed_just_now_may_be_started_again_first(control: Control) -> None:
    record = control.read(control.api.submit()["job_id"]).record
    now = datetime.now(UTC)
    young = replace(record, state_type="CRASHED", state_at=now)
    old = replace(young, state_at=now - CRASH_REST)
    assert (is_due(young), is_due(old)) == (False, True)
    assert not is_due(replace(old, tags=()))


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
    assert marks.UNDELIVERED not in control.read(job_id).record.tags
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


# --- receivers with trouble ---------------------------------------------------------------------


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
    assert marks.UNDELIVERED not in control.read(job_id).record.tags
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
    assert 1 <= len(hanging.requests) <= 2
    assert not any(control.read(job_id).record.labels.get(marks.ATTEMPTS) for job_id in stuck)


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


# --- what hosts say -----------------------------------------------------------------------------


def token_of(control: Control, job_id: str) -> str:
    return str(control.read(job_id).record.labels[marks.TOKEN])


def say(control: Control, job_id: str, headers: dict[str, str], **body: Any) -> httpx.Response:
    said = {"job_id": job_id, "status": "completed", "video_url": "https://evil.example/a.mp4"}
    url = f"{control.api.url}/webhook/complete"
    return httpx.post(url, json=said | body, headers=headers, trust_env=False, timeout=30)


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
