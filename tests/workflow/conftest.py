"""A real Prefect server, a real inference server and jobs that are small and quick."""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, FlowRun, State, TaskRun
from prefect.flow_engine import run_flow
from prefect.states import Pending
from prefect.testing.utilities import prefect_test_harness

from stillreel.host import inference_argv
from stillreel.inference.client import InferenceClient, socket_path
from stillreel.inference.entry import Kind
from stillreel.job import Video, job_id_of
from stillreel.settings import get_settings
from stillreel.storage import Storage, open_storage

SECONDS = 60.0
SMALL: dict[str, Any] = {"width": 128, "height": 72, "duration": 0.5, "seed": 7}


def png(width: int = 160, height: int = 90) -> bytes:
    """A picture that is not one colour."""
    buffer = BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Job:
    """One flow run of generate-video, which may be executed again and again."""

    run_id: UUID
    job_id: str

    def execute(self) -> State[Any]:
        """Work on the run in this process, as the engine of a worker does."""
        from flows.generate_video import generate_video

        with get_client(sync_client=True) as client:
            client.set_flow_run_state(self.run_id, Pending(), force=True)
            run = client.read_flow_run(self.run_id)
        state = run_flow(
            generate_video, flow_run=run, parameters=run.parameters, return_type="state"
        )
        assert isinstance(state, State)
        return state

    def video(self) -> Video:
        """Execute it; it must complete."""
        video = self.execute().result()
        assert isinstance(video, Video)
        return video

    @property
    def run(self) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.run_id)

    def task_runs(self, count: int) -> list[TaskRun]:
        """All task runs by start, once `count` of them have ended: Prefect stores them late."""
        runs: list[TaskRun] = []
        deadline = monotonic() + SECONDS
        while monotonic() < deadline:
            with get_client(sync_client=True) as client:
                runs = client.read_task_runs(flow_run_filter=self._filter())
            ended = [run for run in runs if run.state and run.state.is_final()]
            if len(ended) >= count:
                return sorted(ended, key=lambda run: str(run.expected_start_time))
            Event().wait(0.1)
        raise AssertionError(f"only {[(run.name, run.state_name) for run in runs]}")

    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts of the run by the first word of their key."""
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(
                artifact_filter=ArtifactFilter(), flow_run_filter=self._filter()
            )
        return {str(artifact.key).partition("-")[0]: artifact for artifact in found}

    def _filter(self) -> FlowRunFilter:
        return FlowRunFilter(id=FlowRunFilterId(any_=[self.run_id]))


MakeJob = Callable[..., Job]


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=280):
        yield


@pytest.fixture(scope="session")
def inference_server() -> Iterator[None]:
    """One for all jobs of these tests, in the home that tests/conftest.py made."""
    get_settings.cache_clear()
    settings = get_settings()
    process = subprocess.Popen(
        inference_argv(socket_path(settings.host.home)), stderr=subprocess.DEVNULL
    )
    yield
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def collect_sockets() -> Iterator[None]:
    """Where connecting to a unix socket fails, httpcore 1.0 leaves closing to the collector."""
    yield
    gc.collect()


@pytest.fixture
def storage() -> Storage:
    settings = get_settings()
    return open_storage(settings.storage, settings.host.home)


@pytest.fixture
def image_key(storage: Storage) -> str:
    """The key of a small stored picture."""
    storage.put_bytes("inputs/test/picture.png", png(), content_type="image/png")
    return "inputs/test/picture.png"


@pytest.fixture
def make_job(prefect_api: None, inference_server: None) -> MakeJob:
    """`make_job(prompt="zoom")` is a small job that has not been worked on."""
    return new_job


def new_job(**values: Any) -> Job:
    """The same, for fixtures that live longer; they need `prefect_api` and `inference_server`."""
    from flows.generate_video import generate_video

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(generate_video, parameters=SMALL | values, state=Pending())
    return Job(run.id, job_id_of(run.id, run.idempotency_key))


def read_json(storage: Storage, key: str) -> dict[str, Any]:
    """A stored JSON object."""
    return json.loads(storage.get_bytes(key))


def work_dir(job: Job) -> Path:
    """Where this host keeps the files of a job."""
    return get_settings().host.work_dir / job.job_id


def block_outputs(job: Job) -> Path:
    """Make every upload of this job fail for good, until the returned file is deleted."""
    root = get_settings().host.home / "storage" / "outputs"
    root.mkdir(parents=True, exist_ok=True)
    (root / job.job_id).write_text("in the way")
    return root / job.job_id


def forget_inference(job: Job) -> bool:
    """Have the inference server forget the inference of this job; whether it knew it."""
    client = InferenceClient(socket_path(get_settings().host.home), wait_for_server=SECONDS)
    try:
        known = client.find(Kind.INFERENCE, str(job.run_id)) is not None
        client.cancel(Kind.INFERENCE, str(job.run_id))
        return known
    finally:
        client.close()
