"""From a photo to an MP4 by a video server elsewhere, also when the inference server is killed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import copy_context
from io import BytesIO
from itertools import pairwise
from threading import Thread
from typing import Any

import av
import pytest

from stillreel.errors import InferenceServerDied
from stillreel.host import inference_argv
from stillreel.inference.client import socket_path
from stillreel.job import Video
from stillreel.settings import get_settings
from stillreel.storage import Storage
from tests.video_server import KEY, VideoServer, make_film, video_server

from .conftest import SECONDS, new_job, read_json

StartHost = Callable[..., None]


@pytest.fixture
def start_host(monkeypatch: pytest.MonkeyPatch, prefect_api: None) -> Iterator[StartHost]:
    """`start_host(server)`: an inference server whose remote model is there; again: another one."""
    running: list[subprocess.Popen[bytes]] = []

    def stop() -> None:
        for process in running:
            process.kill()
            process.wait()

    def start(server: VideoServer, **options: str) -> None:
        stop()
        settings = {"URL": server.url, "KEY": KEY, "MODEL": "wan", "POLL_SECONDS": "0.1"}
        for name, value in (settings | options).items():
            monkeypatch.setenv(f"STILLREEL_REMOTE_{name}", value)
        socket = socket_path(get_settings().host.home, "remote")
        monkeypatch.setenv("STILLREEL_INFERENCE_SOCKET", str(socket))
        get_settings.cache_clear()
        running.append(subprocess.Popen(inference_argv(socket), stderr=subprocess.DEVNULL))

    yield start
    stop()


@pytest.fixture
def server() -> Iterator[VideoServer]:
    with ExitStack() as stack:
        film = make_film(160, 90, frames=13, sound=True)
        yield stack.enter_context(video_server(film=film))


def test_a_photo_becomes_a_video_by_a_server_elsewhere(
    server: VideoServer, start_host: StartHost, storage: Storage, image_key: str
) -> None:
    start_host(server, PRICE="0.25")
    job = new_job(model="remote", image_key=image_key, prompt="the sea", width=160, height=90)
    video = job.video()
    with av.open(BytesIO(storage.get_bytes(video.key)), "r") as movie:
        stream = movie.streams.video[0]
        grey = [frame.to_ndarray(format="gray").mean() for frame in movie.decode(stream)]
        assert (stream.width, stream.height, len(grey)) == (160, 90, 13)
        assert movie.streams.audio
        assert movie.metadata["comment"].count("model=remote-1:wan:") == 1
    assert all(later > sooner for sooner, later in pairwise(grey))
    receipt = read_json(storage, video.receipt_key)
    assert receipt["took"]["gpu_seconds"] == 0
    assert receipt["took"]["infer_seconds"]["remote"] > 0
    assert (receipt["cost"]["remote_usd"], receipt["cost"]["usd"]) == (0.25, 0.25)
    assert receipt["warnings"] == []
    assert server.only_job().image is not None


def test_an_inference_server_killed_in_the_middle_pays_nothing_twice(
    server: VideoServer, start_host: StartHost, storage: Storage
) -> None:
    server.steps = (("in_progress", 30),)
    start_host(server)
    job = new_job(model="remote", prompt="the sea", width=160, height=90)
    made: list[Any] = []
    work = Thread(target=copy_context().run, args=(lambda: made.append(job.execute()),))
    work.start()
    server.wait_for_calls("GET", "/video-1", 2)
    start_host(server)  # kill -9, and another one
    server.finish()
    work.join(SECONDS)
    assert not work.is_alive()
    assert isinstance(made[0].result(raise_on_failure=False), InferenceServerDied)
    video = job.execute().result()  # as the keeper starts it again
    assert isinstance(video, Video)
    assert len(server.of("POST", "/videos")) == 1
    assert server.of("DELETE") == []
    assert storage.head(video.key) is not None


def test_a_refusal_of_the_server_ends_the_job_with_its_reason(
    server: VideoServer, start_host: StartHost
) -> None:
    server.says = {"error": {"code": "moderation_blocked", "message": "Not this."}}
    server.creates = [400]
    start_host(server)
    state = new_job(model="remote", prompt="the sea").execute()
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert error.code == "content_refused"
    assert "Not this." in error.message
    assert len(server.of("POST", "/videos")) == 1


def test_without_a_server_the_job_fails_with_what_to_set(
    start_host: StartHost, server: VideoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_host(server, URL="", KEY="", MODEL="", POLL_SECONDS="")
    state = new_job(model="remote", prompt="the sea").execute()
    error = state.result(raise_on_failure=False)
    assert error.code == "model_unavailable"
    assert "STILLREEL_REMOTE_URL" in error.message
