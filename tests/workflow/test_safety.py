"""The operator's safety check inside a job: when it is asked, and what its answers do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from stillreel.errors import ContentRefused, StillreelError
from stillreel.job import JobStatus
from stillreel.jobs.record import error_of_record, record_of
from stillreel.safety import SafetyUnavailable
from stillreel.settings import get_settings
from stillreel.storage import Storage
from tests.receiver import Answer, Exchange, Receiver, answer, receiver

from .conftest import Job, MakeJob, forget_inference, work_dir

ALLOW = answer(body=b'{"allow": true}')
REFUSE = answer(body=b'{"allow": false, "reason": "no cats here"}')
BUSY = answer(503)

Listen = Callable[..., Receiver]


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    """`listen(ALLOW, REFUSE)` is the operator's endpoint, which answers in this order."""
    open_ones: list[Receiver] = []

    def start(*answers: Answer) -> Receiver:
        endpoint = receiver(*answers).__enter__()
        open_ones.append(endpoint)
        monkeypatch.setenv("STILLREEL_SAFETY_URL", endpoint.url)
        get_settings.cache_clear()
        return endpoint

    yield start
    for endpoint in open_ones:
        endpoint.__exit__(None, None, None)


def asked(endpoint: Receiver) -> list[str]:
    return [json.loads(request.body)["when"] for request in endpoint.requests]


def failure(job: Job) -> StillreelError:
    """The error of an execution that fails."""
    state = job.execute()
    assert state.is_failed(), state
    error = state.result(raise_on_failure=False)
    assert isinstance(error, StillreelError)
    return error


def told(job: Job) -> tuple[str, str]:
    """Code and text as a caller is told them."""
    return error_of_record(record_of(job.run.model_dump(mode="json")), JobStatus.FAILED)


def outputs(storage: Storage, job: Job) -> list[str]:
    return [info.key for info in storage.list(f"outputs/{job.job_id}/")]


def test_it_is_asked_before_inference_and_after_encoding_and_once_only(
    make_job: MakeJob, listen: Listen, image_key: str
) -> None:
    endpoint = listen(ALLOW)
    job = make_job(image_key=image_key, prompt="a cat", owner="acme")
    video = job.video()
    assert asked(endpoint) == ["before", "after"]
    before, after = (json.loads(request.body) for request in endpoint.requests)
    for question in (before, after):
        assert (question["job_id"], question["owner"]) == (job.job_id, "acme")
        assert (question["prompt"], question["model"]) == ("a cat", "preview")
    assert before["image_base64"]
    assert (after["width"], after["height"]) == (video.width, video.height)
    assert after["frames_base64"]
    assert job.video() == video
    assert asked(endpoint)[2:] == ["after"]  # its files were gone; the inference was not repeated


def test_what_is_refused_before_never_touches_the_gpu(
    make_job: MakeJob, listen: Listen, storage: Storage
) -> None:
    endpoint = listen(REFUSE)
    job = make_job(prompt="a cat")
    error = failure(job)
    assert isinstance(error, ContentRefused)
    assert told(job) == ("content_refused", error.message)
    assert error.message.endswith("no cats here")
    assert asked(endpoint) == ["before"], "a refusal is not asked again"
    assert not forget_inference(job)
    assert not list(storage.list(f"latents/{job.job_id}/"))


def test_of_what_is_refused_after_nothing_is_stored(
    make_job: MakeJob, listen: Listen, storage: Storage
) -> None:
    endpoint = listen(ALLOW, REFUSE)
    job = make_job(prompt="a cat")
    assert isinstance(failure(job), ContentRefused)
    assert told(job)[0] == "content_refused"
    assert asked(endpoint) == ["before", "after"]
    assert outputs(storage, job) == []


def test_an_endpoint_that_is_away_for_a_moment_costs_no_video_and_no_work(
    make_job: MakeJob, listen: Listen
) -> None:
    job = make_job(prompt="a cat")
    seen: list[list[tuple[str, int]]] = []

    def look(then: Answer) -> Answer:
        def act(exchange: Exchange) -> None:
            seen.append([path.stat() for path in sorted(work_dir(job).glob("clip-*.mp4"))])
            then(exchange)

        return act

    endpoint = listen(BUSY, ALLOW, look(BUSY), look(ALLOW))
    job.video()
    assert asked(endpoint) == ["before", "before", "after", "after"]
    first, second = seen
    assert first
    assert first == second
    runs = {run.name.partition("-")[0]: run.run_count for run in job.task_runs(5)}
    assert runs == {"fetch": 1, "infer": 2, "encode": 2, "upload": 1, "notify": 1}


def test_without_an_answer_the_job_fails_and_a_retry_goes_on_where_it_was(
    make_job: MakeJob, listen: Listen, storage: Storage
) -> None:
    endpoint = listen(ALLOW, BUSY, BUSY, BUSY, ALLOW)
    job = make_job(prompt="a cat")
    error = failure(job)
    assert isinstance(error, SafetyUnavailable)
    assert error.code == "safety_unavailable"
    assert asked(endpoint) == ["before", "after", "after", "after"]
    assert outputs(storage, job) == []
    job.video()
    assert asked(endpoint)[4:] == ["after"]
