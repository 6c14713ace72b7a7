"""Whatever is killed, the job ends right, and a finished inference is never computed again."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import stamina

from stillreel.errors import InferenceServerAway
from stillreel.inference.client import InferenceClient, socket_path
from stillreel.inference.entry import Entry, Kind, State
from stillreel.job import Phase
from tests.drills.conftest import SLOW
from tests.stack import Stack, env_of, free_port, running_stack

QUICK = {"prompt": "zoom in", "duration": 0.5, "width": 160, "height": 96}
LONG_ENCODE = {"prompt": "pan left", "duration": 6, "width": 1280, "height": 720}


def test_kill_9_of_the_flow_process_during_encode_does_not_repeat_the_inference(
    stack: Stack,
) -> None:
    run_id = stack.submit({**LONG_ENCODE, "quality": "high"})
    wait_for_entry(stack, Kind.DECODE, run_id, lambda entry: entry.phase is Phase.DECODE)

    kill_flow_processes(stack, run_id)

    run = stack.wait_for_end(run_id)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["run_count"] == 2
    assert outcomes(stack, run_id)["infer"] == ["Completed", "Cached"]
    assert outcomes(stack, run_id)["fetch-image"] == ["Completed", "Cached"]
    assert inferences_finished(stack, run_id) == 1


@pytest.mark.long
def test_kill_9_of_the_supervisor_alone_takes_the_engine_with_it(stack: Stack) -> None:
    run_id = stack.submit(QUICK)
    wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.state is State.RUNNING)
    supervisor, engine = flow_processes(stack, run_id)

    supervisor.kill()

    _, alive = psutil.wait_procs([engine], timeout=20)
    assert alive == []
    assert stack.wait_for_end(run_id)["state_type"] == "COMPLETED"
    assert inferences_finished(stack, run_id) == 1


def test_a_requeue_while_the_old_process_works_neither_kills_the_worker_nor_infers_twice(
    stack: Stack,
) -> None:
    run_id, other = stack.submit(QUICK), stack.submit(QUICK)
    wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.state is State.RUNNING)
    worker = one(stack, "stillreel.host_worker").pid

    requeue(stack, run_id)

    run = stack.wait(run_id)
    assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)
    assert inferences_finished(stack, run_id) == 1
    assert stack.wait(other)["state_type"] == "COMPLETED"
    assert one(stack, "stillreel.host_worker").pid == worker


@pytest.mark.long
def test_kill_9_of_the_worker_lets_its_job_finish_and_a_new_worker_serve_the_next(
    stack: Stack,
) -> None:
    run_id = stack.submit(QUICK)
    wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.state is State.RUNNING)

    one(stack, "stillreel.host_worker").kill()

    assert stack.wait(run_id)["state_type"] == "COMPLETED"
    assert stack.wait(stack.submit(QUICK))["state_type"] == "COMPLETED"


def test_kill_9_of_the_inference_server_restarts_it_and_is_an_attempt_of_its_job(
    stack: Stack,
) -> None:
    run_id = stack.submit(QUICK)
    wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.step >= 2)

    one(stack, "stillreel.inference.server").kill()

    run = stack.wait_for_end(run_id)
    assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)
    assert outcomes(stack, run_id)["infer"] == ["Completed"]
    assert outcomes(stack, run_id)["fetch-image"] == ["Completed", "Cached"]


def test_a_stale_execution_leaves_without_a_word(stack: Stack) -> None:
    run_id = stack.submit(QUICK)
    wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.state is State.RUNNING)
    processes = flow_processes(stack, run_id)

    # another execution of the same run begins elsewhere, as after a network partition
    set_state(stack, run_id, {"type": "RUNNING", "name": "Running"})

    _, alive = psutil.wait_procs(processes, timeout=90)
    assert alive == []
    run = stack.run(run_id)
    assert (run["state_type"], run["run_count"]) == ("RUNNING", 2)
    job_id = f"job_{run_id.replace('-', '')}"
    assert not (stack.home / "storage" / "outputs" / job_id).exists()


@pytest.mark.timeout(1800)
def test_a_stopped_host_hands_its_runs_back_and_the_next_start_completes_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_stack(**SLOW) as first:
        home = first.home
        run_id = first.submit(QUICK)
        wait_for_entry(first, Kind.INFERENCE, run_id, lambda entry: entry.step >= 1)
        # one home, two installations after another: keep it beyond the first one's end
        kept = tmp_path_factory.mktemp("kept")
        first.stop()
        for child in home.iterdir():
            child.rename(kept / child.name)
    with running_stack(home=kept, **SLOW) as second:
        run = second.wait(run_id)
        assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)
        assert outcomes(second, run_id)["fetch-image"] == ["Completed", "Cached"]


@pytest.mark.timeout(1200)  # of this installation alone: it starts one, which load makes slow
@pytest.mark.long
def test_kill_9_of_everything_leaves_nothing_running() -> None:
    with running_stack(**SLOW) as stack:
        run_id = stack.submit(QUICK)
        wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.state is State.RUNNING)
        stack.kill()


@pytest.mark.long
def test_a_second_host_on_the_same_home_ends_and_the_first_one_goes_on(stack: Stack) -> None:
    second = cli(stack.home, "host", PREFECT_API_URL=f"{stack.url}/api")
    assert second.returncode == 3, second.stderr
    assert "runs on this STILLREEL_HOME already" in second.stderr
    assert stack.wait(stack.submit(QUICK))["state_type"] == "COMPLETED"


@pytest.mark.parametrize("command", ["host", pytest.param("up", marks=pytest.mark.long)])
def test_a_model_that_does_not_exist_ends_the_host_instead_of_restarting_for_ever(
    stack: Stack, command: str, tmp_path: Path
) -> None:
    env = {"STILLREEL_PREFECT_PORT": str(free_port())}
    if command == "host":
        env |= {"PREFECT_API_URL": f"{stack.url}/api"}
    done = cli(tmp_path, command, "--model", "typo", **env)
    assert done.returncode == 3, done.stderr
    assert "There is no model 'typo'" in done.stderr
    assert "gpu0 cannot run as it is set up" in done.stderr
    assert "restart in" not in done.stderr


# --- helpers, in the order of their use ---------------------------------------------------------


def wait_for_entry(
    stack: Stack, kind: Kind, run_id: str, enough: Any, *, home: Path | None = None
) -> Entry:
    """The entry on the inference server, once there is one that is `enough`."""
    client = InferenceClient(socket_path(home or stack.home), wait_for_server=60)
    try:
        for attempt in stamina.retry_context(
            on=(AssertionError, InferenceServerAway),
            attempts=None,
            timeout=300,
            wait_initial=0.05,
            wait_max=0.2,
        ):
            with attempt:
                entry = client.find(kind, run_id)
                assert entry is not None, f"no {kind} of {run_id}"
                assert enough(entry), str(entry)
                return entry
    finally:
        client.close()
    raise AssertionError


def cli(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stillreel.cli", *arguments],
        env=env_of(home) | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def kill_flow_processes(stack: Stack, run_id: str) -> None:
    for process in flow_processes(stack, run_id):
        process.kill()


def flow_processes(stack: Stack, run_id: str) -> list[psutil.Process]:
    """The supervisor and the engine of a run, in this order."""
    found = [p for p in stack.processes() if p.environ().get("PREFECT__FLOW_RUN_ID") == run_id]
    return sorted(found, key=lambda process: "prefect.engine" in process.cmdline())


def requeue(stack: Stack, run_id: str) -> None:
    """Schedule the same run again, behind everybody's back."""
    set_state(stack, run_id, {"type": "SCHEDULED", "name": "AwaitingRetry"})


