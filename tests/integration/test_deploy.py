"""`stillreel deploy`: the same result again and again, and loud about what cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.workers.process import ProcessJobConfiguration

from stillreel.deploy import (
    _check_deployed,
    _template,
    check_entrypoint,
    read_plan,
    resting_schedules,
)
from stillreel.errors import DeploymentInvalid
from stillreel.job import JobSpec
from stillreel.models.motions import MOTIONS
from stillreel.models.styles import get_styles
from stillreel.project import project_dir
from stillreel.settings import get_settings
from tests.s3 import Bucket
from tests.stack import Stack, env_of

POOLS = {"local", "g5", "a100", "a100-ltx-2.3", "a100-ltx-2.5", "control"}


def test_deploying_again_changes_nothing(stack: Stack, bucket: Bucket) -> None:
    before = described(stack)
    done = subprocess.run(
        [sys.executable, "-m", "stillreel.cli", "deploy", "--json"],
        env=env_of(stack.home) | bucket.env | {"PREFECT_API_URL": f"{stack.url}/api"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [
        "generate-video/preview-local",
        "generate-video/wan-2.2-g5",
        "generate-video/ltx-2-a100",
        "generate-video/ltx-2.3-a100",
        "generate-video/ltx-2.5-a100",
        "generate-video/remote-local",
        "drain-backlog/drain-a100",
        "drain-backlog/drain-g5",
        "reap-hosts/reap",
    ]
    assert described(stack) == before
    assert " ".join(done.stderr.split()).startswith(
        "schedules are off: drain-backlog/drain-a100, drain-backlog/drain-g5, reap-hosts/reap; "
        "no account to rent from is set here (VAST_API_KEY, or STILLREEL_EC2=1)"
    )


@pytest.mark.parametrize("account", [{"VAST_API_KEY": "a-key"}, {"STILLREEL_EC2": "1"}, {}])
def test_schedules_rest_where_no_account_is_set(
    monkeypatch: pytest.MonkeyPatch, account: dict[str, str]
) -> None:
    for name in ("VAST_API_KEY", "STILLREEL_VAST_API_KEY", "STILLREEL_EC2"):
        monkeypatch.delenv(name, raising=False)
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    resting = resting_schedules(get_settings())
    get_settings.cache_clear()
    off = ["drain-backlog/drain-a100", "drain-backlog/drain-g5", "reap-hosts/reap"]
    assert resting == ([] if account else off)


def test_pools_have_three_queues_in_order_of_priority(stack: Stack) -> None:
    found = described(stack)
    assert set(found["pools"]) == POOLS
    for pool in POOLS:
        queues = found["queues"][pool]
        assert sorted(queues, key=queues.__getitem__) == ["high", "default", "backlog"], pool


def test_a_worker_starts_a_run_as_its_pool_says(stack: Stack) -> None:
    """The lean template is all that a worker needs, and a deployment's `env` comes on top."""
    _, template = described(stack)["pools"]["local"]

    async def configure(**values: Any) -> ProcessJobConfiguration:
        async with PrefectClient(f"{stack.url}/api") as client:
            configuration = ProcessJobConfiguration
            return await configuration.from_template_and_values(template, values, client=client)

    made = anyio.run(lambda: configure(env={"GREETING": "hello"}))
    assert (made.command, made.stream_output) == ("prefect flow-run execute", True)
    assert made.env == {"GREETING": "hello"}


def test_a_deployment_takes_exactly_the_fields_of_a_job(stack: Stack) -> None:
    for name, schema in described(stack)["schemas"].items():
        if name.startswith(("drain-", "reap")):
            continue
        ordered = sorted(schema, key=lambda name: schema[name]["position"])
        assert ordered == list(JobSpec.model_fields)


def test_the_form_of_a_deployment_offers_styles_and_motions(stack: Stack) -> None:
    made = described(stack)
    videos = [n for n, (_, _, _, entry) in made["deployments"].items() if "generate_video" in entry]
    assert len(videos) == 6
    for schema in (made["schemas"][name] for name in videos):
        assert schema["style"]["enum"] == ["", *get_styles()]
        assert schema["camera"]["anyOf"][0]["enum"] == ["", *MOTIONS]


def test_prefects_own_door_takes_what_the_form_can_send_and_no_unknown_style(
    stack: Stack,
) -> None:
    made = stack.api.get("/deployments/name/generate-video/preview-local").json()
    path = f"/deployments/{made['id']}/create_flow_run"
    for values, is_taken in (
        ({"style": "noir", "camera": "pan left"}, True),
        ({"style": "", "camera": "slow dolly in and tilt up"}, True),
        ({"style": "none of these"}, False),
    ):
        body = {"parameters": {"prompt": "a boat", **values}, "state": {"type": "CANCELLED"}}
        answer = stack.api.post(path, json=body)
        assert answer.is_success is is_taken, answer.text


