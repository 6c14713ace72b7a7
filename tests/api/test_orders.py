"""Orders: what became a job is answered as one, and the same order again is the same job."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.settings import PREFECT_API_URL

from stillreel.jobs.places import Places
from stillreel.owner_store import OwnerStore
from stillreel.prefect_api import PrefectApi
from tests.api.background import eventually
from tests.api.calls import PNG_BASE64, upload
from tests.api.conftest import SMALL, Api, StartApi, png
from tests.api.outside import another_owner, assert_problem, count_runs, stored
from tests.receiver import Receiver, answer
from tests.stack import free_port

PATHS = ("/api/v1/generate", "/generate", "/v1/videos")


def order(
    client: httpx.Client, key: str = "", *, path: str = "/api/v1/generate", **values: Any
) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(path, json=SMALL | {"prompt": "a cat"} | values, headers=headers)


def assert_replayed(first: httpx.Response, again: httpx.Response) -> None:
    assert first.status_code == 200, first.text
    assert again.status_code == 200, again.text
    assert again.json()["job_id"] == first.json()["job_id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert count_runs(first.json()["job_id"]) == 1


# --- a job that is made is answered -----------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", [{}, {"Prefer": "wait=2"}], ids=str)
def test_an_order_that_was_made_is_answered_where_its_place_cannot_be_read(
    api: Api, path: str, headers: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error would have the caller order a second video."""
    away = PrefectApi(f"http://127.0.0.1:{free_port()}/api", patience=0.2)
    monkeypatch.setattr(api.app.state.services.reader, "_places", Places(away))
    made = api.client.post(path, json=SMALL | {"prompt": "a cat"}, headers=dict(headers))
    assert made.status_code == 200, made.text
    told = made.json()
    assert told["status"] == "queued"
    assert told.get("position") is None
    assert count_runs(told.get("job_id") or told["id"]) == 1


def test_who_waits_with_the_second_document_is_told_in_its_words(api: Api) -> None:
    key = str(uuid4())
    job_id = order(api.client, key, path="/generate").json()["job_id"]
    assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    headers = {"Idempotency-Key": key, "Prefer": "wait=5"}
    body = SMALL | {"prompt": "a cat"}
    told = api.client.post("/generate", json=body, headers=headers).json()
    assert (told["job_id"], told["status"], told["video_url"]) == (job_id, "failed", None)
    assert told["error"]
    assert "result_url" not in told
    assert told.keys() >= api.client.get(f"/status/{job_id}").json().keys()


# --- the same order again ---------------------------------------------------------------------


def test_a_replay_after_the_deadline_is_the_same_job(api: Api) -> None:
    key, deadline = str(uuid4()), datetime.now(UTC) + timedelta(seconds=3)
    first = order(api.client, key, deadline=deadline.isoformat())
    for attempt in eventually():
        with attempt:
            assert datetime.now(UTC) > deadline
    assert_problem(order(api.client, str(uuid4()), deadline=deadline.isoformat()), 422, "deadline")
    assert_replayed(first, order(api.client, key, deadline=deadline.isoformat()))


def test_a_replay_to_a_receiver_that_is_refused_now_is_the_same_job(
    api: Api, start_api: StartApi
) -> None:
    with Receiver((answer(),)) as server:
        key, url = str(uuid4()), f"{server.url}end"
        allowing = start_api(STILLREEL_ALLOW_ADDRESSES=f"127.0.0.1:{server.port}")
        first = order(allowing.client, key, webhook_url=url)
    assert_problem(order(api.client, str(uuid4()), webhook_url=url), 422)
    assert_replayed(first, order(api.client, key, webhook_url=url))


@pytest.mark.parametrize("named", [{}, {"model": "preview"}], ids=["default", "named"])
def test_a_replay_of_a_model_that_is_offered_no_more_is_the_same_job(
    api: Api, start_api: StartApi, named: dict[str, str]
) -> None:
    key, without = str(uuid4()), start_api(STILLREEL_MODELS="ltx-2")
    first = order(api.client, key, **named)
    assert_problem(order(without.client, str(uuid4()), **named), 422, "ltx-2")
    assert_replayed(first, order(without.client, key, **named))


def test_a_replay_with_a_priority_that_was_taken_away_is_the_same_job(api: Api) -> None:
    key = str(uuid4())

    async def lower(name: str) -> None:
        prefect = PrefectApi(str(PREFECT_API_URL.value()), patience=30.0)
        try:
            store = OwnerStore(prefect, api.settings)
            await store.change(
                name, lambda owner: owner.model_copy(update={"ceiling": "backlog"}), "owner.lowered"
            )
        finally:
            await prefect.aclose()

    with another_owner(api) as client:
        first = order(client, key, priority="default")
        asyncio.run(lower(api.job(first.json()["job_id"])["owner"]))
        for attempt in eventually():  # the API knows owners that are seconds old
            with attempt:
                assert order(client, str(uuid4()), priority="default").status_code == 403
        assert_replayed(first, order(client, key, priority="default"))


# --- uploads under a key ----------------------------------------------------------------------


def test_an_upload_is_ordered_once_under_its_key(api: Api) -> None:
    key, job_id = str(uuid4()), upload(api, png())
    first = order(api.client, key, job_id=job_id)
    assert_replayed(first, order(api.client, key, job_id=job_id))
    for again in ({"key": ""}, {"key": str(uuid4())}, {"key": key, "prompt": "a dog"}):
        assert_problem(order(api.client, job_id=job_id, **again), 409, "job_id")


def test_a_key_that_an_order_has_takes_no_upload(api: Api) -> None:
    key, job_id = str(uuid4()), upload(api, png())
    assert order(api.client, key).status_code == 200
    assert_problem(order(api.client, key, job_id=job_id), 422, "Idempotency-Key")
    assert count_runs(job_id) == 0


@pytest.mark.parametrize("image", ["base64", "upload"])
def test_the_image_of_a_job_that_has_its_own_is_not_replaced(api: Api, image: str) -> None:
    given = {"image_base64": PNG_BASE64} if image == "base64" else {"job_id": upload(api, png())}
    job_id = order(api.client, **given).json()["job_id"]
    body = {"content_type": "image/png", "job_id": job_id}
    problem = assert_problem(api.client.post("/api/v1/presign/upload", json=body), 409)
    assert problem["code"] == "job_id_used"


# --- what is refused leaves nothing -----------------------------------------------------------


def test_an_order_over_the_quota_leaves_no_image(api: Api, start_api: StartApi) -> None:
    job_id = api.submit(image_base64=PNG_BASE64)["job_id"]
    full = start_api(STILLREEL_JOBS_WAITING_MAX="1")
    before = {info.key for info in full.storage.list("inputs/")}
    for _ in range(3):
        assert_problem(order(full.client, image_base64=PNG_BASE64), 429)
    assert {info.key for info in full.storage.list("inputs/")} == before
    assert len(stored(api, job_id)) == 1


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 401), ({"Authorization": "Bearer guessed"}, 413)], ids=str
)
def test_nothing_large_is_parsed_for_somebody_unknown(
    api: Api, headers: dict[str, str], status: int
) -> None:
    body = {"job_id": "job_abcdefgh", "error": "x" * 100_000}
    told = httpx.post(
        f"{api.url}/webhook/complete", json=body, headers=headers, timeout=30, trust_env=False
    )
    assert_problem(told, status)


def test_a_flood_of_unknown_fields_is_one_mistake(api: Api) -> None:
    told = api.client.post("/api/v1/generate", json={f"field{n}": n for n in range(100)})
    assert "errors" not in assert_problem(told, 422, "60 fields")
