"""`stillreel storage init` against moto; tests/integration has it against a stricter server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from uuid import uuid4

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner, Result

from stillreel.cli import app, exit_code
from stillreel.errors import StorageRefused
from stillreel.settings import get_settings
from tests.unit.test_bucket_rules import THEIRS, days


@pytest.fixture
def admin(moto_url: str) -> Iterator[Any]:
    client = boto3.client(
        "s3",
        endpoint_url=moto_url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    yield client
    client.close()


@pytest.fixture
def name(admin: Any) -> str:
    name = f"videos-{uuid4().hex}"
    admin.create_bucket(Bucket=name)
    return name


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch, moto_url: str, name: str) -> None:
    for variable, value in {
        "S3_BUCKET": name,
        "S3_ENDPOINT": moto_url,
        "S3_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(variable, value)


class LesserEndpoint(ThreadingHTTPServer):
    """Passes on to moto, but for what it `refuses`, by method and kind of call."""

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = httpx.Client(base_url=behind, trust_env=False)
        self.refuses: dict[tuple[str, str], tuple[int, str]] = {}
        self.asked: list[tuple[str, str]] = []


class _Handler(BaseHTTPRequestHandler):
    server: LesserEndpoint

    def answer(self) -> None:
        query = self.path.partition("?")[2].partition("&")[0]
        kind = query if query in ("lifecycle", "cors") else "bucket"
        if self.path.partition("?")[0].count("/") > 1:
            kind = "object"
        call = (self.command, kind)
        self.server.asked.append(call)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if call in self.server.refuses:
            status, code = self.server.refuses[call]
            self.send(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
            return
        sent = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "expect")}
        got = self.server.behind.request(self.command, self.path, content=body, headers=sent)
        left_out = ("content-length", "connection", "transfer-encoding", "content-encoding")
        headers = {k: v for k, v in got.headers.items() if k not in left_out}
        self.send(got.status_code, headers, got.content, length=got.headers.get("content-length"))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = answer  # noqa: N815

    def send(
        self, status: int, headers: dict[str, str], body: bytes, *, length: str | None = None
    ) -> None:
        self.send_response_only(status)
        is_head = self.command == "HEAD"
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length if is_head and length else str(len(body)))
        self.end_headers()
        if not is_head:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


@pytest.fixture
def lesser(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[LesserEndpoint]:
    with LesserEndpoint(moto_url) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("S3_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()
        server.behind.close()


def command(*words: str) -> Result:
    get_settings.cache_clear()
    return CliRunner().invoke(app, ["storage", "init", *words])


def lifecycle(admin: Any, name: str) -> list[dict[str, Any]]:
    return admin.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]


def test_it_sets_lifetimes_and_cors_and_says_what_works(admin: Any, name: str) -> None:
    done = command()

    assert done.exit_code == 0, done.output
    assert days(lifecycle(admin, name)) == {"temp/": 1, "latents/": 30, "results/": 90}
    [cors] = admin.get_bucket_cors(Bucket=name)["CORSRules"]
    assert cors["AllowedOrigins"] == ["*"]
    assert "PUT" in cors["AllowedMethods"]
    assert admin.list_objects_v2(Bucket=name)["KeyCount"] == 0  # it cleans up after itself
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "set" in lines["lifecycle"]
    assert "yes" in lines["signed download"]
    assert "not held to what was signed" in lines["signed upload binds its content type"]  # moto
    assert "very-secret" not in done.output


def test_again_it_keeps_what_is_there(admin: Any, name: str) -> None:
    command()
    before = lifecycle(admin, name), admin.get_bucket_cors(Bucket=name)["CORSRules"]
    again = json.loads(command("--json").stdout)
    assert [change["outcome"] for change in again["changes"]] == ["kept"] * 3
    assert (lifecycle(admin, name), admin.get_bucket_cors(Bucket=name)["CORSRules"]) == before


def test_rules_of_others_stay_and_are_counted(
    admin: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.put_bucket_lifecycle_configuration(
        Bucket=name, LifecycleConfiguration={"Rules": [THEIRS]}
    )
    theirs = {"AllowedOrigins": ["https://a.example"], "AllowedMethods": ["GET"]}
    admin.put_bucket_cors(Bucket=name, CORSConfiguration={"CORSRules": [theirs]})
    monkeypatch.setenv("STILLREEL_UPLOAD_ORIGINS", "https://app.example.com")

    found = json.loads(command("--json").stdout)

    assert [change["kept_foreign"] for change in found["changes"]] == [0, 1, 1]
    assert THEIRS in lifecycle(admin, name)
    origins = [r["AllowedOrigins"] for r in admin.get_bucket_cors(Bucket=name)["CORSRules"]]
    assert origins == [["https://a.example"], ["https://app.example.com"]]


def test_a_bucket_that_is_not_there_is_made(admin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    new = f"videos-{uuid4().hex}"
    monkeypatch.setenv("S3_BUCKET", new)
    assert "would be made in eu-west-1" in command("--dry-run", "--location", "eu-west-1").stdout
    with pytest.raises(ClientError):
        admin.head_bucket(Bucket=new)

    assert command("--location", "eu-west-1").exit_code == 0
    assert admin.get_bucket_location(Bucket=new)["LocationConstraint"] == "eu-west-1"


def test_a_danger_in_rules_of_others_is_told(admin: Any, name: str) -> None:
    all_of_it = {**THEIRS, "ID": "old", "Filter": {"Prefix": ""}}
    admin.put_bucket_lifecycle_configuration(
        Bucket=name, LifecycleConfiguration={"Rules": [all_of_it]}
    )
    done = command()
    assert done.exit_code == 0
    assert "warning: the rule 'old', which is not ours, deletes inputs/" in " ".join(
        done.stderr.split()
    )


ANSWERS = {
    501: ("NotImplemented", "this endpoint has no such call"),
    403: ("AccessDenied", "the key may not do this"),
    400: ("MalformedXML", "the endpoint does not take it (MalformedXML)"),
}


@pytest.mark.parametrize("status", ANSWERS)
def test_an_endpoint_without_rules_is_told_and_usable(
    lesser: LesserEndpoint, admin: Any, name: str, status: int
) -> None:
    code, words = ANSWERS[status]
    lesser.refuses = {("PUT", "lifecycle"): (status, code), ("PUT", "cors"): (status, code)}
    found = json.loads(command("--json").stdout)
    assert found["usable"]
    assert [words in change["outcome"] for change in found["changes"]] == [False, True, True]
    assert "temp/" in found["changes"][1]["outcome"]


def test_a_bucket_without_a_right_that_is_needed_is_no_storage(lesser: LesserEndpoint) -> None:
    lesser.refuses = {("GET", "object"): (403, "AccessDenied")}
    done = command()
    assert isinstance(done.exception, StorageRefused)
    assert exit_code(done.exception) == 3
    assert "get, upload in parts, signed download does not work" in done.exception.message


def test_a_dry_run_changes_and_stores_nothing(lesser: LesserEndpoint) -> None:
    done = command("--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("would be set") == 2
    assert {method for method, _ in lesser.asked} <= {"GET", "HEAD"}


def test_a_directory_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("S3_BUCKET", "S3_ENDPOINT", "S3_REGION"):
        monkeypatch.delenv(variable)
    done = command()
    assert done.exit_code == 0
    assert "nothing to set" in " ".join(done.stderr.split())
    assert command("--location", "weur").exit_code != 0
