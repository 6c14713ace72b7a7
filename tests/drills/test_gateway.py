"""A host that has nothing but its lease, and is killed at its work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest

from stillreel.fleet.labels import Label
from stillreel.fleet.leases import FLOW, HOST, POOL, Asked
from stillreel.gateway.lease import CLAIM, grant, lease_id
from stillreel.process import end_tree
from tests.drills.conftest import SLOW
from tests.stack import Stack, env_of, running_stack

AUTH = "admin:the-password-of-the-server"
JOB = {"prompt": "zoom in", "duration": 0.5, "width": 160, "height": 96}
LONG_ENCODE = {"prompt": "pan left", "duration": 6, "width": 1280, "height": 720}

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """An installation whose Prefect has a password; its own host takes no jobs."""
    env = {"PREFECT_SERVER_API_AUTH_STRING": AUTH, "PREFECT_API_AUTH_STRING": AUTH}
    with running_stack(**env, **SLOW) as running:
        running.api.auth = httpx.BasicAuth(*AUTH.split(":"))
        workers = running.processes("stillreel.host_worker")
        for worker in workers:
            worker.suspend()
        yield running
        for worker in workers:
            worker.resume()


def lease(stack: Stack, number: int) -> tuple[Label, str]:
    """A token for a host of a drain that is made here, and the host's name."""
    until = datetime.now(UTC) + timedelta(hours=1)
    host = {f"{HOST}{number}": Asked(number, until, usd_per_hour=0.36).to_text()}
    flow = stack.api.post("/flows/", json={"name": FLOW}).json()["id"]
    body = {"flow_id": flow, "state": {"type": "RUNNING"}, "labels": {POOL: "local"} | host}
    drain = stack.api.post("/flow_runs/", json=body).json()["id"]
    made = grant(drain, number, expires=until)
    stack.api.patch(f"/flow_runs/{drain}/labels", json=made.labels).raise_for_status()
    return Label("main", drain, number), made.token


@contextmanager
def rented_host(stack: Stack, folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A stock host as a drain starts it: its process, and its lease's name."""
    label, token = lease(stack, 1)
    home = folder / label.run_id[:8]
    env = env_of(home) | {
        "PREFECT_API_URL": f"{stack.shim_url}/lease/api",
        "PREFECT_API_AUTH_STRING": f"lease:{token}",
        "STILLREEL_API_URL": stack.shim_url,
        "STILLREEL_HOST_NAME": str(label),
        "STILLREEL_LEASE_URL": f"{stack.shim_url}/lease",
        "STILLREEL_LEASE_TOKEN": token,
        "STILLREEL_RENTED_UNTIL": str(int(datetime.now(UTC).timestamp()) + 3600),
        **SLOW,
    }
    log = folder / f"{label.run_id[:8]}.log"
    with log.open("wb") as file:
        argv = [sys.executable, "-m", "stillreel.cli", "host", "--pool", "local"]
        process = subprocess.Popen(argv, env=env, stdout=file, stderr=file)
    try:
        yield psutil.Process(process.pid), lease_id(label.run_id, 1)
    finally:
        end_tree(process.pid, grace=60)
        process.wait(60)
        assert AUTH not in log.read_text()
        assert token not in log.read_text()


def claims_of(stack: Stack, run_id: str) -> list[str]:
    """The messages by which this run was claimed, the first one first."""
    states = stack.api.get("/flow_run_states/", params={"flow_run_id": run_id}).json()
    claimed = [s for s in states if s["type"] == "PENDING" and s["name"] == "Pending"]
    return [s["message"] for s in sorted(claimed, key=lambda s: s["timestamp"])]


def parts(host: psutil.Process, word: str) -> list[psutil.Process]:
    """The processes of a host whose command line has this word."""
    return [p for p in host.children(recursive=True) if word in " ".join(p.cmdline())]


def test_a_job_ends_with_a_video(stack: Stack, tmp_path: Path) -> None:
    with rented_host(stack, tmp_path) as (_, name):
        run_id = stack.submit(JOB)
        run = stack.wait_for_end(run_id)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert claims_of(stack, run_id) == [CLAIM + name]
    assert "fetch-image" in {task["name"].rpartition("-")[0] for task in stack.task_runs(run_id)}
    assert {"progress", "result"} <= stack.artifacts(run_id).keys()


@pytest.mark.parametrize(
    ("part", "executions"),
    [("prefect.engine", 2), ("stillreel.host_worker", 1)],
)
def test_kill_9_of_a_part_is_an_attempt_at_most(
    stack: Stack, tmp_path: Path, part: str, executions: int
) -> None:
    with rented_host(stack, tmp_path) as (host, name):
        run_id = stack.submit(LONG_ENCODE)
        stack.wait(run_id, until={"RUNNING"}, timeout=300)
        killed = parts(host, part)
        for process in killed:
            os.kill(process.pid, 9)
        run = stack.wait_for_end(run_id)
    assert killed
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["run_count"] == executions
    assert claims_of(stack, run_id) == [CLAIM + name] * executions


def test_a_host_that_dies_loses_its_job_to_the_next_one(stack: Stack, tmp_path: Path) -> None:
    with rented_host(stack, tmp_path) as (host, first):
        run_id = stack.submit(LONG_ENCODE)
        stack.wait(run_id, until={"RUNNING"}, timeout=300)
        for process in [host, *host.children(recursive=True)]:
            process.kill()
        with rented_host(stack, tmp_path) as (_, second):
            run = stack.wait_for_end(run_id, timeout=600)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert claims_of(stack, run_id) == [CLAIM + first, CLAIM + second]
