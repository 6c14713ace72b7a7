"""Nobody starts a job again but the keeper: deaths are attempts, hand-overs are none."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import stamina

from stillreel.inference.entry import Kind, State
from stillreel.job import Phase
from stillreel.process import end_tree
from tests.drills.conftest import SLOW
from tests.drills.test_kills import (
    LONG_ENCODE,
    QUICK,
    flow_processes,
    inferences_finished,
    kill_flow_processes,
    outcomes,
    wait_for_entry,
)
from tests.instance_metadata import REBALANCE, InstanceMetadata
from tests.stack import Stack, env_of


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


@pytest.mark.timeout(900)
def test_a_spot_notice_hands_the_jobs_back_as_a_stop_does(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    own = stack.processes("stillreel.host_worker")
    for worker in own:
        worker.suspend()  # the host that is taken away gets the job
    try:
        with InstanceMetadata() as instance, spot_host(stack, instance) as (host, home):
            run_id = stack.submit(QUICK)
            stack.wait(run_id, {"RUNNING"}, timeout=400)  # the host starts first
            wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.step >= 1, home=home)
            begin = time.monotonic()
            instance.give_notice()
            stack.wait(run_id, {"SCHEDULED"})
            record_property("seconds_to_hand_back", round(time.monotonic() - begin, 1))
            assert host.wait(timeout=120) == 0
            assert REBALANCE not in instance.asked
    finally:
        for worker in own:
            worker.resume()

    run = stack.wait_for_end(run_id)

    assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)
    assert job_of(stack, run_id)["attempt"] == 1


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


@contextmanager
def spot_host(
    stack: Stack, instance: InstanceMetadata
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A second host of the stack on an instance with this metadata, and the host's home."""
    code = (
        "import stillreel.spot as spot; from stillreel.cli import main; "
        f"spot.ADDRESS = {instance.url!r}; main()"
    )
    with TemporaryDirectory(prefix="sr-") as folder:
        more = {
            "PREFECT_API_URL": f"{stack.url}/api",
            "STILLREEL_API_URL": stack.shim_url,
            "STILLREEL_STORAGE_DIR": str(stack.home / "storage"),
            "STILLREEL_HOST_NAME": "spot",
            "STILLREEL_SPOT_NOTICE": "1",
        }
        host = subprocess.Popen(
            [sys.executable, "-c", code, "host", "--pool", "local"],
            env=env_of(Path(folder)) | SLOW | more,
            start_new_session=True,
        )
        try:
            yield host, Path(folder)
        finally:
            end_tree(host.pid)
            host.wait(30)


def job_of(stack: Stack, run_id: str) -> dict[str, Any]:
    return stack.shim.get(f"/api/v1/jobs/job_{run_id.replace('-', '')}").json()
