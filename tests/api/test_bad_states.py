"""What a job's state forbids gets a clear error; the same call twice, or at once, is one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.states import Running

from tests.api.calls import ABOUT_A_JOB, PNG_BASE64, at_once, cancel
from tests.api.conftest import Api
from tests.api.outside import assert_problem, stored

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


def set_running(api: Api, job_id: str) -> None:
    run_id = UUID(api.job(job_id)["run_id"])
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Running(), force=True)
    api.forget()


def test_deleting_a_job_that_runs_cancels_it_first(api: Api) -> None:
    """For callers it is gone at once; its files go when its host has stopped."""
    job_id = api.submit(image_base64=PNG_BASE64)["job_id"]
    set_running(api, job_id)
    told = api.client.delete(f"/api/v1/jobs/{job_id}")
    assert (told.status_code, told.json()["status"]) == (202, "deleting")
    for method, path in ABOUT_A_JOB:
        if method != "DELETE":
            again = api.client.request(method, path.format(job_id))
            assert_problem(again, 410, "deleted")
    assert job_id not in api.client.get("/api/v1/jobs?limit=100").text


def test_deleting_twice(api: Api) -> None:
    job_id = api.submit(image_base64=PNG_BASE64)["job_id"]
    assert cancel(api, job_id).is_success
    assert api.client.delete(f"/api/v1/jobs/{job_id}").is_success
    assert stored(api, job_id) == []
    again = api.client.delete(f"/api/v1/jobs/{job_id}")
    if not again.is_success:  # the same as once is as good
        assert_problem(again, (404, 410), "deleted")
    assert_problem(api.client.get(f"/api/v1/jobs/{job_id}"), 410, "deleted")


def test_cancelling_twice_is_the_same_as_once(api: Api) -> None:
    job_id = api.submit()["job_id"]
    first, second = cancel(api, job_id), cancel(api, job_id)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["status"] == second.json()["status"] == "cancelled"
    assert first.json()["ended_at"] == second.json()["ended_at"]


def test_cancelling_twenty_times_at_one_instant(api: Api) -> None:
    for _ in range(5):
        job_id = api.submit()["job_id"]
        told = at_once(api, 20, f"/api/v1/jobs/{job_id}/cancel", lambda _: None)
        assert {response.status_code for response in told} == {200}
        assert {response.json()["status"] for response in told} == {"cancelled"}


def test_retrying_ten_times_at_one_instant_opens_one_round(api: Api) -> None:
    job_id = api.submit()["job_id"]
    assert cancel(api, job_id).is_success
    told = at_once(api, 10, f"/api/v1/jobs/{job_id}/retry", lambda _: None)
    for response in told:
        if response.status_code != 200:
            assert_problem(response, 409, "ended")
    assert any(response.status_code == 200 for response in told)
    api.forget()
    assert (api.job(job_id)["status"], api.job(job_id)["round"]) == ("queued", 2)


def test_deleting_ten_times_at_one_instant(api: Api) -> None:
    job_id = api.submit(image_base64=PNG_BASE64)["job_id"]
    assert cancel(api, job_id).is_success
    with ThreadPoolExecutor(10) as pool:
        told = list(pool.map(lambda _: api.client.delete(f"/api/v1/jobs/{job_id}"), range(10)))
    for response in told:
        if not response.is_success:
            assert_problem(response, (404, 410), "deleted")
    assert any(response.is_success for response in told)
    assert stored(api, job_id) == []


def test_what_is_too_late_for_a_completed_job(api: Api, inference_server: None) -> None:
    job_id = api.submit()["job_id"]
    assert api.execute(job_id).is_completed()
    assert_problem(cancel(api, job_id), 409, "completed")
    assert_problem(api.client.post(f"/api/v1/jobs/{job_id}/retry"), 409, "completed")
    asked = {"job_id": job_id, "content_type": "image/png"}
    assert_problem(api.client.post("/api/v1/presign/upload", json=asked), 409, "completed")
    job = api.job(job_id)
    assert job["status"] == "completed"
    assert httpx.get(job["result_url"], trust_env=False).status_code == 200


def test_what_is_too_early_for_a_waiting_job(api: Api) -> None:
    job_id = api.submit()["job_id"]
    assert_problem(api.client.get(f"/api/v1/presign/download/{job_id}"), 409, "queued")
    assert_problem(api.client.post(f"/api/v1/jobs/{job_id}/retry"), 409, "queued")
    assert_problem(api.client.post(f"/api/v1/jobs/{job_id}/redeliver"), 409)
    assert api.job(job_id)["status"] == "queued"


def test_events_of_a_job_that_has_ended_end_too(api: Api) -> None:
    job_id = api.submit()["job_id"]
    assert cancel(api, job_id).is_success
    headers = {"Accept": "text/event-stream"}
    with api.client.stream("GET", f"/api/v1/jobs/{job_id}/events", headers=headers) as stream:
        assert stream.status_code == 200, stream.read()
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = "".join(stream.iter_text())
    assert "cancelled" in text
    last = text.rstrip().rpartition("id:")[2].partition("\n")[0].strip()
    assert last
    with api.client.stream(
        "GET", f"/api/v1/jobs/{job_id}/events", headers=headers | {"Last-Event-ID": last}
    ) as again:
        assert again.status_code in (200, 204)
        again.read()


@pytest.mark.parametrize("last", ["", "x", "-1", "9" * 100, "\u00e9", "0"], ids=repr)
def test_a_last_event_id_that_is_none(api: Api, last: str) -> None:
    job_id = api.submit()["job_id"]
    assert cancel(api, job_id).is_success
    told = api.client.get(
        f"/api/v1/jobs/{job_id}/events", headers=[(b"Last-Event-ID", last.encode("latin-1"))]
    )
    if told.status_code == 200:
        assert "cancelled" in told.text
    else:
        assert_problem(told, (400, 422), "Last-Event-ID")
