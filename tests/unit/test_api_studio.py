"""The studio page as it is served: strict, whole, and nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from stillreel.api import studio
from stillreel.api.error_handlers import install_problems
from stillreel.api.studio import host_of, page_files, policy_of
from stillreel.api.timeline import span_of
from stillreel.links import Links

STATIC = Path(studio.__file__).parent / "static" / "studio"
SOURCES = sorted(path for path in STATIC.iterdir())
SCRIPTS = [path for path in SOURCES if path.suffix == ".js"]
NAMESPACE = "http://www.w3.org/2000/svg"
BUCKET = "https://bucket.s3.example.com"


class Stored:
    """Only what the page's policy asks for: URLs of stored objects."""

    def __init__(self, base_url: str) -> None:
        self._links = Links(base_url, b"secret")

    def download_url(self, key: str, *, seconds: int, **_: object) -> str:
        return self._links.download_url(key, seconds)

    def upload_url(
        self, key: str, *, content_type: str, size: int | None, seconds: int, **_: object
    ) -> str:
        return self._links.upload_url(key, content_type, size, seconds)


def client_of(base_url: str) -> TestClient:
    app = FastAPI(docs_url=None, redoc_url=None)
    install_problems(app)
    app.include_router(studio.router)
    app.state.services = Stored(base_url)
    return TestClient(app)


@pytest.fixture
def client() -> TestClient:
    return client_of("http://testserver")


def policy(client: TestClient) -> dict[str, str]:
    text = client.get("/").headers["content-security-policy"]
    return dict(part.split(" ", 1) for part in text.split("; "))


def test_the_page_is_html_with_relative_addresses_alone(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert re.findall(r'(?:src|href)="([^"]+)"', page.text) == [
        "studio/icon.svg",
        "studio/studio.css",
        "studio/app.js",
        "docs",
    ]
    assert client.head("/").status_code == 200


def test_the_policy_allows_no_inline_code_and_no_other_server(client: TestClient) -> None:
    found = policy(client)
    assert found["default-src"] == "'none'"
    assert (found["script-src"], found["style-src"]) == ("'self'", "'self'")
    assert (found["connect-src"], found["media-src"]) == ("'self'", "'self'")
    assert "unsafe" not in " ".join(found.values())
    assert found["require-trusted-types-for"] == "'script'"


def test_pictures_and_films_may_come_from_where_they_are_stored() -> None:
    found = policy(client_of(BUCKET))
    for name in ("img-src", "media-src", "connect-src"):
        assert BUCKET in found[name].split(), name
    assert (found["script-src"], found["style-src"]) == ("'self'", "'self'")


def test_a_policy_names_each_origin_once() -> None:
    assert policy_of({"https://b.example", "https://a.example"}).count("https://b.example") == 3


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_file_is_served_and_kept_by_its_etag(client: TestClient, path: Path) -> None:
    got = client.get(f"/studio/{path.name}")
    assert (got.status_code, got.content) == (200, path.read_bytes())
    assert got.headers["cache-control"] == "no-cache"
    again = client.get(f"/studio/{path.name}", headers={"If-None-Match": got.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2f..%2fapp.py", "%2e%2e%2fdocs.py"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/studio/{name}").status_code == 404


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_file_names_another_server(path: Path) -> None:
    assert "//" not in re.sub(r"(?m)^\s*//.*$|; // .*$", "", path.read_text()).replace(
        NAMESPACE, ""
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_what_is_there_and_make_no_code_of_texts(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r'from "\./([^"]+)"', text):
        assert name in page_files(), name
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function", text)


def test_the_key_is_kept_in_the_session_alone() -> None:
    stored = {
        path.name: re.findall(r"(\w+Storage)\.setItem\((\w+)", path.read_text()) for path in SCRIPTS
    }
    assert {name: found for name, found in stored.items() if found} == {
        "api.js": [("sessionStorage", "KEY")],
        "app.js": [("localStorage", "THEME")],
    }


def test_a_stage_is_told_from_its_task_run() -> None:
    run = {
        "name": "fetch-image-5d1",
        "state_type": "COMPLETED",
        "state_name": "Cached",
        "start_time": "2026-11-20T12:00:00Z",
        "end_time": "2026-11-20T12:00:01Z",
    }
    found = span_of(run)
    assert found is not None
    assert (found.stage, found.state, found.ended_at) == ("fetch", "found", run["end_time"])
    running = span_of(run | {"state_type": "RUNNING", "state_name": "Running"})
    assert running is not None
    assert (running.state, running.ended_at) == ("running", None)


@pytest.mark.parametrize(
    "other", [{"name": "something-1"}, {"start_time": None}, {"name": None}], ids=str
)
def test_what_is_no_stage_that_began_has_no_span(other: dict[str, None]) -> None:
    run = {"name": "infer-1", "state_type": "PENDING", "start_time": "2026-11-20T12:00:00Z"}
    assert span_of(run) is not None
    assert span_of(run | other) is None


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://hooks.example.com/services/T0/secret?x=1", "https://hooks.example.com"),
        ("https://user:password@example.com:8443/a", "https://example.com"),
        ("http://[::1]:9000/a", "http://::1"),
    ],
)
def test_of_an_address_only_its_host_is_shown(address: str, shown: str) -> None:
    assert host_of(address) == shown
