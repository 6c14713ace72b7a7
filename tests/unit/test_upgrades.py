"""Jobs wait across releases: what one release has written, the next one reads, and the reverse."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from flows.generate_video import generate_video
from stillreel.api.views import job_view
from stillreel.execution import Execution
from stillreel.job import LATER, Clip, JobSpec, JobStatus, Latents, Prepared, Video, spec_of
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.record import record_of
from stillreel.settings import get_settings
from tasks.cache_keys import VERSIONS, host_task_key, task_key
from tests.releases import RELEASES, read, result

each_release = pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
NEWEST = RELEASES[-1]
RUN_ID = "5e8e5c4c-1a55-4b5c-8f0f-0d8f4c3b2a19"


@each_release
@pytest.mark.parametrize("name", ["queued", "broken", "completed"])
def test_an_order_of_an_earlier_release_is_one_of_today(release: Path, name: str) -> None:
    parameters = read(release / f"{name}_run.json")["parameters"]
    validate(parameters, parameter_schema(generate_video).model_dump_for_openapi())
    spec = spec_of(parameters)
    assert {key: getattr(spec, key) for key in parameters} == parameters
    assert spec.model_dump(exclude_defaults=True).keys() <= parameters.keys()


def test_an_order_of_today_runs_on_a_host_of_the_release_before() -> None:
    """Its flow would end over a parameter that it does not know: hosts are upgraded last."""
    known = read(NEWEST / "queued_run.json")["parameters"].keys()
    assert JobSpec(prompt="zoom").to_parameters().keys() == known
    assert set(JobSpec.model_fields) - known == set(LATER)
    assert JobSpec(style="noir").to_parameters().keys() == known | {"style"}


@each_release
def test_results_of_an_earlier_release_are_read(release: Path) -> None:
    prepared, latents = (result(release, f"broken_{name}") for name in ("fetch_image", "infer"))
    assert isinstance(prepared, Prepared)
    assert isinstance(latents, Latents)
    assert isinstance(result(release, "broken_encode"), Clip)
    assert isinstance(result(release, "completed_upload"), Video)
    assert prepared.source
    digest = prepared.shot.digest(prepared.source.sha256)
    assert latents.key.endswith(f"/{digest}.safetensors"), "its latents are found by this"


def test_results_of_a_later_release_are_read_too() -> None:
    """A host of this release may take over from one that is a release ahead."""
    later = result(NEWEST, "broken_infer").to_json() | {"came_later": 1}
    assert Latents.model_validate(later) == result(NEWEST, "broken_infer")


@each_release
def test_a_job_that_ended_under_an_earlier_release_is_told_as_it_was(release: Path) -> None:
    record = record_of(read(release / "completed_run.json"))
    receipt = read(release / "completed_receipt.json")
    status = record.status(has_receipt=True)
    snapshot = Snapshot(record, status, read_at=0.0, receipt=receipt)
    view = job_view(snapshot, get_settings().storage, url=lambda key, _: key, eta=lambda _: None)
    assert (view["status"], view["seed"], view["attempt"]) == ("completed", 7, 1)
    assert view["video"]["sha256"] == receipt["video"]["sha256"]
    assert view["delivery"]["status"] == "none"


@each_release
def test_a_job_that_broke_off_under_an_earlier_release_is_tried_again(release: Path) -> None:
    record = record_of(read(release / "broken_run.json"))
    assert record.is_broken_off
    assert record.status(has_receipt=False) is JobStatus.PROCESSING
    waiting = record_of(read(release / "queued_run.json"))
    assert waiting.status(has_receipt=False) is JobStatus.QUEUED
    assert waiting.deadline


@pytest.fixture
def on_gpu_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_HOST_NAME", "gpu-1")
    get_settings.cache_clear()


@pytest.mark.usefixtures("on_gpu_1")
def test_the_keys_of_finished_tasks_are_those_of_the_release_before() -> None:
    """Another key is another start of the task in every job that is half done at an upgrade.

    Where the meaning of a result has changed, raise the task's number in tasks/cache_keys.py, and
    write the new keys here. Nothing else may change one.
    """
    assert keys_of(result(NEWEST, "completed_fetch_image")) == KEYS
    assert len(KEYS) == len(VERSIONS)


@pytest.mark.usefixtures("on_gpu_1")
def test_a_field_that_comes_later_changes_no_key() -> None:
    class LaterSpec(JobSpec):
        came_later: str = ""

    prepared = result(NEWEST, "completed_fetch_image")
    assert keys_of(prepared, LaterSpec) == KEYS
    assert keys_of(prepared, LaterSpec, came_later="x")[0] != KEYS[0]


KEYS = [
    f"fetch-image-2-{RUN_ID}-c867c43bd7cf0229f9a9e17fe3f7f0f1",
    f"infer-2-{RUN_ID}-5d89d3495ba3640a033ca48b076d0d12",
    f"encode-2-{RUN_ID}-a7c73404fa3d787dbd10dd98a18a4b5b-gpu-1",
    f"upload-2-{RUN_ID}-a7c73404fa3d787dbd10dd98a18a4b5b",
    f"notify-2-{RUN_ID}-89f1a1695140fb8274c52228fae272d3",
]


def keys_of(prepared: Prepared, kind: type[JobSpec] = JobSpec, **values: Any) -> list[str]:
    """The keys of the five tasks of a job."""
    spec = kind.model_validate(read(NEWEST / "completed_run.json")["parameters"] | values)
    execution = Execution(RUN_ID, "job_4hhvh2lpkrbffjoegqw7oym7f3djogxa57ayjxch", 1)
    latents, video = result(NEWEST, "completed_infer"), result(NEWEST, "completed_upload")
    begin: dict[str, Any] = {"execution": execution, "spec": spec}
    inputs: dict[str, dict[str, Any]] = {
        "fetch-image": {"job_id": execution.job_id, "spec": spec},
        "infer": begin | {"prepared": prepared},
        "encode": begin | {"prepared": prepared, "latents": latents},
        "upload": begin | {"prepared": prepared, "latents": latents, "clip": None},
        "notify": begin | {"video": video},
    }
    keys: list[str] = []
    for name, parameters in inputs.items():
        context: Any = SimpleNamespace(
            task=SimpleNamespace(name=name), task_run=SimpleNamespace(flow_run_id=RUN_ID)
        )
        key_of = host_task_key if name == "encode" else task_key
        keys.append(key_of(context, parameters))
    return keys
