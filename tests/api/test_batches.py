"""Batches: each item stands for itself, and a key makes each of them once."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest
import stamina

from stillreel.job import JobStatus
from tests.api.calls import upload
from tests.api.conftest import SMALL, Api, png
from tests.api.outside import another_owner, assert_problem, prefect_behind_a_door, stored

PATH = "/api/v1/batches"


def prompts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"slow zoom in, number {start + n}"} for n in range(count)]


def send(client: httpx.Client, items: list[Any], key: str = "", **defaults: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(PATH, json={"items": items, "defaults": SMALL | defaults}, headers=headers)


def order(api: Api, items: list[Any], key: str = "", **defaults: Any) -> dict[str, Any]:
    """What is answered to a batch of which at least one item is a job."""
    answer = send(api.client, items, key, **defaults)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [result["job_id"] for result in answer["results"]]


def codes(answer: dict[str, Any]) -> list[str]:
    """The code of each item's error; empty for a job."""
    return [result.get("error", {}).get("code", "") for result in answer["results"]]


# --- orders -------------------------------------------------------------------------------------


def test_a_hundred_jobs_are_ordered_in_one_call(api: Api) -> None:
    key = str(uuid4())
    # A busy SQLite may drop a bulk create for longer than a caller waits.
    for attempt in stamina.retry_context(on=AssertionError, attempts=5):
        with attempt:
            made = order(api, prompts(100), key, model="preview")
            assert (made["created"], made["failed"]) == (100, 0)
    assert [r["index"] for r in made["results"]] == list(range(100))
    assert {r["status"] for r in made["results"]} == {"queued"}
    assert len(set(ids(made))) == 100
    view = api.client.get(f"{PATH}/{made['batch_id']}").json()
    assert view["total"] == view["counts"]["queued"] == 100
    place = made["results"][42]
    job = api.job(place["job_id"])
    assert (job["prompt"], job["batch_id"]) == ("slow zoom in, number 42", made["batch_id"])
    assert job["duration"] == SMALL["duration"]


def test_a_bad_item_says_why_and_the_others_are_made(api: Api) -> None:
    items: list[Any] = [
        {"prompt": "good"},
        {"prompt": "wide", "width": "very"},
        {"prompt": "unknown", "colour": "red"},
        {},
        {"prompt": "good too", "model": "preview"},
        {"prompt": "no such model", "model": "sora"},
        "a text",
        {"image_base64": "!!!"},
        {"image_url": "http://127.0.0.1/image.png"},
        None,
    ]
    made = order(api, items)
    assert (made["created"], made["failed"]) == (2, 8)
    assert codes(made) == [
        "",
        "request_rejected",
        "request_rejected",
        "request_rejected",
        "",
        "model_unavailable",
        "request_rejected",
        "image_rejected",
        "address_refused",
        "request_rejected",
    ]
    errors = [result.get("error", {}) for result in made["results"]]
    assert errors[1]["errors"][0]["pointer"] == "#/items/1/width"
    assert errors[2]["errors"][0]["pointer"] == "#/items/2/colour"
    assert errors[6]["errors"][0]["pointer"] == "#/items/6"
    for error in filter(None, errors):
        assert error["status"] in (422,)
        assert error["instance"] == PATH
        assert error["detail"]
    view = api.client.get(f"{PATH}/{made['batch_id']}").json()
    assert {job["job_id"] for job in view["jobs"]} == {made["results"][n]["job_id"] for n in (0, 4)}


