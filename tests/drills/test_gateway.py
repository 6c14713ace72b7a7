"""A host that has nothing but its lease, and is killed at its work."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillreel.gateway.lease import CLAIM
from stillreel.inference.entry import Entry, Kind
from stillreel.job import Phase
from stillreel.jobs.attempts import HANDED_BACK
from tests.drills.conftest import SLOW
from tests.drills.test_kills import count_inferences, wait_for_entry
from tests.rented import rented_host
from tests.stack import KEY, Stack, running_stack

AUTH = "admin:the-password-of-the-server"
WEBHOOK_SECRET = "whsec_dGhlIHNlY3JldCBvZiBvdXIgd2ViaG9va3M="
JOB = {"prompt": "zoom in", "duration": 0.5, "width": 160, "height": 96}
LONG_ENCODE = {"prompt": "pan left", "duration": 6, "width": 1280, "height": 720}

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """An installation whose Prefect has a password; its own host takes no jobs."""
    env = {"PREFECT_SERVER_API_AUTH_STRING": AUTH, "PREFECT_API_AUTH_STRING": AUTH}
    env |= {"STILLREEL_WEBHOOK_SECRET": WEBHOOK_SECRET}
    with running_stack(**env, **SLOW) as running:
        running.api.auth = httpx.BasicAuth(*AUTH.split(":"))
        workers = running.processes("stillreel.host_worker")
        for worker in workers:
            worker.suspend()
        yield running
        for worker in workers:
            worker.resume()


def claims_of(stack: Stack, run_id: str) -> list[str]:
    """The messages by which this run was claimed, the first one first."""
    states = stack.api.get("/flow_run_states/", params={"flow_run_id": run_id}).json()
    claimed = [s for s in states if s["type"] == "PENDING" and s["name"] == "Pending"]
    return [s["message"] for s in sorted(claimed, key=lambda s: s["timestamp"])]


def test_a_job_ends_with_a_video(stack: Stack, tmp_path: Path) -> None:
    with rented_host(stack, tmp_path, **SLOW) as host:
        run_id = stack.submit(JOB)
        run = stack.wait_for_end(run_id)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert claims_of(stack, run_id) == [CLAIM + host.lease]
    assert "fetch-image" in {task["name"].rpartition("-")[0] for task in stack.task_runs(run_id)}
    assert {"progress", "result"} <= stack.artifacts(run_id).keys()


def test_a_host_at_work_holds_no_secret_and_nothing_of_others(stack: Stack, tmp_path: Path) -> None:
    with rented_host(stack, tmp_path, **SLOW) as host:
        run_id = stack.submit({**JOB, "prompt": "the order of this host"})
        wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.step >= 1, home=host.home)
        for worker in host.parts("stillreel.host_worker"):
            worker.suspend()
        other = stack.submit({**JOB, "prompt": "the order of another caller"})
        holdings = host.holdings()
        for worker in host.parts("stillreel.host_worker"):
            worker.resume()
        for each in (run_id, other):
            assert stack.wait_for_end(each)["state_type"] == "COMPLETED"
    assert b"the order of this host" in holdings
    secrets = [KEY, WEBHOOK_SECRET, (stack.home / "server.secret").read_text().strip()]
    secrets += [*AUTH.split(":")[1:], b64encode(AUTH.encode()).decode(), other]
    for secret in [*secrets, "the order of another caller"]:
        assert secret.encode() not in holdings, secret


@dataclass(frozen=True)
class Kill:
    """Which process of a host is killed, when, and how often the job is executed then."""

    word: str
    order: dict[str, Any]
    stage: Kind
    enough: Callable[[Entry], bool]
    executions: int
    inferences: int = 1


KILLS = {
    "flow process while it encodes": Kill(
        "prefect.engine", LONG_ENCODE, Kind.DECODE, lambda entry: entry.phase is Phase.DECODE, 2
    ),
    "supervisor of the flow process": Kill(
        "prefect flow-run execute", JOB, Kind.INFERENCE, lambda entry: entry.step >= 1, 2
    ),
    "worker": Kill("stillreel.host_worker", JOB, Kind.INFERENCE, lambda entry: entry.step >= 1, 1),
    "inference server": Kill(
        "stillreel.inference.server", JOB, Kind.INFERENCE, lambda entry: entry.step >= 2, 2
    ),
}


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_kill_9_of_a_part_is_an_attempt_at_most(stack: Stack, tmp_path: Path, kill: Kill) -> None:
    with rented_host(stack, tmp_path, **SLOW) as host:
        run_id = stack.submit(kill.order)
        wait_for_entry(stack, kill.stage, run_id, kill.enough, home=host.home)
        killed = host.parts(kill.word)
        for process in killed:
            process.kill()
        run = stack.wait_for_end(run_id)
        inferences = count_inferences(host.log.read_text(), run_id)
    assert killed
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["run_count"] == kill.executions
    assert inferences == kill.inferences
    assert claims_of(stack, run_id) == [CLAIM + host.lease] * kill.executions


def test_a_host_that_dies_loses_its_job_to_the_next_one(stack: Stack, tmp_path: Path) -> None:
    with rented_host(stack, tmp_path, **SLOW) as first:
        run_id = stack.submit(LONG_ENCODE)
        wait_for_entry(
            stack, Kind.DECODE, run_id, lambda entry: entry.phase is Phase.DECODE, home=first.home
        )
        first.kill()
        with rented_host(stack, tmp_path, **SLOW) as second:
            run = stack.wait_for_end(run_id, timeout=600)
            again = count_inferences(second.log.read_text(), run_id)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert claims_of(stack, run_id) == [CLAIM + first.lease, CLAIM + second.lease]
    assert (count_inferences(first.log.read_text(), run_id), again) == (1, 0)
    assert AUTH not in first.log.read_text() + second.log.read_text()


def test_a_host_that_is_stopped_hands_its_job_to_the_next_one(stack: Stack, tmp_path: Path) -> None:
    with rented_host(stack, tmp_path, **SLOW) as first:
        run_id = stack.submit(JOB)
        wait_for_entry(
            stack, Kind.INFERENCE, run_id, lambda entry: entry.step >= 1, home=first.home
        )
        first.process.terminate()
        given = stack.wait(run_id, until={"SCHEDULED"})
        with rented_host(stack, tmp_path, **SLOW) as second:
            run = stack.wait_for_end(run_id, timeout=600)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert claims_of(stack, run_id) == [CLAIM + first.lease, CLAIM + second.lease]
    assert given["state"]["message"] == HANDED_BACK + first.lease
