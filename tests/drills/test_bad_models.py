"""A model that hangs, or ends its server, costs its own job its attempts and nobody else's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillreel.inference.entry import Entry, Kind, State
from tests.bad_backend import HANG, KILL, LATE
from tests.drills.test_kills import QUICK, inferences_finished, wait_for_entry
from tests.stack import Stack, running_stack

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bad_stack() -> Iterator[Stack]:
    """A whole installation, whose inference servers have the bad backend as `preview`."""
    path = (str(ROOT / "tests" / "bad_site"), str(ROOT), os.environ.get("PYTHONPATH", ""))
    with running_stack(PYTHONPATH=os.pathsep.join(filter(None, path))) as running:
        yield running


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("prompt", "kind", "message", "exit_code"),
    [
        pytest.param(HANG, Kind.INFERENCE, "no progress for ", 4, id="hangs"),
        pytest.param(
            KILL,
            Kind.INFERENCE,
            "the inference server died under this job, in phase denoise",
            -9,
            id="kills",
            marks=pytest.mark.long,
        ),
        pytest.param(
            KILL + LATE,
            Kind.DECODE,
            "the inference server died under this job, in phase decode",
            -9,
            id="kills in the decode",
            marks=pytest.mark.long,
        ),
    ],
)
def test_the_job_fails_after_three_servers_and_the_one_behind_it_completes(
    bad_stack: Stack, prompt: str, kind: Kind, message: str, exit_code: int
) -> None:
    stack, before = bad_stack, deaths(bad_stack, exit_code)
    bad = stack.submit({**QUICK, "prompt": prompt})
    wait_for_entry(stack, kind, bad, lambda entry: entry.state is State.RUNNING or failed(entry))
    good = stack.submit(QUICK)

    run = stack.wait_for_end(bad)
    assert (run["state_type"], run["run_count"]) == ("FAILED", 3), stack.log
    assert message in run["state"]["message"]
    assert "(attempt 3 of 3)" in run["state"]["message"]
    assert deaths(stack, exit_code) - before == 3
    completed = stack.wait(good)
    assert (completed["state_type"], completed["run_count"]) == ("COMPLETED", 1)
    assert inferences_finished(stack, good) == 1
    assert {task["run_count"] for task in stack.task_runs(good)} == {1}


def failed(entry: Entry) -> bool:
    return entry.state is State.FAILED


def deaths(stack: Stack, exit_code: int) -> int:
    """How often its inference server has ended with this code."""
    return stack.log.count(f"gpu0 ended with code {exit_code} ")
