"""`stillreel submit status watch ...` against a running API."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from stillreel import errors
from stillreel.cli import exit_code
from stillreel.cli_jobs import mount
from stillreel.client import ApiUnreachable, Client
from tests.api.conftest import KEY, SMALL, Api, png
from tests.stack import free_port

Run = Callable[..., Result]
SIZE = ["--width", "128", "--height", "72", "--duration", "0.5", "--seed", "7"]
PROGRAM = """
import typer
from stillreel import cli, cli_jobs
cli.app = typer.Typer()
cli_jobs.mount(cli.app)
cli.main()
"""


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    mount(app)
    return app


@pytest.fixture
def run(api: Api, app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; stdout and stderr are apart."""
    monkeypatch.setenv("STILLREEL_API_URL", api.url)
    monkeypatch.setenv("STILLREEL_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments, **more: CliRunner().invoke(app, list(arguments), **more)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    path.write_bytes(png())
    return str(path)


@pytest.fixture
def job_id(api: Api) -> Iterator[str]:
    """A job that waits."""
    with Client(api.url, KEY) as client:
        yield client.submit("slow\x1b[31m zoom", png(), **SMALL).job_id


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def test_submit_prints_the_id_alone(run: Run, picture: str) -> None:
    result = run("submit", picture, "--prompt", "slow zoom in", *SIZE)
    job_id = ok(result).strip()
    assert re.fullmatch(r"job_\w+", job_id)
    assert f"stillreel watch {job_id}" in result.stderr


def test_submit_waits_and_saves(
    api: Api, run: Run, picture: str, inference_server: None, tmp_path: Path
) -> None:
    output = tmp_path / "video.mp4"
    key = "from-the-command-line"
    job_id = ok(run("submit", picture, "--prompt", "zoom", "--key", key, *SIZE)).strip()
    with ThreadPoolExecutor() as pool:
        working = pool.submit(copy_context().run, api.execute, job_id)
        result = run("submit", picture, "--prompt", "zoom", "--key", key, *SIZE, "-o", str(output))
        assert working.result(60).is_completed()
    assert ok(result) == f"{output}\n"
    assert output.read_bytes()[4:8] == b"ftyp"
    assert "100 %  completed" in result.stderr
    shown = ok(run("status", job_id))
    assert re.search(r"^status +completed$", shown, re.MULTILINE)
    assert re.search(r"^video +http://127\.0\.0\.1:\d+/files/outputs/", shown, re.MULTILINE)
    poster = ok(run("download", job_id, "--variant", "poster", "-o", str(tmp_path))).strip()
    assert Path(poster).read_bytes().startswith(b"\xff\xd8\xff")
    saved = json.loads(ok(run("download", job_id, "-o", str(tmp_path), "--json")))
    assert saved == {
        "job_id": job_id,
        "variant": "video",
        "path": str(tmp_path / f"{job_id}.mp4"),
    }
    watched = json.loads(ok(run("watch", job_id, "--json")))
    assert watched["video"]["size"] == output.stat().st_size


def test_status_as_json_is_the_job(run: Run, job_id: str, api: Api) -> None:
    found = json.loads(ok(run("status", job_id, "--json")))
    assert found["prompt"] == api.job(job_id)["prompt"]
    created_at = datetime.fromisoformat(api.job(job_id)["created_at"])
    assert datetime.fromisoformat(found["created_at"]) == created_at


def test_a_terminal_is_shown_nothing_that_it_obeys(run: Run, job_id: str) -> None:
    for shown in (ok(run("status", job_id)), ok(run("list", "--limit", "1"))):
        assert "zoom" in shown
        assert "\x1b" not in shown


def test_watch_ends_with_the_end_and_says_how(run: Run, job_id: str) -> None:
    assert "cancelled" in ok(run("cancel", job_id))
    result = run("watch", job_id)
    assert re.search(r"^status +cancelled$", result.stdout, re.MULTILINE)
    assert isinstance(result.exception, errors.JobCancelled)
    assert exit_code(result.exception) == 1
    again = ok(run("retry", job_id))
    assert re.search(r"^round +2$", again, re.MULTILINE)
    ok(run("cancel", job_id))


def test_the_list_is_filtered(run: Run, job_id: str) -> None:
    head, *rows = ok(run("list", "--status", "queued", "--limit", "2")).splitlines()
    assert head.split() == ["job", "status", "progress", "model", "ordered", "prompt"]
    assert job_id in rows[0]
    assert len(rows) <= 2
    found = json.loads(ok(run("list", "--text", "no such prompt", "--json")))
    assert found == []


def test_delete_asks_first(run: Run, job_id: str) -> None:
    refused = run("delete", job_id)
    assert isinstance(refused.exception, errors.RequestRejected)
    assert exit_code(refused.exception) == 2
    assert ok(run("status", job_id))
    assert "deleted" in run("delete", job_id, "--yes").stderr
    assert isinstance(run("status", job_id).exception, errors.JobDeleted)


def test_estimate_and_models(run: Run) -> None:
    shown = ok(run("estimate", "--prompt", "zoom", "--duration", "2"))
    assert re.search(r"^model +preview", shown, re.MULTILINE)
    assert "US$" in shown
    assert "queue" in json.loads(ok(run("estimate", "--prompt", "zoom", "--json")))
    assert "preview" in ok(run("models", "list"))
    first = json.loads(ok(run("models", "list", "--json")))[0]
    assert first["default"]
    assert first["weights"] == []


def test_styles_are_listed_and_ordered(run: Run) -> None:
    assert re.search(r"^noir +slow truck left", ok(run("styles")), re.MULTILINE)
    listed = json.loads(ok(run("styles", "--json")))
    assert "noir" in [style["name"] for style in listed["styles"]]
    words = ["--style", "noir", "--camera", "pan left", "--negative-prompt", "ducks"]
    job_id = ok(run("submit", "--prompt", "a boat", *words, *SIZE)).strip()
    shown = ok(run("status", job_id))
    assert re.search(r"^style +noir", shown, re.MULTILINE)
    assert re.search(r"^camera +pan left", shown, re.MULTILINE)
    estimate = ["estimate", "--prompt", "a boat", "--style", "noir", "--camera", "fly"]
    error = run(*estimate).exception
    assert isinstance(error, errors.StillreelError)
    assert "no motion 'fly'" in error.message


def test_wrong_input_ends_with_2(run: Run, tmp_path: Path) -> None:
    for arguments in (
        ["submit", str(tmp_path / "none.jpg")],
        ["submit", "--prompt", "zoom", "--duration", "-1"],
        ["submit", "--prompt", "zoom", "--model", "sora"],
    ):
        error = run(*arguments).exception
        assert isinstance(error, errors.StillreelError)
        assert exit_code(error) == 2


def test_a_wrong_key_is_a_wrong_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_API_KEY", "sr_wrong")
    for command in (["list"], ["models", "list"]):
        error = run(*command).exception
        assert isinstance(error, errors.SettingsInvalid)
        assert "STILLREEL_API_KEY" in error.message
        assert "sr_wrong" not in error.message


def test_an_api_that_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_API_URL", f"http://127.0.0.1:{free_port()}")
    error = run("list").exception
    assert isinstance(error, ApiUnreachable)
    assert "stillreel up" in error.message
    assert exit_code(error) == 1


def test_the_machine_of_up_needs_no_settings(
    api: Api, app: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path))
    monkeypatch.setenv("PORT", api.url.rpartition(":")[2])
    (tmp_path / "api.key").write_text(KEY)
    assert CliRunner().invoke(app, ["models", "list"]).exit_code == 0


def test_ctrl_c_leaves_the_job_and_says_so(api: Api, job_id: str) -> None:
    env = os.environ | {"STILLREEL_API_URL": api.url, "STILLREEL_API_KEY": KEY}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "watch", job_id],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = threading.Timer(60, process.kill)
    deadline.start()
    try:
        assert process.stderr
        assert "queued" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    finally:
        deadline.cancel()
    assert process.returncode == 130, stderr
    assert f"stillreel watch {job_id}" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert api.job(job_id)["status"] == "queued"


def test_errors_reach_the_user_in_one_line(api: Api) -> None:
    env: dict[str, Any] = os.environ | {"STILLREEL_API_URL": api.url, "STILLREEL_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "status", "job_00000000"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    assert done.stderr.startswith("error (job_unknown): ")
    assert len(done.stderr.splitlines()) == 1
