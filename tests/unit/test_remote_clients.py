"""The video server of these tests as official clients see it, and our orders beside theirs."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
import replicate
from replicate.exceptions import ReplicateError

from stillreel.models.registry import get_model, load_backend
from stillreel.settings import InferenceSettings
from tests.fake_backend import make_shot
from tests.video_server import KEY, VideoServer, make_film, video_server

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

PNG = b"\x89PNG\r\n\x1a\n-not-looked-at-here"
ORDER: dict[str, Any] = {"prompt": "a lake", "model": "sora-2", "seconds": "4", "size": "1280x720"}


@pytest.fixture
def server() -> Iterator[VideoServer]:
    with video_server() as running:
        yield running


@pytest.fixture
def openai_client(server: VideoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def replicate_client(server: VideoServer) -> replicate.Client:
    return replicate.Client(api_token=KEY, base_url=server.url.removesuffix("/v1"))


def ours(server: VideoServer, prompt: str, **options: Any) -> None:
    """One order by our backend."""
    values = {"remote_url": server.url, "remote_key": KEY, "remote_poll_seconds": 0.1, **options}
    backend = load_backend(get_model("remote"), InferenceSettings.model_validate(values))
    size = {"width": 1280, "height": 720, "crop_width": 1280, "crop_height": 720}
    shot = make_shot(prompt, model="remote", frames=97).model_copy(update=size)
    backend.generate(shot, None, lambda *_: None)


def test_openais_client_makes_a_video_here(
    server: VideoServer, openai_client: openai.OpenAI
) -> None:
    made = openai_client.videos.create(**ORDER, input_reference=("image.png", PNG, "image/png"))
    assert (made.status, made.object) == ("queued", "video")
    assert server.only_job().image == PNG
    done = openai_client.videos.poll(made.id, poll_interval_ms=10)
    assert (done.status, done.progress) == ("completed", 100)
    assert openai_client.videos.download_content(made.id).read() == server.film
    assert openai_client.videos.delete(made.id).deleted


def test_openais_client_sees_a_failure_and_a_refusal(
    server: VideoServer, openai_client: openai.OpenAI
) -> None:
    server.steps, server.error = (("failed", 10),), {"code": "moderation_blocked", "message": "No."}
    made = openai_client.videos.create(**ORDER)
    failed = openai_client.videos.poll(made.id, poll_interval_ms=10)
    assert failed.error
    assert failed.error.code == "moderation_blocked"
    server.creates.append(429)
    with pytest.raises(openai.RateLimitError, match="As it was told"):
        openai_client.videos.create(**ORDER)
    with pytest.raises(openai.UnprocessableEntityError):
        openai_client.videos.create(**{**ORDER, "size": "large"})
    with pytest.raises(openai.NotFoundError):
        openai_client.videos.retrieve("video_unknown")


def test_we_order_as_openais_client_does(server: VideoServer, openai_client: openai.OpenAI) -> None:
    openai_client.videos.create(**ORDER)
    plain = {"remote_parameters": {"fps": None, "seed": None}}
    ours(server, "a lake", remote_model="sora-2", **plain)
    theirs, own = server.jobs.values()
    assert own.fields == theirs.fields
    calls = server.of("POST", "/v1/videos")
    kinds = [call.headers["content-type"].partition(";")[0] for call in calls]
    assert kinds == ["multipart/form-data"] * 2


def test_replicates_client_makes_a_video_here(
    server: VideoServer, replicate_client: replicate.Client, tmp_path: Path
) -> None:
    made = replicate_client.predictions.create(
        model="owner/name", input={"prompt": "a lake", "image": BytesIO(PNG)}
    )
    assert made.status == "starting"
    assert server.files == {"f1": PNG}
    while made.status not in ("succeeded", "failed", "canceled"):
        made.reload()
    assert made.status == "succeeded"
    assert made.output == f"{server.url}/films/1"
    server.steps = (("in_progress", 0),)
    other = replicate_client.predictions.create(version="v1", input={"prompt": "a sea"})
    other.cancel()
    other.reload()
    assert other.status == "canceled"


def test_replicates_client_sees_a_failure_and_a_refusal(
    server: VideoServer, replicate_client: replicate.Client
) -> None:
    server.steps, server.error = (("failed", 0),), "out of memory"
    made = replicate_client.predictions.create(model="owner/name", input={})
    made.reload()
    assert (made.status, made.error) == ("failed", "out of memory")
    server.creates.append(402)
    with pytest.raises(ReplicateError) as caught:
        replicate_client.predictions.create(model="owner/name", input={})
    assert caught.value.status == 402


@pytest.mark.parametrize("model", ["owner/name", "deployments/owner/name", "owner/name:v1"])
def test_we_order_as_replicates_client_does(
    server: VideoServer, replicate_client: replicate.Client, model: str
) -> None:
    given = {"prompt": "a lake"}
    if model.startswith("deployments/"):
        name = model.removeprefix("deployments/")
        replicate_client.deployments.predictions.create(name, input=given)
    elif ":" in model:
        replicate_client.predictions.create(version=model, input=given)
    else:
        replicate_client.models.predictions.create(model, input=given)
    ours(server, "a lake", remote_shape="replicate", remote_model=model)
    theirs, own = [call for call in server.calls if call.method == "POST"]
    assert own.path == theirs.path
    jobs = list(server.jobs.values())
    assert jobs[0].fields == jobs[1].fields


def test_a_film_of_the_tests_is_one_that_plays() -> None:
    assert make_film()[4:8] == b"ftyp"
