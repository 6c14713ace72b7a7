"""`stillreel doctor` beside real servers on loopback that are wrong in one way each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest

from stillreel.bucket_init import init_bucket
from stillreel.doctor import api, clock, gpu, machine, prefect, storage, weights
from stillreel.doctor.examination import hider, run_all
from stillreel.doctor.finding import Finding, has_failed, ok
from stillreel.doctor.prefect import PrefectAddress
from stillreel.job import PRIORITIES
from stillreel.project import project_dir
from stillreel.settings import Settings, get_settings
from tests.receiver import Answer, Exchange, answer, hang, receiver
from tests.stack import free_port
from tests.unit.test_storage_init import LesserEndpoint

Found = dict[str, Finding]
Configure = Callable[..., Settings]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configure:
    """Settings of a machine that has these variables, and a home of its own."""

    def make(**variables: str) -> Settings:
        home = {"STILLREEL_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        for name, value in {**home, **variables}.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        return get_settings()

    monkeypatch.delenv("STILLREEL_API_KEY", raising=False)
    return make


def by_check(findings: Iterator[Finding]) -> Found:
    return {finding.check: finding for finding in findings}


def outcomes(found: Found) -> dict[str, str]:
    return {check: finding.outcome for check, finding in found.items()}


def routes(table: dict[str, Any]) -> Answer:
    """Answers with what the table has for a path, else 404; a number is a status."""

    def act(exchange: Exchange) -> None:
        found = table.get(exchange.handler.path, 404)
        status, body = (found, b"{}") if isinstance(found, int) else (200, json.dumps(found))
        answer(status, body.encode() if isinstance(body, str) else body)(exchange)

    return act


# --- the whole ----------------------------------------------------------------------------------


def run_doctor(home: Path, **env: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, what it printed as JSON, and all that was printed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "STILLREEL_"))}
    away = {"PORT": str(free_port()), "STILLREEL_PREFECT_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-m", "stillreel.cli", "doctor", "--json", "--seconds", "300"],
        env={**kept, "STILLREEL_HOME": str(home), **away, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), done.stdout + done.stderr


def test_a_machine_with_nothing_set_up_is_well(tmp_path: Path) -> None:
    code, told, _ = run_doctor(tmp_path / "home")
    wrong = [check for check in told["checks"] if check["outcome"] == "failed"]
    assert (code, told["ok"], wrong) == (0, True, [])
    groups = [check["group"] for check in told["checks"]]
    assert list(dict.fromkeys(groups)) == [
        *("settings", "machine", "weights", "storage", "prefect", "api", "clock")
    ]


def test_what_is_wrong_is_told_with_what_to_do_and_without_secrets(tmp_path: Path) -> None:
    secrets = ("prefect-pass-word", "very-secret-key", "webhook-secret-text", "user-pass")
    with receiver(answer(401)) as server:
        code, told, everything = run_doctor(
            tmp_path,
            PREFECT_API_URL=f"{server.url}api",
            PREFECT_API_AUTH_STRING=f"admin:{secrets[0]}",
            API_KEY=secrets[1],
            WEBHOOK_SECRET=secrets[2],
            STILLREEL_WEBHOOK_URL=f"http://somebody:{secrets[3]}@127.0.0.1:{free_port()}/",
            STILLREEL_API_URL=server.url,
        )
    failures = {check["check"]: check for check in told["checks"] if check["outcome"] == "failed"}
    assert code == 1
    assert set(failures) == {"Prefect server", "HTTP API", "webhook receiver 127.0.0.1"}
    assert "PREFECT_API_AUTH_STRING" in failures["Prefect server"]["fix"]
    assert [
        check for check in told["checks"] if check["outcome"] != "ok" and not check["note"]
    ] == []
    assert [secret for secret in secrets if secret in everything] == []


def test_wrong_settings_end_with_3_and_the_machine_is_looked_at(tmp_path: Path) -> None:
    code, told, _ = run_doctor(tmp_path, S3_BUCKET="one", STILLREEL_STORAGE_DIR="/two")
    first, *others = told["checks"]
    assert (code, first["outcome"]) == (3, "failed")
    assert "two storages" in first["note"]
    assert {check["group"] for check in others} == {"machine"}


def test_a_group_that_hangs_is_cut_off_and_keeps_what_it_found() -> None:
    release = Event()

    def stuck() -> Iterator[Finding]:
        yield ok("first", "seen")
        release.wait()

    def broken() -> Iterator[Finding]:
        yield ok("first", "seen")
        raise RuntimeError("not foreseen, with s3cret")

    hidden = hider({"s3cret"})
    found = {
        each.group: each.findings
        for each in run_all({"broken": broken, "stuck": stuck}, 3.0, hidden)
    }
    release.set()
    assert [finding.outcome for finding in found["stuck"]] == ["ok", "failed"]
    assert [finding.outcome for finding in found["broken"]] == ["ok", "failed"]
    assert found["broken"][1].note.endswith("not foreseen, with ***)")


def test_addresses_are_told_without_users_and_signatures() -> None:
    hide = hider(set())
    assert hide("http://me:pw@host/x?X-Amz-Signature=abc&y=1") == (
        "http://***@host/x?X-Amz-Signature=***&y=1"
    )


# --- the machine --------------------------------------------------------------------------------


def test_this_machine_encodes(configure: Configure) -> None:
    found = by_check(machine.look(configure()))
    assert {found[check].outcome for check in ("Python", "H.264 and AAC", "AV1")} == {"ok"}


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a driver's tool on the path that runs this script."""

    def put(script: str) -> None:
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return put


