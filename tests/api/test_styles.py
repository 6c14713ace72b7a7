"""Styles and camera words: listed for a form, taken at every door, refused with those there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client

from stillreel.client import Client
from stillreel.models.motions import MOTIONS
from stillreel.models.styles import get_styles
from tests.api.conftest import KEY, SMALL, Api, png, running_api
from tests.api.outside import assert_problem

ASKED = {"style": "noir", "camera": "slow pan left and tilt up"}
PATHS = ("/api/v1/generate", "/generate", "/v1/videos", "/api/v1/estimate")
SEPIA = """
[sepia]
title = "Sepia"
description = "Brown."
prompt = "{prompt} In brown."

[sepia.settings."wan-2.2"]
preset = "fast"
"""


def parameters(api: Api, job_id: str) -> dict[str, Any]:
    """The order as the job's run has it."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(api.job(job_id)["run_id"]).parameters


@pytest.fixture
def own_styles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> Iterator[Api]:
    """An API that offers all models, with a style of its operator's."""
    (tmp_path / "styles.toml").write_text(SEPIA)
    monkeypatch.setenv("STILLREEL_STYLES", str(tmp_path / "styles.toml"))
    with running_api({"STILLREEL_MODELS": "wan-2.2,ltx-2,preview"}) as running:
        yield running


def test_a_form_can_be_built_from_the_styles_and_motions(api: Api) -> None:
    found = api.client.get("/api/v1/styles").raise_for_status().json()
    assert [style["name"] for style in found["styles"]] == [*get_styles()]
    assert all(style["title"] and style["description"] for style in found["styles"])
    assert [motion["name"] for motion in found["motions"]] == [*MOTIONS]
    assert {motion["axis"] for motion in found["motions"]} >= {"all", "depth", "across", "up"}
    assert found["speeds"] == ["slow", "fast"]
    models = api.client.get("/api/v1/models").raise_for_status().json()["models"]
    assert {model["id"]: model["styles"] for model in models}["preview"] is False
    assert httpx.get(f"{api.url}/api/v1/styles", trust_env=False).status_code == 401


def test_every_name_that_is_listed_is_taken(api: Api) -> None:
    found = api.client.get("/api/v1/styles").json()
    orders = [{"style": style["name"]} for style in found["styles"]]
    orders += [{"camera": motion["name"]} for motion in found["motions"]]
    for order in orders:
        answer = api.client.post("/api/v1/estimate", json=SMALL | {"prompt": "x"} | order)
        assert answer.status_code == 200, (order, answer.text)


@pytest.mark.parametrize("path", PATHS[:3])
def test_every_door_takes_them_and_the_order_keeps_what_was_sent(api: Api, path: str) -> None:
    body = SMALL | {"prompt": "a boat"} | ASKED
    answer = api.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    job_id = answer.json().get("job_id") or answer.json()["id"]
    kept = parameters(api, job_id)
    assert {name: kept[name] for name in ASKED} == ASKED
    assert kept["prompt"] == "a boat"
    job = api.job(job_id)
    assert (job["style"], job["camera"]) == (ASKED["style"], ASKED["camera"])


def test_a_form_with_a_file_takes_them(api: Api) -> None:
    form = {name: str(value) for name, value in (SMALL | ASKED).items()}
    answer = api.client.post(
        "/api/v1/generate", data=form, files={"image": ("photo.png", png(), "image/png")}
    )
    assert answer.status_code == 200, answer.text
    kept = parameters(api, answer.json()["job_id"])
    assert {name: kept[name] for name in ASKED} == ASKED


def test_a_batch_takes_them_as_defaults_and_for_each_item(api: Api) -> None:
    items = [{"prompt": "a boat"}, {"prompt": "a hill", "camera": "static"}]
    body = {"items": [*items, {"prompt": "x", "style": "none"}], "defaults": SMALL | ASKED}
    results = api.client.post("/api/v1/batches", json=body).json()["results"]
    cameras = [parameters(api, result["job_id"])["camera"] for result in results[:2]]
    assert cameras == [ASKED["camera"], "static"]
    assert "no style 'none'" in results[2]["error"]["detail"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"style": "sepia"}, ("'sepia'", "cinematic", "leave style out")),
        ({"camera": "fly"}, ("'fly'", "static", "handheld")),
        ({"camera": "zoom in and dolly in"}, ("zoom in and dolly in exclude each other",)),
        ({"style": "s" * 41}, ("style",)),
        ({"camera": "c" * 101}, ("camera",)),
        ({"style": 7}, ("style",)),
    ],
    ids=["style", "camera", "two motions", "long style", "long camera", "number"],
)
def test_what_is_not_known_is_refused_with_what_is(
    api: Api, path: str, values: dict[str, Any], words: tuple[str, ...]
) -> None:
    answer = api.client.post(path, json=SMALL | {"prompt": "a boat"} | values)
    assert answer.status_code == 422
    assert all(word in answer.text for word in words)


def test_too_many_words_are_refused_before_a_job_is_made(own_styles: Api) -> None:
    body = {"prompt": "a" * 3995, "camera": "pan left", "model": "ltx-2"}
    answer = own_styles.client.post("/api/v1/generate", json=body)
    assert_problem(answer, 422, "4,000 are taken")


def test_a_style_of_the_operators_is_listed_taken_and_estimated_with_its_settings(
    own_styles: Api,
) -> None:
    listed = own_styles.client.get("/api/v1/styles").json()["styles"]
    assert listed[-1]["name"] == "sepia"
    body = {"prompt": "a boat", "style": "sepia"}
    told = own_styles.client.post("/api/v1/estimate", json=body | {"model": "wan-2.2"}).json()
    assert (told["preset"], told["steps"]) == ("fast", 3)
    answer = own_styles.client.post("/api/v1/generate", json=body | {"model": "wan-2.2"})
    kept = parameters(own_styles, answer.json()["job_id"])
    assert (kept["style"], kept["preset"]) == ("sepia", "")


def test_another_style_under_the_same_key_is_another_order(api: Api) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    body = SMALL | {"prompt": "a boat"}
    for values, status in (({}, 200), ({"style": None}, 200), ({"style": ""}, 200), (ASKED, 422)):
        answer = api.client.post("/api/v1/generate", json=body | values, headers=headers)
        assert answer.status_code == status, answer.text


def test_the_python_client_lists_and_sends_them(api: Api) -> None:
    with Client(api.url, KEY) as client:
        looks = client.styles()
        assert [style.name for style in looks.styles] == [*get_styles()]
        assert [motion.name for motion in looks.motions] == [*MOTIONS]
        job = client.submit("a boat", style="noir", camera="pan left", **SMALL)
        job = client.get(job.job_id)
    assert (job.style, job.camera) == ("noir", "pan left")


def test_a_job_that_is_made_says_what_the_preview_could_not_do(
    api: Api, inference_server: None
) -> None:
    job_id = api.submit(prompt="a boat", style="product", negative_prompt="ducks")["job_id"]
    assert api.execute(job_id).is_completed()
    said = api.job(job_id)["warnings"]
    assert ["only the camera: slow orbit right" in said[0], "pan right" in said[1]] == [True, True]
    assert "no use for a negative prompt" in said[2]
