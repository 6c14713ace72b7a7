"""Everything dies at once, with jobs that wait and one that runs; then it is switched on again."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from stillreel.inference.entry import Kind, State
from tests.drills.conftest import SLOW
from tests.drills.test_kills import QUICK, inferences_finished, outcomes, wait_for_entry
from tests.stack import running_stack

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]


def test_after_a_power_cut_all_jobs_that_waited_and_ran_complete() -> None:
    with TemporaryDirectory(prefix="sr-") as name:
        home = Path(name)
        with running_stack(home=home, STILLREEL_LIMIT="1", **SLOW) as first:
            running, *waiting = [first.submit(QUICK) for _ in range(3)]
            wait_for_entry(first, Kind.INFERENCE, running, lambda e: e.state is State.RUNNING)
            everything = first.processes()
            first.killed = True
            for process in everything:
                process.kill()
            psutil.wait_procs(everything, timeout=60)
            computed = inferences_finished(first, running)
        with running_stack(home=home, **SLOW) as second:
            for run_id in (running, *waiting):
                run = second.wait_for_end(run_id, timeout=900)
                assert run["state_type"] == "COMPLETED", run["state"]["message"]
                # Prefect writes what tasks did some seconds later: the cut may take an end with it.
                again = {
                    task: states
                    for task, states in outcomes(second, run_id).items()
                    if len(states) - states.count("Cached") > 1
                }
                assert again == {}
            assert computed + inferences_finished(second, running) == 1