def test_gpus_are_read_from_the_drivers_tool(tool: Callable[[str], None]) -> None:
    tool("echo 'NVIDIA A10G, 23028, 570.86.15'")
    assert gpu.find_gpus() == ([gpu.Gpu("A10G", 23028 * 1024**2, "570.86.15")], "")


@pytest.mark.parametrize("script", ["echo 'no devices'; exit 9", "echo something else"])
def test_a_driver_that_does_not_work_is_a_failure(tool: Callable[[str], None], script: str) -> None:
    tool(script)
    (finding,) = gpu.look_at_gpu()
    assert finding.outcome == "failed"
    assert "driver" in finding.fix


@pytest.mark.parametrize(
    ("cuda", "available", "outcome", "word"),
    [
        pytest.param("13.0", True, "ok", "sees", id="right"),
        pytest.param("", False, "failed", "build for the CPU", id="build-for-the-cpu"),
        pytest.param("13.0", False, "failed", "does not see", id="old-driver"),
    ],
)
def test_torch_has_to_see_the_gpu(
    tool: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda: str,
    available: bool,
    outcome: str,
    word: str,
) -> None:
    tool("echo 'NVIDIA A10G, 23028, 570.86.15'")
    (tmp_path / "torch.py").write_text(
        f"__version__ = '2.13.0'\nclass version: cuda = {cuda!r}\n"
        f"class cuda:\n    @staticmethod\n    def is_available(): return {available}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    *_, finding = gpu.look_at_gpu()
    assert (finding.check, finding.outcome) == ("torch", outcome)
    assert word in finding.note


def test_missing_weights_matter_where_there_is_a_gpu(
    tool: Callable[[str], None], configure: Configure, tmp_path: Path
) -> None:
    settings = configure(MODEL_PATH=str(tmp_path / "none"))
    assert outcomes(by_check(weights.look(settings)))["model ltx-2"] == "skipped"
    tool("echo 'NVIDIA A10G, 23028, 570.86.15'")
    found = by_check(weights.look(settings))
    assert found["model ltx-2"].outcome == "warning"
    assert found["model ltx-2"].fix.endswith("stillreel models pull ltx-2")
    assert found["model preview"].outcome == "ok"


# --- storage ------------------------------------------------------------------------------------


def bucket(endpoint: str) -> dict[str, str]:
    return {
        "S3_BUCKET": f"videos-{uuid4().hex}",
        "S3_ENDPOINT": endpoint,
        "S3_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }


def test_a_directory_that_cannot_be_written_is_a_failure(
    configure: Configure, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = configure(STILLREEL_STORAGE_DIR=str(tmp_path / "file"))
    found = by_check(storage.look(settings))
    assert outcomes(found) == {"storage": "ok", "put": "failed"}
    assert "STILLREEL_STORAGE_DIR" in found["put"].fix


def test_a_bucket_is_missing_then_bare_then_ready(configure: Configure, moto_url: str) -> None:
    settings = configure(**bucket(moto_url))
    (missing,) = storage.look(settings)
    assert (missing.outcome, "storage init" in missing.fix) == ("failed", True)
    init_bucket(settings.storage)
    found = by_check(storage.look(settings))
    assert not has_failed(found.values())
    assert {found[check].outcome for check in ("put", "get", "signed upload", "lifecycle")} == {
        "ok"
    }


def test_a_key_that_may_not_write_is_a_failure(configure: Configure, moto_url: str) -> None:
    with LesserEndpoint(moto_url) as lesser:
        thread = Thread(target=lesser.serve_forever)
        thread.start()
        settings = configure(**bucket(f"http://127.0.0.1:{lesser.server_address[1]}"))
        init_bucket(settings.storage)
        lesser.refuses = {("PUT", "object"): (403, "AccessDenied")}
        found = by_check(storage.look(settings))
        lesser.shutdown()
        thread.join()
        lesser.behind.close()
    assert found["put"].outcome == found["signed upload"].outcome == "failed"
    assert "the key has to" in found["put"].fix


# --- Prefect ------------------------------------------------------------------------------------


def prefect_with(**changes: Any) -> dict[str, Any]:
    """What a Prefect server with one deployment, its pool and a worker answers, changed so."""
    healthy = {
        "/admin/version": "3.8.8",
        "/deployments/filter": [
            {"name": "local", "parameters": {"model": "preview"}, "work_pool_name": "local"}
        ],
        "/work_pools/local": {"name": "local", "is_paused": False, "concurrency_limit": None},
        "/work_pools/local/queues/filter": [{"name": name} for name in PRIORITIES],
        "/work_pools/local/workers/filter": [{"name": "host-1", "status": "ONLINE"}],
    }
    return healthy | changes


def look_at(settings: Settings, table: dict[str, Any]) -> Found:
    with receiver(routes(table)) as server:
        return by_check(prefect.look(settings, PrefectAddress(server.url.rstrip("/"), False)))


def test_a_prefect_server_in_order_is_well(configure: Configure) -> None:
    found = look_at(configure(), prefect_with())
    assert set(outcomes(found).values()) == {"ok"}
    assert "host-1" in found["workers of local"].note


@pytest.mark.parametrize(
    ("path", "value", "check", "outcome", "word"),
    [
        ("/deployments/filter", [], "deployments", "failed", "stillreel deploy"),
        ("/work_pools/local", 404, "pool local", "failed", "stillreel deploy"),
        ("/work_pools/local", {"is_paused": True}, "pool local", "failed", "resume"),
        ("/work_pools/local", {"concurrency_limit": 0}, "pool local", "failed", "limit"),
        ("/work_pools/local/queues/filter", [], "queue local/high", "failed", "deploy"),
        ("/work_pools/local/workers/filter", [], "workers of local", "warning", "stillreel host"),
        ("/admin/version", 401, "Prefect server", "failed", "PREFECT_API_AUTH_STRING"),
        ("/admin/version", 404, "Prefect server", "failed", "/api"),
        ("/deployments/filter", 500, "Prefect server", "failed", "log"),
    ],
)
def test_what_keeps_jobs_waiting_is_named(
    configure: Configure, path: str, value: Any, check: str, outcome: str, word: str
) -> None:
    found = look_at(configure(), prefect_with(**{path: value}))
    assert found[check].outcome == outcome
    assert word in found[check].fix


def test_a_pool_whose_model_nobody_can_order_needs_no_worker(configure: Configure) -> None:
    table = prefect_with(**{"/work_pools/local/workers/filter": []})
    for models, outcome in (("preview,wan-2.2", "warning"), ("wan-2.2", "skipped")):
        found = look_at(configure(STILLREEL_MODELS=models), table)
        assert found["workers of local"].outcome == outcome


def test_the_prefect_that_is_wanted_is_the_one_that_is_required() -> None:
    project = tomllib.loads((project_dir() / "pyproject.toml").read_text())["project"]
    assert f"prefect=={machine.prefect_wanted()}" in project["dependencies"]


def test_a_model_that_is_offered_needs_a_deployment(configure: Configure) -> None:
    with receiver(routes(prefect_with())) as server:
        settings = configure(STILLREEL_MODELS="preview,wan-2.2")
        findings = [*prefect.look(settings, PrefectAddress(server.url.rstrip("/"), False))]
    (wrong,) = (finding for finding in findings if finding.outcome == "failed")
    assert "wan-2.2" in wrong.note


def test_a_server_that_says_nothing_is_not_waited_for(configure: Configure) -> None:
    with receiver(hang) as server:
        (finding,) = prefect.look(configure(), PrefectAddress(server.url.rstrip("/"), False))
    assert finding.outcome == "skipped"


# --- the API, receivers, clocks -----------------------------------------------------------------

NOWHERE = PrefectAddress("http://127.0.0.1:1/api", False)
WELL = {"status": "ok", "database": "ok", "storage": "ok", "version": "0.1.0"}


@pytest.mark.parametrize(
    ("health", "models", "expected"),
    [
        (WELL, {"models": []}, {"HTTP API": "ok", "API key": "ok"}),
        (WELL, 401, {"HTTP API": "ok", "API key": "failed"}),
        (503, {}, {"HTTP API": "failed", "API key": "ok"}),
        (WELL | {"status": "degraded"}, {}, {"HTTP API": "warning", "API key": "ok"}),
    ],
)
def test_the_api_and_our_key(
    configure: Configure, health: Any, models: Any, expected: dict[str, str]
) -> None:
    with receiver(routes({"/health": health, "/api/v1/models": models})) as server:
        settings = configure(STILLREEL_API_URL=server.url, API_KEY="some-key")
        assert outcomes(by_check(api.look(settings, NOWHERE))) == expected


def test_an_api_that_is_set_has_to_be_there(configure: Configure) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    (finding,) = api.look(configure(STILLREEL_API_URL=url), NOWHERE)
    assert (finding.outcome, "stillreel api" in finding.fix) == ("failed", True)


@pytest.mark.parametrize(("status", "outcome"), [(200, "ok"), (405, "ok"), (503, "warning")])
def test_a_receiver_is_asked_without_a_message(
    configure: Configure, status: int, outcome: str
) -> None:
    with receiver(answer(status)) as server:
        settings = configure(STILLREEL_WEBHOOK_URL=server.url, WEBHOOK_SECRET="text")
        found = by_check(api.look(settings, NOWHERE))
    assert found["webhook receiver 127.0.0.1"].outcome == outcome
    assert [request.method for request in server.requests] == ["HEAD"]


@pytest.mark.parametrize(("minutes", "outcome"), [(0, "ok"), (0.3, "warning"), (-20, "failed")])
def test_a_clock_that_is_wrong_is_named(configure: Configure, minutes: float, outcome: str) -> None:
    def tell(exchange: Exchange) -> None:
        exchange.handler.send_response_only(200)
        at = datetime.now(UTC) + timedelta(minutes=minutes)
        exchange.handler.send_header("Date", format_datetime(at, usegmt=True))
        exchange.handler.send_header("Content-Length", "0")
        exchange.handler.end_headers()

    with receiver(tell) as server:
        found = [*clock.look(configure(STILLREEL_API_URL=server.url), NOWHERE)]
    assert [finding.outcome for finding in found] == [outcome]