def test_without_a_server_address_the_error_says_what_to_set(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stillreel.cli", "deploy"],
        env={k: v for k, v in env_of(tmp_path).items() if k != "PREFECT_API_URL"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "PREFECT_API_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_deployment_that_is_not_there_afterwards_fails_loudly(stack: Stack) -> None:
    wanted = {
        "name": "nothing",
        "entrypoint": "flows/generate_video.py:generate_video",
        "work_pool": {"name": "local", "work_queue_name": "default"},
    }

    async def check() -> str:
        async with PrefectClient(f"{stack.url}/api") as client:
            return await _check_deployed(client, wanted)

    with pytest.raises(DeploymentInvalid, match="generate-video/nothing is not there"):
        anyio.run(check)


class Guarded(BaseHTTPRequestHandler):
    """A Prefect server that wants a password."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


def test_a_server_that_refuses_us_is_a_wrong_setting(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [sys.executable, "-m", "stillreel.cli", "deploy"],
            env=env_of(tmp_path)
            | {"PREFECT_API_URL": f"http://127.0.0.1:{server.server_port}/api"},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert done.returncode == 3, done.stderr
    assert "PREFECT_API_AUTH_STRING" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project's own flows and plan, to be broken."""
    for name in ("flows", "tasks", "deployments"):
        shutil.copytree(project_dir() / name, tmp_path / name)
    shutil.copy(project_dir() / "prefect.yaml", tmp_path)
    return tmp_path


def check_in_new_process(project: Path) -> subprocess.CompletedProcess[str]:
    """A flow's modules are imported once in a process, so each check gets its own."""
    code = (
        "import sys; from pathlib import Path; from stillreel.deploy import *;"
        "from stillreel.project import FLOW_ENTRYPOINT;"
        "print(len(check_entrypoint(FLOW_ENTRYPOINT, Path(sys.argv[1]))))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(project)],
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_project_as_it_is_can_be_deployed(project: Path) -> None:
    done = check_in_new_process(project)
    assert done.stdout.strip() == str(len(JobSpec.model_fields)), done.stderr


def test_a_task_that_cannot_be_imported_fails_loudly(project: Path) -> None:
    (project / "tasks" / "encode.py").write_text("import a_library_that_is_not_here\n")
    done = check_in_new_process(project)
    assert done.returncode != 0
    assert "DeploymentInvalid: flows/generate_video.py:generate_video cannot be" in done.stderr
    assert "No module named 'a_library_that_is_not_here'" in done.stderr


def test_a_flow_whose_parameters_are_not_a_jobs_fails_loudly(project: Path) -> None:
    flow = project / "flows" / "generate_video.py"
    flow.write_text(flow.read_text().replace('    owner: job.OwnerName = "",\n', ""))
    done = check_in_new_process(project)
    assert "differ in ['owner']" in done.stderr


def test_a_deployment_to_an_unknown_pool_fails_loudly(project: Path) -> None:
    plan = project / "prefect.yaml"
    plan.write_text(plan.read_text().replace("name: g5,", "name: g6,", 1))
    with pytest.raises(DeploymentInvalid, match="names pool g6"):
        read_plan(project)


def test_a_template_without_such_a_field_is_refused() -> None:
    with pytest.raises(DeploymentInvalid, match=r"unknown \['speed'\]; known: \['command'"):
        _template({"speed": "fast"})


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("prefect.yaml", "    entrypoint: flows/generate_video.py:generate_video\n", "entrypoint"),
        ("deployments/pools.yaml", "queues: {high: 1, default: 2, backlog: 3}\n", "queues"),
        (
            "deployments/pools.yaml",
            "    description: A100 hosts, 40 GB or more.\n",
            "desc",
        ),
    ],
)
def test_a_plan_that_lacks_something_says_what(
    project: Path, file: str, line: str, words: str
) -> None:
    plan = project / file
    assert line in plan.read_text()
    plan.write_text(plan.read_text().replace(line, "", 1))
    with pytest.raises(DeploymentInvalid, match=f"lacks '{words}"):
        read_plan(project)


def test_an_entrypoint_that_does_not_exist_fails_loudly(project: Path) -> None:
    with pytest.raises(DeploymentInvalid, match="cannot be imported"):
        check_entrypoint("flows/nothing.py:nothing", project)


def described(stack: Stack) -> dict[str, Any]:
    """Everything that `deploy` makes, with the ids, without the times."""

    def post(path: str) -> list[dict[str, Any]]:
        return stack.api.post(path, json={}).json()

    pools = {pool["name"]: pool for pool in post("/work_pools/filter")}
    deployments = {made["name"]: made for made in post("/deployments/filter")}
    return {
        "pools": {name: (p["id"], p["base_job_template"]) for name, p in pools.items()},
        "queues": {
            name: {q["name"]: q["priority"] for q in post(f"/work_pools/{name}/queues/filter")}
            for name in pools
        },
        "deployments": {
            name: (d["id"], d["work_queue_name"], d["parameters"], d["entrypoint"])
            for name, d in deployments.items()
        },
        "schemas": {
            name: d["parameter_openapi_schema"]["properties"] for name, d in deployments.items()
        },
    }
