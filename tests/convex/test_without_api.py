"""A Convex action starts a video through Prefect's own API, on a real server with a password."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import stamina

from tests.convex.conftest import Deploy, Deployment
from tests.stack import env_of, free_port

USER, PASSWORD = "admin", "a-pass-word"
AUTH = f"{USER}:{PASSWORD}"
START_SECONDS = 180


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a Prefect server that wants a password, with our deployments."""
    home, port = tmp_path_factory.mktemp("guarded"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = env_of(home) | {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"],
        env=env | {"PREFECT_SERVER_API_AUTH_STRING": AUTH},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=url, auth=(USER, PASSWORD), trust_env=False) as client:
            _wait_for(client)
            subprocess.run(
                [sys.executable, "-m", "stillreel.cli", "deploy"],
                env=env | {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": AUTH},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            yield client
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def app(deploy: Deploy, prefect: httpx.Client) -> Deployment:
    url = str(prefect.base_url)
    return deploy("without_api", PREFECT_API_URL=url, PREFECT_API_AUTH_STRING=AUTH)


def started(app: Deployment, status: str, **parameters: Any) -> tuple[str, dict[str, Any]]:
    """The id of a video and its row, once it is as wanted."""
    video_id = app.mutation("videos:create", parameters=parameters)
    for attempt in stamina.retry_context(on=AssertionError, timeout=60, attempts=None):
        with attempt:
            video = app.query("videos:get", videoId=video_id)
            assert video["status"] == status, video
    return video_id, video


def test_a_run_is_made_under_the_rows_id(app: Deployment, prefect: httpx.Client) -> None:
    video_id, video = started(app, "queued", prompt="slow zoom in", duration=2)
    run = prefect.get(f"/flow_runs/{video['runId']}").raise_for_status().json()
    assert run["idempotency_key"] == video_id
    assert (run["parameters"]["prompt"], run["parameters"]["duration"]) == ("slow zoom in", 2)
    assert run["state_type"] == "SCHEDULED"


def test_started_again_it_is_the_same_run(app: Deployment, prefect: httpx.Client) -> None:
    video_id, video = started(app, "queued", prompt="pan left")
    app.action("videos:start", videoId=video_id, attempt=1)
    assert app.query("videos:get", videoId=video_id)["runId"] == video["runId"]
    same = {"flow_runs": {"idempotency_key": {"any_": [video_id]}}}
    assert prefect.post("/flow_runs/count", json=same).raise_for_status().json() == 1


def test_parameters_that_do_not_fit_are_a_conflict(app: Deployment) -> None:
    _, video = started(app, "failed", prompt="slow zoom in", duration="long")
    assert "duration" in video["error"]
    assert "runId" not in video


def test_a_wrong_password_is_said_and_not_shown(deploy: Deploy, prefect: httpx.Client) -> None:
    url, wrong = str(prefect.base_url), "admin:not-this-one"
    app = deploy("without_api", PREFECT_API_URL=url, PREFECT_API_AUTH_STRING=wrong)
    _, video = started(app, "failed", prompt="slow zoom in")
    assert "PREFECT_API_AUTH_STRING" in video["error"]
    assert "not-this-one" not in video["error"]


def _wait_for(client: httpx.Client) -> None:
    for attempt in stamina.retry_context(
        on=httpx.TransportError, timeout=START_SECONDS, attempts=None, wait_max=1.0
    ):
        with attempt:
            client.get("/health").raise_for_status()
