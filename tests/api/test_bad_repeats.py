"""The same order twice is one job; another order under its key is told so."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.api.calls import GENERATE, PNG_BASE64, ask_upload, at_once, put
from tests.api.conftest import SMALL, Api, png
from tests.api.outside import another_owner, assert_problem, count_runs

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


@pytest.mark.parametrize("path", GENERATE)
def test_twenty_times_the_same_order_at_one_instant(api: Api, path: str) -> None:
    body = SMALL | {"prompt": "once", "image_base64": PNG_BASE64}
    told = at_once(api, 20, path, lambda _: body, **{"Idempotency-Key": f'"{uuid4()}"'})
    assert {response.status_code for response in told} == {200}
    ids = {response.json()["job_id"] for response in told}
    assert len(ids) == 1
    assert count_runs(ids.pop()) == 1
    replayed = [response.headers.get("Idempotency-Replayed") for response in told]
    assert (replayed.count("true"), replayed.count(None)) == (19, 1)


def test_two_orders_under_one_key_at_one_instant(api: Api) -> None:
    """One of them is made, and the others are told."""
    told = at_once(
        api,
        10,
        "/generate",
        lambda n: SMALL | {"prompt": f"cat {n}"},
        **{"Idempotency-Key": str(uuid4())},
    )
    made = [response for response in told if response.status_code == 200]
    assert len(made) == 1
    for response in told:
        if response is not made[0]:
            assert_problem(response, 422, "Idempotency-Key")
    assert count_runs(made[0].json()["job_id"]) == 1


def test_twenty_orders_for_one_upload_at_one_instant(api: Api) -> None:
    target = ask_upload(api, content_type="image/png")
    assert put(target, png()).is_success
    told = at_once(
        api,
        20,
        "/api/v1/generate",
        lambda n: SMALL | {"prompt": f"cat {n}", "job_id": target["job_id"]},
    )
    made = [response for response in told if response.status_code == 200]
    assert len(made) == 1
    for response in told:
        if response is not made[0]:
            assert_problem(response, 409, "job_id")
    assert count_runs(target["job_id"]) == 1


@pytest.mark.parametrize("key", ["", '""', "k" * 256, "a\tb", '"half'], ids=repr)
def test_an_idempotency_key_that_is_none(api: Api, key: str) -> None:
    told = api.client.post("/generate", json={"prompt": "x"}, headers={"Idempotency-Key": key})
    assert_problem(told, (400, 422), "Idempotency-Key", "255")


def test_keys_of_two_owners_do_not_meet(api: Api) -> None:
    headers, body = {"Idempotency-Key": str(uuid4())}, {"prompt": "x"}
    one = api.client.post("/generate", json=body, headers=headers).json()
    with another_owner(api) as other:
        two = other.post("/generate", json=body, headers=headers)
    assert two.status_code == 200
    assert two.json()["job_id"] != one["job_id"]
