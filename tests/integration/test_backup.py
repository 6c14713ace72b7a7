"""Backup and restore of Prefect's database, by the operator's own scripts, on a real Postgres."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillreel.project import project_dir
from tests.services.daemon import NotReady, free_ports, running_daemon
from tests.services.postgres import create_database

INFRA = project_dir() / "infra"
KEY = "b3BlbnMtd2hhdC1wcmVmZWN0LWtlZXBzLXNlY3JldC0="
"""PREFECT_SERVER_ENCRYPTION_KEY."""
START_SECONDS = 400.0


@pytest.mark.timeout(1200)
def test_jobs_that_wait_and_jobs_that_ended_are_there_after_a_restore(
    postgres: str, tmp_path: Path
) -> None:
    before, after = (create_database(postgres, f"backup_{n}") for n in ("before", "after"))
    dump = tmp_path / "stillreel.dump"
    with prefect_server(before, tmp_path) as server:
        deployment = deployed(server)
        ended, waiting = (made_run(server, deployment, key) for key in ("job_ended", "job_waits"))
        for state in ("PENDING", "RUNNING", "COMPLETED"):
            ask(server, f"/flow_runs/{ended}/set_state", {"state": {"type": state}})
        ask(server, "/variables/", {"name": "stillreel-owner", "value": {"keys": ["hash"]}})
        told = everything(server)
        script("backup.sh", dump, before)  # while it runs
        made_run(server, deployment, "job_later")

    script("restore.sh", dump, after)
    with prefect_server(after, tmp_path) as server:
        assert everything(server) == told
        assert {found["idempotency_key"]: found["state_type"] for found in told["runs"]} == {
            "job_ended": "COMPLETED",
            "job_waits": "SCHEDULED",
        }
        body = {"limit": 5}
        handed = ask(server, "/work_pools/somewhere/get_scheduled_flow_runs", body)
        assert [item["flow_run"]["id"] for item in handed] == [waiting]  # a host gets it
        assert made_run(server, deployment, "job_ended") == ended  # an order again is the same

    assert dump.stat().st_mode & 0o777 == 0o600
    assert "tables already" in script("restore.sh", dump, after, code=1)


def test_a_backup_that_fails_leaves_no_file(tmp_path: Path, postgres: str) -> None:
    missing = f"{postgres.rpartition('/')[0]}/there_is_no_such_database"
    script("backup.sh", tmp_path / "nothing.dump", missing, code=1)
    assert list(tmp_path.iterdir()) == []


# --- helpers ----------------------------------------------------------------------------------


@contextmanager
def prefect_server(url: str, folder: Path) -> Iterator[httpx.Client]:
    """`stillreel server` on this database."""
    [port] = free_ports(1)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(project_dir()),
        "STILLREEL_HOME": str(folder / "home"),
        "STILLREEL_PREFECT_PORT": str(port),
        "DATABASE_URL": url,
        "PREFECT_SERVER_ENCRYPTION_KEY": KEY,
    }
    argv = [sys.executable, "-m", "stillreel.cli", "server"]
    api = f"http://127.0.0.1:{port}/api"
    with (
        running_daemon(argv, log=folder / f"{port}.log", env=env, inherits=False) as daemon,
        httpx.Client(base_url=api, trust_env=False, timeout=120) as client,
    ):
        daemon.wait_until(lambda: _healthy(client), timeout=START_SECONDS)
        yield client


def deployed(server: httpx.Client) -> str:
    """The id of a deployment of a flow in a pool that nobody serves."""
    ask(server, "/work_pools/", {"name": "somewhere", "type": "process"})
    flow = ask(server, "/flows/", {"name": "generate-video"})["id"]
    body = {"name": "waits", "flow_id": flow, "work_pool_name": "somewhere"}
    return ask(server, "/deployments/", body)["id"]


def made_run(server: httpx.Client, deployment: str, key: str) -> str:
    """The id of the run with this idempotency key."""
    body = {
        "parameters": {"prompt": "a boat"},
        "idempotency_key": key,
        "tags": ["model:wan-2.2"],
        "labels": {"stillreel.round": 1},
        "state": {"type": "SCHEDULED"},
    }
    return ask(server, f"/deployments/{deployment}/create_flow_run", body)["id"]


def everything(server: httpx.Client) -> dict[str, list[dict[str, Any]]]:
    """Runs and variables as the server tells them, without what it counts up by the clock."""
    kept = (
        *("id", "idempotency_key", "state_type", "parameters", "tags", "labels", "run_count"),
        *("name", "value"),
    )
    asked = {"runs": "/flow_runs/filter", "variables": "/variables/filter"}
    return {
        name: sorted(
            ({k: v for k, v in item.items() if k in kept} for item in ask(server, path, {})),
            key=lambda item: item["id"],
        )
        for name, path in asked.items()
    }


def ask(server: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = server.post(path, json=body)
    assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
    return answer.json()


def script(name: str, dump: Path, url: str, *, code: int = 0) -> str:
    """What an operator's script says; it has to end with this code."""
    done = subprocess.run(
        ["bash", str(INFRA / name), str(dump)],
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def _healthy(client: httpx.Client) -> None:
    try:
        client.get("/health").raise_for_status()
    except httpx.HTTPError as exc:
        raise NotReady(type(exc).__name__) from exc
