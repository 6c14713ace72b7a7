"""A whole drain on loopback: a real host is rented, works the backlog off, and ends itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from stillreel.process import end_tree
from stillreel.project import project_dir
from tests.fleet.fake_vast import KEY, SECRET, FakeVast
from tests.s3 import Bucket
from tests.stack import Stack, env_of, running_stack

SCRIPT = project_dir() / "infra" / "vast" / "start_worker.sh"
JOB = {"prompt": "zoom in", "duration": 0.5, "width": 128, "height": 72}


@dataclass
class Machines:
    """Starts the entrypoint as a container of Vast.ai does, and ends it with its machine."""

    vast: FakeVast
    folder: Path
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def boot(self, machine: dict[str, Any], body: dict[str, Any]) -> None:
        number = machine["id"]
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(project_dir()),
            "CONTAINER_ID": str(number),
            "CONTAINER_API_KEY": machine["key"],
            "VAST_URL": self.vast.url,
            "STILLREEL_HOME": str(self.folder / f"m{number}"),
        }
        with (self.folder / f"{number}.log").open("wb") as log:
            self.running[number] = subprocess.Popen(
                ["bash", str(SCRIPT), *body["args"]],
                env={**own, **body["env"]},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        machine["actual_status"] = "running"

    def end(self, machine: dict[str, Any]) -> None:
        if process := self.running.pop(machine["id"], None):
            end_tree(process.pid)
            process.wait(10)

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with FakeVast() as vast:
        made = Machines(vast, tmp_path)
        vast.on_create, vast.on_destroy = made.boot, made.end
        vast.offer(1, dph_total=0.9)
        vast.offer(2, dph_total=0.36, gpu_name="RTX 3060")
        yield made
        for machine in list(vast.machines.values()):
            made.end(machine)


def drain_env(
    stack: Stack, bucket: Bucket, machines: Machines, folder: Path, **more: str
) -> dict[str, str]:
    return (
        env_of(folder / "control")
        | bucket.env
        | {
            "PREFECT_API_URL": f"{stack.url}/api",
            "VAST_API_KEY": KEY,
            "STILLREEL_VAST_URL": machines.vast.url,
            "STILLREEL_WORKER_IMAGE": "worker@sha256:1",
            "STILLREEL_IDLE_MINUTES": "0.5",
            "STILLREEL_API_URL": stack.shim_url,
            **more,
        }
    )


def command(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stillreel.cli", *words],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("jobs", [12, pytest.param(30, marks=pytest.mark.long)])
@pytest.mark.usefixtures("without_host")
def test_a_backlog_is_drained_through_the_gateway_by_a_host_that_ends_itself(
    stack: Stack, bucket: Bucket, machines: Machines, tmp_path: Path, jobs: int
) -> None:
    env = drain_env(stack, bucket, machines, tmp_path)
    vast = machines.vast
    runs = [stack.submit(JOB) for _ in range(jobs)]

    told = command(env, "drain", "local", "--explain")
    assert told.returncode == 0, told.stderr
    assert f"yes  enough jobs wait              {jobs} (limit: 10 or more)" in told.stdout
    assert told.stdout.splitlines()[-1] == "=> rent: enough jobs wait"
    assert vast.calls("create") == []

    done = command(env, "drain", "local", "--json")

    assert done.returncode == 0, f"{done.stderr}\n{machines.log()}"
    report = json.loads(done.stdout)
    assert (report["outcome"], report["videos"]) == ("drained", jobs), machines.log()
    assert {stack.wait(run_id)["state_type"] for run_id in runs} == {"COMPLETED"}
    (host,) = report["hosts"]
    (create,) = vast.calls("create")
    assert create.path == "/api/v0/asks/2/"  # the cheaper one
    assert create.body["label"] == host["label"]
    reached = create.body["env"]
    assert not reached.keys() & bucket.env.keys()
    assert bucket.endpoint not in str(reached)
    assert reached["PREFECT_API_URL"] == f"{stack.shim_url}/lease/api"
    user, _, token = reached["PREFECT_API_AUTH_STRING"].partition(":")
    assert user == "lease"
    assert stack.url not in str(reached)
    assert token not in done.stdout + done.stderr + machines.log()
    asked = httpx.get(
        f"{reached['PREFECT_API_URL']}/health", auth=(user, token), trust_env=False, timeout=30
    )
    assert asked.status_code == 401  # with the drain its lease is over
    assert vast.machines == machines.running == {}
    destroyed = [seen for seen in vast.calls("destroy") if SECRET in seen.authorization]
    assert destroyed, "the host did not end itself"
    assert "this rented host ends: idle for 30 s" in machines.log()
    assert report["usd"] == pytest.approx(report["hours"] * 0.36, abs=0.001)
    assert report["usd_per_video"] == pytest.approx(report["usd"] / jobs, abs=0.0001)
    assert SECRET not in done.stdout + done.stderr
    assert SECRET not in machines.log()
    assert KEY not in machines.log() + done.stderr
    left = [p for p in psutil.process_iter() if "start_worker.sh" in " ".join(_command(p))]
    assert left == []


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("without_host")
def test_a_drain_that_was_killed_is_reaped(
    stack: Stack, bucket: Bucket, machines: Machines, tmp_path: Path
) -> None:
    env, vast = drain_env(stack, bucket, machines, tmp_path), machines.vast
    env |= {"STILLREEL_IDLE_MINUTES": "60"}
    stack.wait(run_id := stack.submit(JOB), until={"SCHEDULED"})
    with (tmp_path / "drain.log").open("w") as log:
        drain = subprocess.Popen(
            [sys.executable, "-m", "stillreel.cli", "drain", "local", "--now"],
            env=env,
            stdout=log,
            stderr=log,
        )
        stack.wait(run_id, timeout=300)
        drain.kill()
        drain.wait(10)
    assert len(vast.living()) == 1

    kept = command(env, "fleet", "reap", "--json")
    assert kept.returncode == 0, kept.stderr
    assert [row["reason"] for row in json.loads(kept.stdout)] == ["stays"]  # it may start again
    (lease,) = [
        run
        for run in stack.api.post(
            "/flow_runs/filter",
            json={"flows": {"name": {"any_": ["drain-backlog"]}}, "sort": "START_TIME_DESC"},
        ).json()
        if run["state_type"] == "RUNNING"
    ]
    stack.api.post(
        f"/flow_runs/{lease['id']}/set_state", json={"state": {"type": "CRASHED"}, "force": True}
    )
    told = command(env, "fleet", "reap", "--dry-run", "--json")
    assert [row["destroyed"] for row in json.loads(told.stdout)] == [False]
    assert len(vast.living()) == 1
    reaped = command(env, "fleet", "reap", "--json")
    assert [row["reason"] for row in json.loads(reaped.stdout)] == ["its drain is over"]
    assert vast.living() == []
    assert command(env, "fleet", "list", "--json").stdout.strip() == "[]"


def test_strangers_machines_get_no_password_unless_that_is_allowed(
    stack: Stack, bucket: Bucket, machines: Machines, tmp_path: Path
) -> None:
    env = drain_env(stack, bucket, machines, tmp_path, STILLREEL_RENTED_VIA="direct")
    for worker in stack.processes("stillreel.host_worker"):
        worker.suspend()
    try:
        run_id = stack.submit(JOB)
        done = command(env, "drain", "local", "--now")
    finally:
        for worker in stack.processes("stillreel.host_worker"):
            worker.resume()
    assert done.returncode == 3, done.stderr
    assert "STILLREEL_ALLOW_UNTRUSTED_HOSTS=1" in done.stderr
    assert "Traceback" not in done.stderr.splitlines()[-1]
    assert machines.vast.calls("create") == []
    stack.wait(run_id)


@pytest.mark.timeout(600)
def test_where_an_account_is_set_the_stack_runs_drains_and_the_reaper() -> None:
    names = ("drain-backlog/drain-a100", "reap-hosts/reap")
    with (
        FakeVast() as vast,
        running_stack(VAST_API_KEY=KEY, STILLREEL_VAST_URL=vast.url) as stack,
    ):
        for name in names:
            made = stack.api.get(f"/deployments/name/{name}").json()
            assert [schedule["active"] for schedule in made["schedules"]].count(True) == 1
            path = f"/deployments/{made['id']}/create_flow_run"
            run = stack.wait(stack.api.post(path, json={}).json()["id"])
            assert run["state_type"] == "COMPLETED", run["state"]["message"]
        assert vast.calls("list")
        assert vast.calls("create") == []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
