"""stillreel by stillreel: the remote model of one host orders from the API of another."""

from __future__ import annotations

import json
from contextvars import copy_context
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from stillreel.errors import InferenceCancelled
from stillreel.job import Phase
from stillreel.models.base import Generated, Resumable
from stillreel.models.registry import get_model, load_backend
from stillreel.settings import InferenceSettings
from tests.api.conftest import KEY, Api
from tests.fake_backend import make_shot

SECONDS = 240.0
SHOT = make_shot("slow zoom in", model="remote", frames=25).model_copy(
    update={"width": 128, "height": 72, "crop_width": 128, "crop_height": 72, "steps": 100}
)


class Ordered:
    """A shot that the remote model has made, in a thread, by this API."""

    def __init__(self, api: Api, note: Path, **options: Any) -> None:
        values = {"remote_url": f"{api.url}/v1", "remote_key": KEY, "remote_model": "preview"}
        settings = InferenceSettings.model_validate(
            {**values, "remote_idempotent": True, "remote_poll_seconds": 0.2, **options}
        )
        backend = load_backend(get_model("remote"), settings)
        assert isinstance(backend, Resumable)
        self.backend = backend
        self.note = note
        self.cancelled = False
        self.ticked = Event()
        self.made: list[Generated | Exception] = []
        self.thread = Thread(target=copy_context().run, args=(self._work,))
        self.thread.start()

    def on_step(self, phase: Phase, step: int, steps: int) -> None:  # noqa: ARG002 - of the port
        if self.cancelled:
            raise InferenceCancelled
        self.ticked.set()

    def job_id(self) -> str:
        """What the API calls the order, once this host has noted it."""
        while True:
            assert self.ticked.wait(SECONDS)
            self.ticked.clear()
            if self.note.exists() and (found := json.loads(self.note.read_bytes())["remote_id"]):
                return found

    def end(self) -> Generated | Exception:
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        return self.made[0]

    def _work(self) -> None:
        image = Image.linear_gradient("L").resize((128, 72)).convert("RGB")
        try:
            self.made.append(self.backend.resume(SHOT, image, self.on_step, self.note))
        except Exception as exc:
            self.made.append(exc)


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """Of a job that no other test has: the name is what the key of the order is made of."""
    return tmp_path / f"job_{uuid4().hex}" / "digest.note.json"


def ids(api: Api) -> set[str]:
    return {video["id"] for video in api.client.get("/v1/videos?limit=100").json()["data"]}


def test_our_own_api_makes_the_film(api: Api, inference_server: None, note: Path) -> None:
    before = ids(api)
    order = Ordered(api, note)
    job_id = order.job_id()
    assert api.execute(job_id).is_completed()
    made = order.end()
    assert isinstance(made, Generated), made
    assert made.warnings == ()
    stored = api.client.get(f"/v1/videos/{job_id}/content").content
    assert made.arrays["video"].tobytes() == stored
    decoded = order.backend.decode(SHOT, made.arrays)
    assert (decoded.width, decoded.height, decoded.frames) == (128, 72, 25)
    assert sum(len(chunk) for chunk in decoded.chunks) == 25
    found = Ordered(api, note).end()  # by the note of a finished order
    assert isinstance(found, Generated), found
    assert ids(api) - before == {job_id}


def test_the_same_order_from_another_host_is_the_same_job(
    api: Api, inference_server: None, note: Path, tmp_path: Path
) -> None:
    before = ids(api)
    here = Ordered(api, note)
    job_id = here.job_id()
    there = Ordered(api, tmp_path / "other-host" / note.parent.name / note.name)
    assert api.execute(job_id).is_completed()
    made, found = here.end(), there.end()
    assert isinstance(made, Generated), made
    assert isinstance(found, Generated), found
    assert made.arrays["video"].tobytes() == found.arrays["video"].tobytes()
    assert ids(api) - before == {job_id}


def test_a_cancel_here_ends_the_job_there(api: Api, note: Path) -> None:
    order = Ordered(api, note)
    job_id = order.job_id()
    order.cancelled = True
    assert isinstance(order.end(), InferenceCancelled)
    api.forget()
    assert api.client.get(f"/v1/videos/{job_id}").status_code in (404, 410)


def test_what_our_api_refuses_is_told_in_its_words(api: Api, note: Path) -> None:
    order = Ordered(api, note, remote_model="no-such-model")
    error = order.end()
    assert getattr(error, "code", "") == "remote_refused"
    assert "no-such-model" in str(error)
    refused = Ordered(api, note, remote_key="wrong").end()
    assert getattr(refused, "code", "") == "remote_account_refused"
