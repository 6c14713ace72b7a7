"""docs/api.md is true: its examples run, and its tables name what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from stillreel import errors
from stillreel.settings_docs import settings_page
from tests.api.background import eventually
from tests.api.conftest import KEY, Api, StartApi, running_api
from tests.receiver import Recorded, receiver
from tests.stack import free_port

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
FENCE = re.compile(r"^<!-- runs(?:: (\w+))? -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECRET = "a secret that is only text"
READER = "reader"


@dataclass(frozen=True)
class Example:
    """A block of the page under `<!-- runs -->`, or under `<!-- runs: name -->`."""

    name: str
    language: str
    text: str
    line: int


def _examples() -> list[Example]:
    page = PAGE.read_text()
    return [
        Example(found[1] or "", found[2], found[3], page.count("\n", 0, found.start()) + 1)
        for found in FENCE.finditer(page)
    ]


EXAMPLES = _examples()
SHELL = [each for each in EXAMPLES if each.language == "sh"]
PYTHON = [each for each in EXAMPLES if each.language == "python" and not each.name]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where examples run: there is a photo, and curl fails where the API refuses."""
    Image.linear_gradient("L").resize((160, 90)).convert("RGB").save(tmp_path / "photo.jpg")
    (tmp_path / ".curlrc").write_text("fail-with-body\nshow-error\n")
    return tmp_path


def environment(api: Api, directory: Path) -> dict[str, str]:
    """What the page takes for given; no proxy is between us and loopback."""
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    known = {"API": api.url, "STILLREEL_API_URL": api.url, "KEY": KEY, "STILLREEL_API_KEY": KEY}
    home = {"HOME": str(directory), "CURL_HOME": str(directory), "PATH": python}
    return {**os.environ, **known, **home, "NO_PROXY": "*", "no_proxy": "*"}


def run(api: Api, directory: Path, argv: list[str]) -> None:
    """Run a program as somebody would who has the page, with this process as the host."""
    told = directory / "told"
    with (
        told.open("w") as file,
        subprocess.Popen(
            argv, cwd=directory, env=environment(api, directory), stdout=file, stderr=file
        ) as process,
    ):
        while process.poll() is None:
            for job_id in _waiting(api):
                assert api.execute(job_id).is_completed()
    assert process.returncode == 0, told.read_text()[-3000:]


def _waiting(api: Api) -> list[str]:
    """The reader's jobs that a host would take now; the backlog is left for another day.

    An admin's key lists everybody's, so those of other tests too.
    """
    found = api.client.get("/api/v1/jobs", params={"status": "queued"}).json()["jobs"]
    mine = (job for job in found if job["owner"] == READER)
    return [job["job_id"] for job in mine if job["priority"] != "backlog"]


def is_mp4(path: Path) -> bool:
    return path.read_bytes()[4:8] == b"ftyp"


# --- examples -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def api(prefect_api: str) -> Iterator[Api]:
    """One whose keeper looks every few seconds, as the page's reader has it."""
    with running_api({}) as running:
        yield running


def test_the_page_has_examples() -> None:
    assert len(SHELL) > 5
    assert len(PYTHON) > 1


def test_the_shell_examples_run_from_top_to_bottom(
    start_api: StartApi, inference_server: None, directory: Path
) -> None:
    """With an owner of their own, whose jobs are all theirs."""
    api = start_api(STILLREEL_API_OWNER=READER)
    script = directory / "page.sh"
    blocks = [f"echo '--- line {each.line}' >&2\n{each.text}" for each in SHELL]
    script.write_text("\n".join(["set -euo pipefail", *blocks]))
    run(api, directory, ["bash", str(script)])
    assert is_mp4(directory / "video.mp4")
    assert "Idempotency-Replayed: true".lower() in (directory / "told").read_text().lower()


@pytest.mark.parametrize("example", PYTHON, ids=lambda example: f"line {example.line}")
def test_the_python_examples_run(
    start_api: StartApi, inference_server: None, directory: Path, example: Example
) -> None:
    api = start_api(STILLREEL_API_OWNER=READER)
    run(api, directory, [sys.executable, "-c", example.text])
    assert any(is_mp4(path) for path in directory.glob("*.mp4"))


def test_the_receiver_of_the_page_takes_our_message_and_no_other(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _message(start_api)
    monkeypatch.setenv("WEBHOOK_SECRET", "whsec_" + b64encode(SECRET.encode()).decode())
    (example,) = (each for each in EXAMPLES if each.name == "receiver")
    page: dict[str, Any] = {}
    exec(example.text, page)
    forged = message.body.replace(b"failed", b"completed")
    headers = {k: v for k, v in message.headers.items() if k.startswith("webhook-")}
    with TestClient(page["app"]) as client:
        answers = [
            client.post("/video-ended", content=body, headers=headers).status_code
            for body in (forged, message.body, message.body)
        ]
    assert answers == [401, 204, 204]
    assert capsys.readouterr().out.count("video.cancelled") == 1, "the repeat is dropped"


def _message(start_api: StartApi) -> Recorded:
    """The notification of a job that was cancelled while it waited."""
    port = free_port()
    with receiver(port=port) as heard:
        api = start_api(WEBHOOK_SECRET=SECRET, STILLREEL_ALLOW_ADDRESSES=f"127.0.0.1:{port}")
        job_id = api.submit(webhook_url=heard.url)["job_id"]
        api.client.post(f"/api/v1/jobs/{job_id}/cancel").raise_for_status()
        for attempt in eventually():
            with attempt:
                assert heard.requests
    return heard.requests[0]


# --- tables -------------------------------------------------------------------------------------


def test_the_table_of_routes_is_complete(api: Api) -> None:
    described = api.client.get("/openapi.json").json()["paths"]
    there = {
        (method.upper(), path)
        for path, methods in described.items()
        for method, operation in methods.items()
        if any(status.startswith("2") for status in operation["responses"])
    }
    assert set(re.findall(r"^\| `([A-Z]+) (/\S*)` \|", PAGE.read_text(), re.MULTILINE)) == there


def ours(base: type[errors.StillreelError]) -> list[type[errors.StillreelError]]:
    """The errors of the tree; other modules, the client's among them, have some of their own."""
    return [error for error in errors._tree(base) if error.__module__ == errors.__name__]


def test_the_codes_of_errors_exist_and_none_of_the_apis_own_is_missing() -> None:
    tree = {error.code: error for error in ours(errors.StillreelError)}
    rows = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    told = {code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert told == {code: tree[code].http_status for code in told}
    assert {error.code for error in ours(errors.ApiError)} <= set(told)


def test_the_settings_that_the_page_names_exist() -> None:
    assert set(re.findall(r"\bSTILLREEL_[A-Z_]+\b", PAGE.read_text())) <= set(
        re.findall(r"\bSTILLREEL_[A-Z_]+\b", settings_page())
    )