def set_state(stack: Stack, run_id: str, state: dict[str, Any], *, force: bool = False) -> None:
    body = {"state": state, "force": force}
    response = stack.api.post(f"/flow_runs/{run_id}/set_state", json=body)
    assert response.json()["status"] == "ACCEPT", response.text


def outcomes(stack: Stack, run_id: str) -> dict[str, list[str]]:
    """The states in which the task runs of a run ended, by task, in order."""
    found: dict[str, list[str]] = {}
    for task in stack.task_runs(run_id):
        if task["state_type"] == "COMPLETED":
            found.setdefault(task["name"].rpartition("-")[0], []).append(task["state_name"])
    return found


def inferences_finished(stack: Stack, run_id: str) -> int:
    """How often the inference server finished the inference of a run, by its log."""
    return count_inferences(stack.log, run_id)


def count_inferences(log: str, run_id: str) -> int:
    """How often this log of a host says that the inference of a run is finished."""
    lines = Counter(line.strip() for line in log.splitlines() if run_id in line)
    return sum(
        n for line, n in lines.items() if line.endswith(f"inferences of run {run_id} finished")
    )


def one(stack: Stack, word: str) -> psutil.Process:
    [process] = stack.processes(word)
    return process


def entry_of(stack: Stack, kind: Kind, run_id: str) -> Entry | None:
    client = InferenceClient(socket_path(stack.home), wait_for_server=5)
    try:
        return client.find(kind, run_id)
    except InferenceServerAway:
        return None
    finally:
        client.close()
