"""What can be ordered, and what it would take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.background import eventually, prefect_client
from tests.api.conftest import SMALL, Api, running_api


def models(api: Api) -> dict[str, dict[str, Any]]:
    answer = api.client.get("/api/v1/models")
    assert answer.status_code == 200, answer.text
    return {item["id"]: item for item in answer.json()["models"]}


def estimate(api: Api, **values: Any) -> dict[str, Any]:
    answer = api.client.post("/api/v1/estimate", json=values)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def every_model(prefect_api: str) -> Iterator[Api]:
    """An API that offers all three models, whatever code this installation has."""
    with running_api({"STILLREEL_MODELS": "ltx-2,wan-2.2,preview"}) as running:
        yield running


def test_a_form_can_be_built_from_the_models(every_model: Api) -> None:
    found = models(every_model)
    assert list(found) == ["ltx-2", "wan-2.2", "preview"]
    wan, ltx = found["wan-2.2"], found["ltx-2"]
    assert wan["sizes"]["only"] == [{"width": 1280, "height": 704}, {"width": 704, "height": 1280}]
    assert [preset["name"] for preset in wan["presets"]] == ["standard", "fast"]
    assert (ltx["audio"], ltx["sizes"]["grid"], ltx["fps"]) == (True, 64, [24, 25, 30])
    assert [size["height"] for size in ltx["sizes"]["suggested"]] == [720, 1080, 1440, 2160]
    assert ltx["durations"] == {"default": 5.0, "max": 30.0, "native": 20.0}
    assert wan["durations"]["native"] == wan["durations"]["max"] == 5.0
    assert (ltx["default"], wan["default"]) == (True, False)
    assert all(m["image_to_video"] and m["text_to_video"] for m in found.values())
    assert found["preview"]["codecs"] == ["h264", "av1"]
    assert ltx["typical"]["source"] == "spec"
    assert ltx["typical"]["seconds"]["low"] == pytest.approx(25, rel=0.02)


def test_every_size_duration_and_rate_that_is_named_is_taken(every_model: Api) -> None:
    for name, model in models(every_model).items():
        order = {
            "model": name,
            **model["sizes"]["default"],
            "duration": model["durations"]["max"],
            "fps": model["fps"][-1],
            "preset": model["presets"][-1]["name"],
        }
        assert estimate(every_model, **order)["model"] == name


@pytest.fixture
def host(api: Api, prefect_api: str) -> Iterator[None]:
    """A host of the pool `local` that has just given a sign of life."""
    workers = "/work_pools/local/workers"
    with prefect_client(prefect_api) as prefect:
        beat = {"name": "test-host", "heartbeat_interval_seconds": 30}
        prefect.post(f"{workers}/heartbeat", json=beat).raise_for_status()
        as_new(api)
        yield
        prefect.delete(f"{workers}/test-host").raise_for_status()
    as_new(api)


def as_new(api: Api) -> None:
    """As a minute later."""
    estimates = api.app.state.services.estimates
    estimates._read_at = float("-inf")
    estimates._hosts.clear()


def test_a_model_is_not_available_without_a_host(api: Api) -> None:
    assert models(api)["preview"]["available"] is False


def test_a_model_is_available_when_a_host_is_there(api: Api, host: None) -> None:
    found = models(api)["preview"]
    assert (found["available"], found["hosts_online"]) == (True, 1)


def test_a_waiting_job_has_an_eta_when_something_was_learned(
    api: Api, host: None, inference_server: None
) -> None:
    assert api.execute(api.submit()["job_id"]).is_completed()
    as_new(api)
    first, second = (api.submit()["job_id"] for _ in range(2))
    for attempt in eventually():
        with attempt:  # learned in the background, so the first answers may lack it
            etas = [api.job(job_id)["eta_seconds"] for job_id in (first, second)]
            assert None not in etas
    assert 0 <= etas[0] <= etas[1]
    for job_id in (first, second):
        api.client.post(f"/api/v1/jobs/{job_id}/cancel")
        assert api.job(job_id)["eta_seconds"] is None


def test_any_key_may_ask_and_nobody_else(api: Api) -> None:
    for method, path in (("GET", "/api/v1/models"), ("POST", "/api/v1/estimate")):
        answer = httpx.request(method, f"{api.url}{path}", json={"prompt": "x"}, trust_env=False)
        assert answer.status_code == 401


def test_an_estimate_is_learned_from_finished_jobs(api: Api, inference_server: None) -> None:
    before = estimate(api, **SMALL, prompt="pan left")
    job_id = api.submit(prompt="pan left")["job_id"]
    assert api.execute(job_id).is_completed()
    as_new(api)
    after = estimate(api, **SMALL, prompt="pan left")
    assert after["source"] == "learned"
    assert after["samples"] > (before["samples"] if before["source"] == "learned" else 0)
    seconds = after["seconds"]
    assert 0 < seconds["low"] <= seconds["likely"] <= seconds["high"]
    assert (after["width"], after["height"], after["frames"]) == (128, 72, 13)


def test_an_estimate_makes_no_job(api: Api) -> None:
    before = api.client.get("/api/v1/queue/stats").json()["pending_jobs"]
    position = estimate(api, prompt="x")["queue"]["position"]
    assert position >= 1
    assert api.client.get("/api/v1/queue/stats").json()["pending_jobs"] == before


def test_the_wait_is_unknown_without_a_host(api: Api) -> None:
    queue = estimate(api, prompt="x")["queue"]
    assert (queue["hosts_online"], queue["seconds"]) == (0, None)


@pytest.mark.parametrize(
    "order",
    [
        {"duration": 1000},
        {"model": "no-such-model"},
        {"prompt": "x", "width": 8, "height": 8},
        {"fps": 23},
        {"surprise": 1},
        {"preset": "slow"},
    ],
)
def test_an_order_that_would_be_refused_has_no_estimate(api: Api, order: dict[str, Any]) -> None:
    assert api.client.post("/api/v1/estimate", json=order).status_code == 422
