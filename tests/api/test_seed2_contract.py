"""The second design document, as a client sees it who has nothing else."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import av
import httpx
import pytest

from tests.api.conftest import KEY, Api, StartApi, png
from tests.api.outside import image_server, work_with
from tests.receiver import Receiver, answer

HEADERS = {"X-API-Key": KEY}
HOUR = 3600


def generate(api: Api, **body: Any) -> dict[str, Any]:
    response = httpx.post(
        f"{api.url}/generate", headers=HEADERS, json=body, timeout=60, trust_env=False
    )
    assert response.is_success, response.text
    return response.json()


def status(api: Api, job_id: str) -> dict[str, Any]:
    response = httpx.get(f"{api.url}/status/{job_id}", headers=HEADERS, trust_env=False)
    assert response.status_code == 200, response.text
    assert response.json()["job_id"] == job_id
    return response.json()


def assert_queued(made: dict[str, Any]) -> None:
    assert isinstance(made["job_id"], str)
    assert made["status"] == "queued"
    assert type(made["position"]) is int
    assert made["position"] >= 1


def test_health_has_the_documents_fields_and_needs_no_key(api: Api) -> None:
    health = httpx.get(f"{api.url}/health", trust_env=False)
    assert health.status_code == 200
    told = health.json()
    assert told["status"] == "ok"
    # No live host: nobody knows of a GPU, and no model is loaded.
    assert told["gpu"] is None
    assert told["model_loaded"] is False


def test_a_prompt_alone_is_an_order(api: Api) -> None:
    made = generate(api, prompt="A cat dancing on the moon")
    assert_queued(made)
    told = status(api, made["job_id"])
    assert told["status"] == "queued"
    assert told["video_url"] is None
    assert told["error"] is None


def test_positions_count_up(api: Api) -> None:
    first, second = generate(api, prompt="one"), generate(api, prompt="two")
    assert second["position"] == first["position"] + 1


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_an_image_may_be_sent_as_base64(
    api: Api, inference_server: None, tmp_path: Path, prefix: str
) -> None:
    text = prefix + base64.b64encode(png()).decode()
    made = generate(api, prompt="A cat dancing on the moon", image_base64=text)
    assert_queued(made)


def test_an_image_may_be_named_by_its_address(
    start_api: StartApi,
    inference_server: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the order to the video, as long and as large as the document's client gets it."""
    with image_server(png()) as (url, pair):
        api = start_api(STILLREEL_ALLOW_ADDRESSES=pair)
        made = generate(api, prompt="A cat dancing on the moon", image_url=url)
        assert_queued(made)
        with work_with(monkeypatch, STILLREEL_ALLOW_ADDRESSES=pair):
            assert api.execute(made["job_id"]).is_completed()
    told = status(api, made["job_id"])
    assert (told["status"], told["error"]) == ("completed", None)
    ends = int(parse_qs(urlsplit(told["video_url"]).query)["expires"][0])
    assert HOUR - 120 < ends - time.time() <= HOUR + 1
    path = tmp_path / "video.mp4"
    path.write_bytes(httpx.get(told["video_url"], timeout=60, trust_env=False).content)
    with av.open(str(path)) as video:
        assert video.streams.video[0].frames > 24


def test_a_failed_job_says_why(
    start_api: StartApi, inference_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver((answer(404),)) as server:
        pair = f"127.0.0.1:{server.port}"
        api = start_api(STILLREEL_ALLOW_ADDRESSES=pair)
        made = generate(api, prompt="A cat", image_url=f"{server.url}gone.png")
        with work_with(monkeypatch, STILLREEL_ALLOW_ADDRESSES=pair):
            assert not api.execute(made["job_id"]).is_completed()
    told = status(api, made["job_id"])
    assert (told["status"], told["video_url"]) == ("failed", None)
    assert "404" in told["error"]
    assert "upload the image" in told["error"]


def test_a_cancelled_job_has_failed_in_the_documents_words(api: Api) -> None:
    job_id = generate(api, prompt="A cat")["job_id"]
    assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    told = status(api, job_id)
    assert told["status"] == "failed"
    assert told["error"]
    assert api.job(job_id)["status"] == "cancelled"


@pytest.mark.parametrize("path", ["/generate", "/status/abc123"])
@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"X-API-Key": "no"}], ids=str)
def test_without_the_key_there_is_nothing(api: Api, path: str, headers: dict[str, str]) -> None:
    method = "POST" if path == "/generate" else "GET"
    told = httpx.request(
        method, api.url + path, headers=headers, json={"prompt": "x"}, trust_env=False
    )
    assert told.status_code == 401
    assert isinstance(told.json()["error"], str)


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}])
def test_both_headers_are_taken(api: Api, headers: dict[str, str]) -> None:
    made = httpx.post(
        f"{api.url}/generate", headers=headers, json={"prompt": "x"}, timeout=60, trust_env=False
    )
    assert made.is_success
    told = httpx.get(f"{api.url}/status/{made.json()['job_id']}", headers=headers, trust_env=False)
    assert told.is_success
    unknown = httpx.get(f"{api.url}/status/abc123", headers=headers, trust_env=False)
    assert unknown.status_code == 404
    assert isinstance(unknown.json()["error"], str)