def test_a_batch_of_bad_items_is_a_problem_with_all_the_reasons(api: Api) -> None:
    problem = assert_problem(send(api.client, [{}, {"prompt": 5}]), 422, "results")
    assert (problem["created"], problem["failed"]) == (0, 2)
    assert codes(problem) == ["request_rejected", "request_rejected"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"items": []}, "items"),
        ({}, "items"),
        ({"items": "many"}, "items"),
        ({"items": [{"prompt": "x"}], "color": 1}, "color"),
        ({"items": [{"prompt": "x"}], "defaults": {"width": "very"}}, "defaults.width"),
        ({"items": [{"prompt": "x"}], "defaults": {"job_id": "job_abcdefgh"}}, "job_id"),
        ({"items": prompts(101)}, "100"),
        ([], "object"),
        (None, "JSON object"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(api: Api, body: Any, says: str) -> None:
    problem = assert_problem(api.client.post(PATH, json=body), 422)
    assert says in json.dumps(problem)


def test_the_largest_batch_is_a_setting(start_api: Callable[..., Api]) -> None:
    api = start_api(STILLREEL_BATCH_MAX="2")
    assert order(api, prompts(2))["created"] == 2
    assert_problem(send(api.client, prompts(3)), 422, "2 items at most", "has 3")


def test_an_items_own_values_go_before_the_defaults(api: Api) -> None:
    image = base64.b64encode(png()).decode()
    items = [{}, {"seed": 1, "prompt": None}, {"image_base64": image, "prompt": "with image"}]
    made = order(api, items, prompt="of all", seed=9)
    jobs = [api.job(job_id) for job_id in ids(made)]
    assert [job["prompt"] for job in jobs] == ["of all", "of all", "with image"]
    assert [job["seed"] for job in jobs] == [9, 1, 9]
    assert [len(stored(api, job_id)) for job_id in ids(made)] == [0, 0, 1]


def test_an_upload_is_good_for_one_item(api: Api) -> None:
    job_id = upload(api, png())
    item = {"job_id": job_id}
    made = order(api, [item, item, {"prompt": "another"}])
    assert codes(made) == ["", "job_id_used", ""]
    assert made["results"][0]["job_id"] == job_id


def test_wrong_keys_order_nothing(api: Api) -> None:
    body = {"items": prompts(1)}
    assert_problem(api.client.post(PATH, json=body, headers={"Authorization": "Bearer x"}), 401)
    with another_owner(api, scopes=("read",)) as reader:
        assert_problem(reader.post(PATH, json=body), 403)
        assert_problem(reader.post(f"{PATH}/batch_{'a' * 24}/cancel"), 403)


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image_{}", "image[{}]"])
def test_a_form_carries_an_image_for_each_item(api: Api, name: str) -> None:
    pictures = [png(160, 90), png(320, 180)]
    files = {name.format(n): (f"{n}.png", data, "image/png") for n, data in enumerate(pictures)}
    items = [{"prompt": "pan left"}, {}, {"prompt": "no image"}]
    data = {"items": json.dumps(items), "defaults": json.dumps(SMALL)}
    made = api.client.post(PATH, data=data, files=files).json()
    assert (made["created"], made["failed"]) == (3, 0)
    for n, job_id in enumerate(ids(made)):
        kept = [api.storage.get_bytes(key) for key in stored(api, job_id)]
        assert kept == pictures[n : n + 1]


def test_a_form_of_images_alone_is_a_batch(api: Api) -> None:
    files = {f"image_{n}": ("x.png", png(), "image/png") for n in range(3)}
    files["image_3"] = ("x.png", b"no image", "image/png")
    made = api.client.post(PATH, data={"defaults": json.dumps(SMALL)}, files=files).json()
    assert codes(made) == ["", "", "", "image_rejected"]


@pytest.mark.parametrize(
    ("fields", "file", "says"),
    [
        ({"items": "[{}]"}, "image_1", "image_1"),
        ({"items": "[{}]"}, "picture", "image_0"),
        ({"items": "[{"}, "image_0", "items"),
        ({"defaults": "[]"}, "image_0", "defaults"),
        ({"prompt": "x"}, "image_0", "prompt"),
        ({}, "image_100", "100"),
        ({}, "", "items"),
    ],
)
def test_a_form_that_is_no_batch_is_refused(
    api: Api, fields: dict[str, str], file: str, says: str
) -> None:
    files: dict[str, Any] = {file: ("x.png", png(), "image/png")} if file else {}
    files = files or {"defaults": (None, "{}")}
    problem = assert_problem(api.client.post(PATH, data=fields, files=files), 422)
    assert says in json.dumps(problem)


def test_images_that_are_too_much_for_a_body_are_to_be_uploaded(
    start_api: Callable[..., Api],
) -> None:
    api = start_api(STILLREEL_BODY_MAX_BYTES="20000")
    image = base64.b64encode(bytes(20_000)).decode()
    assert_problem(send(api.client, [{"image_base64": image}]), 413, "presign/upload")


# --- once only ----------------------------------------------------------------------------------


def test_a_replay_gives_the_same_jobs(api: Api) -> None:
    key = str(uuid4())
    first = send(api.client, prompts(3), key)
    again = send(api.client, prompts(3), key)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert first.headers["location"] == f"{PATH}/{first.json()['batch_id']}"
    assert set(ids(order(api, prompts(3), str(uuid4())))).isdisjoint(ids(first.json()))
    assert set(ids(order(api, prompts(3)))).isdisjoint(ids(first.json()))


def test_a_replay_tells_how_the_jobs_are_now(api: Api) -> None:
    key = str(uuid4())
    made = order(api, prompts(2), key)
    api.client.post(f"/api/v1/jobs/{ids(made)[1]}/cancel")
    again = order(api, prompts(2), key)
    assert [r["status"] for r in again["results"]] == ["queued", "cancelled"]


def test_a_changed_item_is_refused_a_mended_and_a_new_one_are_made(api: Api) -> None:
    key = str(uuid4())
    good, bad = {"prompt": "good"}, {"prompt": "bad", "width": "very"}
    first = order(api, [good, bad, {"prompt": "third"}], key)
    mended = {"prompt": "bad no more"}
    again = send(api.client, [{"prompt": "changed"}, mended, {"prompt": "third"}, good], key)
    assert "idempotency-replayed" not in again.headers
    assert codes(again.json()) == ["idempotency_key_reused", "", "", ""]
    assert again.json()["results"][2] == first["results"][2]
    jobs = {r["job_id"] for a in (first, again.json()) for r in a["results"] if "job_id" in r}
    assert len(jobs) == 4
    problem = assert_problem(send(api.client, [{"prompt": "changed"}], key), 422)
    assert codes(problem) == ["idempotency_key_reused"]


def test_a_key_belongs_to_its_owner(api: Api) -> None:
    key = str(uuid4())
    made = order(api, prompts(1), key)
    with another_owner(api) as stranger:
        theirs = send(stranger, prompts(1), key).json()
    assert theirs["batch_id"] != made["batch_id"]
    assert ids(theirs) != ids(made)


def test_the_same_batch_at_the_same_instant_is_made_once(api: Api) -> None:
    key = str(uuid4())
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: order(api, prompts(5), key), range(4)))
    assert len({tuple(ids(answer)) for answer in answers}) == 1
    view = api.client.get(f"{PATH}/{answers[0]['batch_id']}").json()
    assert view["total"] == 5


