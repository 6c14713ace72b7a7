"""A cancel reaches the GPU from every door, and so does the end of whoever wanted the video."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import stamina

from stillreel.errors import InferenceServerAway
from stillreel.inference.client import InferenceClient, socket_path
from stillreel.inference.entry import Kind, State
from tests.drills.conftest import SLOW
from tests.drills.test_kills import (
    QUICK,
    cli,
    entry_of,
    flow_processes,
    inferences_finished,
    kill_flow_processes,
    set_state,
    wait_for_entry,
)
from tests.stack import KEY, Stack, running_stack

LONG_INFERENCE = {"prompt": "zoom in", "duration": 5, "width": 160, "height": 96, "steps": 120}
SECONDS = 240.0

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(**SLOW, STILLREEL_CLAIM_SECONDS="30") as running:
        yield running


def by_api(stack: Stack, run_id: str) -> None:
    answer = stack.shim.post(f"/api/v1/jobs/{job_id_of(run_id)}/cancel")
    assert answer.status_code == 200, answer.text


def by_cli(stack: Stack, run_id: str) -> None:
    env = {"STILLREEL_API_URL": stack.shim_url, "STILLREEL_API_KEY": KEY}
    done = cli(stack.home, "cancel", job_id_of(run_id), **env)
    assert done.returncode == 0, done.stderr


def by_prefect(stack: Stack, run_id: str) -> None:
    """As the button in Prefect's own UI does."""
    set_state(stack, run_id, {"type": "CANCELLING", "name": "Cancelling"}, force=True)


@pytest.mark.parametrize(
    "cancel", [by_api, pytest.param(by_cli, marks=pytest.mark.long), by_prefect]
)
def test_a_cancel_frees_the_gpu(
    stack: Stack, cancel: Callable[[Stack, str], None], record_property: Callable[..., None]
) -> None:
    run_id = stack.submit(LONG_INFERENCE)
    wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.step >= 1)

    cancel(stack, run_id)

    begin = time.monotonic()
    wait_until_free(stack, run_id)
    record_property("seconds_to_free_the_gpu", round(time.monotonic() - begin, 1))
    assert stack.wait_for_end(run_id)["state_type"] == "CANCELLED"
    assert is_gone(stack, run_id)
    assert inferences_finished(stack, run_id) == 0


def test_a_cancel_that_the_flow_process_cannot_hear_frees_the_gpu_too(
    stack: Stack, record_property: Callable[..., None]
) -> None:
    run_id = stack.submit(LONG_INFERENCE)
    wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.step >= 1)
    deaf = flow_processes(stack, run_id)
    for process in deaf:
        process.suspend()

    by_api(stack, run_id)

    begin = time.monotonic()
    wait_until_free(stack, run_id)
    record_property("seconds_to_free_the_gpu", round(time.monotonic() - begin, 1))
    assert stack.wait_for_end(run_id)["state_type"] == "CANCELLED"
    _, alive = psutil.wait_procs(deaf, timeout=60)
    assert alive == []
    assert is_gone(stack, run_id)


@pytest.mark.long
def test_a_client_that_vanished_for_good_frees_the_gpu(stack: Stack) -> None:
    run_id = stack.submit({**LONG_INFERENCE, "steps": 200})
    wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.step >= 1)
    workers = stack.processes("stillreel.host_worker")
    for worker in workers:
        worker.suspend()  # so nobody comes back for it
    try:
        kill_flow_processes(stack, run_id)
        wait_until_free(stack, run_id)
        entry = entry_of(stack, Kind.INFERENCE, run_id)
        assert entry is not None
        assert entry.problem is not None
        assert (entry.state, entry.problem.code) == (State.CANCELLED, "inference_abandoned")
    finally:
        for worker in workers:
            worker.resume()
    by_api(stack, run_id)
    assert stack.wait_for_end(run_id)["state_type"] in ("CANCELLED", "CRASHED")
    assert stack.wait(stack.submit(QUICK), timeout=SECONDS)["state_type"] == "COMPLETED"


# --- helpers, in the order of their use ---------------------------------------------------------


def job_id_of(run_id: str) -> str:
    return f"job_{run_id.replace('-', '')}"


def wait_until_free(stack: Stack, run_id: str) -> None:
    """Return when the GPU does not work on this run any more; looking claims nothing."""
    client = InferenceClient(socket_path(stack.home), wait_for_server=60)
    try:
        for attempt in stamina.retry_context(
            on=(AssertionError, InferenceServerAway),
            attempts=None,
            timeout=SECONDS,
            wait_initial=0.1,
            wait_max=0.3,
        ):
            with attempt:
                assert client.health().running != run_id
    finally:
        client.close()


def is_gone(stack: Stack, run_id: str) -> bool:
    """Whether the server knows the work as cancelled, or not any more."""
    entry = entry_of(stack, Kind.INFERENCE, run_id)
    return entry is None or entry.state is State.CANCELLED
