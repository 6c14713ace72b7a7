"""Nobody starts a job again but the keeper: deaths are attempts, hand-overs are none."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import stamina

from stillreel.inference.entry import Kind, State
from stillreel.job import Phase
from tests.drills.test_kills import (
    LONG_ENCODE,
    QUICK,
    flow_processes,
    inferences_finished,
    kill_flow_processes,
    outcomes,
    wait_for_entry,
)
from tests.stack import Stack


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_job_whose_process_dies_three_times_has_failed(stack: Stack) -> None:
    run_id = stack.submit(QUICK)
    for execution in (1, 2, 3):
        wait_for_execution(stack, run_id, execution)
        kill_flow_processes(stack, run_id)

    run = stack.wait_for_end(run_id)

    job = job_of(stack, run_id)
    assert (job["status"], job["error_code"], run["run_count"]) == ("failed", "crashed", 3)
    assert inferences_finished(stack, run_id) <= 1


@pytest.mark.long
@pytest.mark.timeout(400)
def test_five_polite_hand_overs_are_no_attempts(stack: Stack) -> None:
    run_id = stack.submit(QUICK)
    for execution in range(1, 6):
        wait_for_execution(stack, run_id, execution)
        supervisor, *_ = flow_processes(stack, run_id)
        supervisor.send_signal(signal.SIGTERM)

    run = stack.wait_for_end(run_id)

    assert (run["state_type"], run["run_count"]) == ("COMPLETED", 6)
    assert job_of(stack, run_id)["attempt"] == 1
    assert inferences_finished(stack, run_id) == 1


@pytest.mark.timeout(400)
def test_a_process_that_is_cut_off_is_noticed_and_cannot_say_anything_later(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    run_id = stack.submit({**LONG_ENCODE, "quality": "high"})
    wait_for_entry(stack, Kind.DECODE, run_id, lambda entry: entry.phase is Phase.DECODE)
    old = flow_processes(stack, run_id)
    for process in old:
        process.suspend()
    begin = time.monotonic()

    stack.wait_for_log(f"crashed job_{run_id.replace('-', '')}: no sign of life", timeout=150)
    record_property("seconds_to_notice", round(time.monotonic() - begin))
    run = stack.wait_for_end(run_id)

    _, alive = psutil.wait_procs(old, timeout=60)
    assert alive == []
    assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)
    assert outcomes(stack, run_id)["infer"] == ["Completed", "Cached"]
    assert inferences_finished(stack, run_id) == 1


@pytest.mark.timeout(400)
def test_kill_9_of_the_api_and_its_keeper_loses_no_crash(stack: Stack) -> None:
    run_id = stack.submit(QUICK)
    wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.state is State.RUNNING)
    [api] = stack.processes("stillreel.api.server")

    api.kill()
    kill_flow_processes(stack, run_id)

    assert stack.wait_for_end(run_id)["state_type"] == "COMPLETED"
    assert inferences_finished(stack, run_id) == 1


# --- helpers, in the order of their use ---------------------------------------------------------


def wait_for_execution(stack: Stack, run_id: str, number: int) -> None:
    """Return when this execution of the run works on its inference, or beyond."""
    for attempt in stamina.retry_context(
        on=AssertionError, attempts=None, timeout=180, wait_initial=0.1, wait_max=0.3
    ):
        with attempt:
            run = stack.run(run_id)
            assert (run["state_type"], run["run_count"]) == ("RUNNING", number), run["state"]
            assert len(flow_processes(stack, run_id)) == 2


def job_of(stack: Stack, run_id: str) -> dict[str, Any]:
    return stack.shim.get(f"/api/v1/jobs/job_{run_id.replace('-', '')}").json()