def test_the_quota_holds_for_each_item(start_api: Callable[..., Api]) -> None:
    api = start_api(STILLREEL_JOBS_PER_DAY_MAX="1", STILLREEL_API_OWNER=f"o-{uuid4().hex[:8]}")
    assert order(api, prompts(1))["created"] == 1
    answer = send(api.client, prompts(2))
    problem = assert_problem(answer, 429)
    assert codes(problem) == ["quota_exceeded"] * 2
    assert int(answer.headers["retry-after"]) >= 1


# --- when Prefect is away -----------------------------------------------------------------------


def test_a_batch_that_broke_off_is_completed_by_the_same_key(
    prefect_api: str, start_api: Callable[..., Api]
) -> None:
    key = str(uuid4())
    with prefect_behind_a_door(prefect_api) as door:
        api = start_api(STILLREEL_PREFECT_SECONDS="1")
        first = order(api, prompts(2), key)
        door.shut()
        away = send(api.client, prompts(2), str(uuid4()))
        problem = assert_problem(away, 503)
        assert int(away.headers["retry-after"]) >= 1
        assert set(codes(problem)) == {"prefect_unavailable"}
        door.open()
        door.mute = True  # what is made now is made, and nobody is told
        partly = order(api, prompts(5), key)
        assert (partly["created"], partly["failed"]) == (2, 3)
        assert codes(partly) == ["", "", *["prefect_unavailable"] * 3]
        assert door.swallowed
        door.open()
        whole = send(api.client, prompts(5), key)
        assert whole.status_code == 200
        assert ids(whole.json())[:2] == ids(first)
        assert len(set(ids(whole.json()))) == 5
        view = api.client.get(f"{PATH}/{first['batch_id']}").json()
        assert view["total"] == 5


