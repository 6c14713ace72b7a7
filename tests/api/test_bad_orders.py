"""Bad orders get a clear error that points at each field, and nothing is lost."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.calls import GENERATE, JSON, PNG_BASE64, order
from tests.api.conftest import Api
from tests.api.outside import UNKNOWN_ID, assert_problem

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 17),
        ("prompt", ["a"]),
        ("prompt", {"a": 1}),
        ("image_url", 17),
        ("image_base64", ["x"]),
        ("duration", "long"),
        ("duration", [5]),
        ("width", "wide"),
        ("width", 12.5),
        ("width", -2),
        ("seed", -2),
        ("seed", 2**70),
        ("fps", 1000),
        ("fps", -1),
        ("steps", 100_000),
        ("codec", "vp8"),
        ("quality", "best"),
        ("audio", "perhaps"),
        ("priority", "now"),
        ("deadline", "tomorrow"),
        ("deadline", "2026-11-21T00:00:00"),
        ("webhook_url", 17),
        ("job_id", 17),
        ("preset", "p" * 1000),
        ("colour", "red"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_field_of_the_wrong_kind_is_pointed_at(api: Api, field: str, value: object) -> None:
    problem = assert_problem(order(api, **{field: value}), 422, field)
    assert f"#/{field}" in [mistake["pointer"] for mistake in problem["errors"]]


def test_all_wrong_fields_are_named_at_once(api: Api) -> None:
    problem = assert_problem(order(api, width="wide", fps=-1, colour="red"), 422)
    assert {mistake["pointer"] for mistake in problem["errors"]} == {"#/width", "#/fps", "#/colour"}


@pytest.mark.parametrize("path", ["/generate", "/api/v1/presign/upload", "/api/v1/estimate"])
def test_a_million_wrong_fields_stand_in_nobodys_way(api: Api, earlier_job: str, path: str) -> None:
    """24 MB are allowed, and one event loop is all there is."""
    fields = ",".join(f'"f{n}":1' for n in range(1_900_000))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            api.client.post, path, content=f"{{{fields}}}", headers=JSON, timeout=120
        )
        while not answer.done():
            api.client.get(f"/api/v1/jobs/{earlier_job}", timeout=15).raise_for_status()
    assert_problem(answer.result(), (413, 422), "field")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": "sora"}, ("sora", "preview")),
        ({"model": "m" * 10_000}, ("model", "40")),
        ({"preset": "turbo"}, ("turbo", "standard")),
        ({"width": 2, "height": 2}, ("2x2", "16", "4096")),
        ({"width": 4096, "height": 14}, ("4096x14", "16")),
        ({"fps": 23}, ("23", "24")),
        ({"image_url": "https://8.8.8.8/a.png", "image_base64": PNG_BASE64}, ("keep one",)),
        ({"image_url": "https://8.8.8.8/a.png", "job_id": UNKNOWN_ID}, ("keep one",)),
        ({"prompt": ""}, ("image", "prompt")),
        ({"prompt": "   "}, ("image", "prompt")),
        ({"prompt": None}, ("image", "prompt")),
        ({"deadline": "2020-01-01T00:00:00Z"}, ("deadline", "future")),
        ({"deadline": "9999-01-01T00:00:00Z"}, ("deadline", "days")),
    ],
    ids=lambda values: repr(values)[:40],
)
def test_an_order_that_no_model_can_fulfil(
    api: Api, values: dict[str, Any], says: tuple[str, ...]
) -> None:
    assert_problem(order(api, **values), 422, *says)


def test_a_size_off_the_grid_is_refused_or_said(api: Api, inference_server: None) -> None:
    """A size is changed, if at all, with a word to the caller."""
    told = order(api, width=129, height=73)
    if told.status_code != 200:
        assert_problem(told, 422, "129", "73")
        return
    job_id = told.json()["job_id"]
    assert api.execute(job_id).is_completed()
    job = api.job(job_id)
    assert (job["video"]["width"], job["video"]["height"]) == (128, 72)
    assert "128x72 instead of 129x73" in " ".join(job["warnings"])


@pytest.mark.parametrize(
    "duration", ["-1", "0", "-0.0", "31", "1000000000", "1e999", "NaN", "Infinity", "-Infinity"]
)
@pytest.mark.parametrize("path", GENERATE)
def test_a_duration_out_of_bounds(api: Api, path: str, duration: str) -> None:
    """NaN and Infinity are no JSON, yet Python's and others' writers make them."""
    body = f'{{"prompt": "a cat", "duration": {duration}}}'
    problem = assert_problem(api.client.post(path, content=body, headers=JSON), (400, 422))
    assert "duration" in problem["detail"] or "JSON" in problem["detail"]
    if not math.isnan(float(duration)) and 0 < float(duration) < math.inf:
        assert "30" in problem["detail"]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ('"a\\u0000cat"', "NUL"),
        ('"half of \\ud83d"', "unicode"),
        ('"\\udc08 and the other"', "unicode"),
        (json.dumps("p" * 100_000), "4000"),
        (json.dumps("\U0001f408" * 4001), "4000"),
    ],
    ids=["NUL", "high surrogate", "low surrogate", "100 kB", "4001 cats"],
)
@pytest.mark.parametrize("path", GENERATE)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_text_that_cannot_be_kept(
    api: Api, path: str, field: str, prompt: str, says: str
) -> None:
    body = f'{{"{field}": {prompt}}}'
    assert_problem(api.client.post(path, content=body, headers=JSON), 422, field, says)


@pytest.mark.parametrize(
    "prompt",
    ["\U0001f408\u200d\U0001f680 auf dem Mond", "\u202egninraw", "Robert'); DROP TABLE jobs;--",
     "{{ secret }} ${HOME} %s", "line\nbreak\ttab", "\U0001f408" * 4000],
    ids=lambda prompt: prompt[:12],
)  # fmt: skip
def test_a_text_that_is_only_unusual_is_kept_as_it_is(api: Api, prompt: str) -> None:
    job_id = api.submit(prompt=prompt)["job_id"]
    assert api.job(job_id)["prompt"] == prompt