# --- the batch as it is -------------------------------------------------------------------------


def test_a_batch_is_read_by_status_and_page_by_page(api: Api, inference_server: None) -> None:
    made = order(api, prompts(5))
    path = f"{PATH}/{made['batch_id']}"
    api.client.post(f"/api/v1/jobs/{ids(made)[3]}/cancel")
    api.execute(ids(made)[0])
    found: list[str] = []
    cursor = ""
    while True:
        view = api.client.get(path, params={"limit": 2, "cursor": cursor}).json()
        assert view["total"] == 5
        assert view["counts"] == {str(status): 0 for status in JobStatus} | {
            "queued": 3,
            "completed": 1,
            "cancelled": 1,
        }
        assert len(view["jobs"]) <= 2
        found += [job["job_id"] for job in view["jobs"]]
        cursor = view["next_cursor"]
        if not cursor:
            break
    assert sorted(found) == sorted(ids(made))
    whole = api.client.get(path).json()
    assert whole["next_cursor"] is None
    (done,) = [job for job in whole["jobs"] if job["status"] == "completed"]
    assert done == api.job(done["job_id"]) | {name: done[name] for name in done if "url" in name}
    assert done["result_url"]
    assert_problem(api.client.get(path, params={"cursor": "x"}), 422, "cursor")


def test_cancelling_ends_what_has_not_ended(api: Api) -> None:
    made = order(api, prompts(4))
    api.client.post(f"/api/v1/jobs/{ids(made)[0]}/cancel")
    for _ in range(2):
        answer = api.client.post(f"{PATH}/{made['batch_id']}/cancel")
        assert answer.status_code == 200
        counts = Counter(job["status"] for job in answer.json()["jobs"])
        assert counts == {"cancelled": 4}
        assert answer.json()["counts"]["cancelled"] == 4


@pytest.mark.parametrize(
    "batch_id", ["batch_" + "a" * 24, "batch_", "x", "a" * 10_000, "..%2F..", "%00", "batch_%F0"]
)
def test_a_batch_that_is_not_there_is_unknown(api: Api, batch_id: str) -> None:
    assert_problem(api.client.get(f"{PATH}/{batch_id}"), 404)
    assert_problem(api.client.post(f"{PATH}/{batch_id}/cancel"), 404)


def test_another_owners_batch_is_unknown(api: Api) -> None:
    made = order(api, prompts(1))
    with another_owner(api) as stranger:
        assert_problem(stranger.get(f"{PATH}/{made['batch_id']}"), 404)
        assert_problem(stranger.post(f"{PATH}/{made['batch_id']}/cancel"), 404)
        theirs = send(stranger, prompts(1)).json()
        assert stranger.get(f"{PATH}/{theirs['batch_id']}").json()["total"] == 1
    assert api.job(ids(made)[0])["status"] == "queued"
