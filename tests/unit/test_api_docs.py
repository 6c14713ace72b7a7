"""The page of the API's reference and its script, as they are served."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from stillreel.api import docs

STATIC = files("stillreel.api") / "static"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI(title="<reel> API", docs_url=None, redoc_url=None)
    app.include_router(docs.router)
    return TestClient(app)


def test_the_page_names_no_other_server(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text
    assert "&lt;reel&gt; API" in page.text


def test_browsers_are_told_to_load_from_here_only(client: TestClient) -> None:
    policy = dict(
        part.split(" ", 1)
        for part in client.get("/docs").headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert (policy["script-src"], policy["connect-src"]) == ("'self'", "'self'")
    assert not re.search(r"https?:|\*", " ".join(policy.values()))


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_the_script_is_the_one_that_the_licence_file_names(
    client: TestClient, encoding: str
) -> None:
    (address,) = re.findall(r'src="([^"]+)"', client.get("/docs").text)
    got = client.get(address, headers={"accept-encoding": encoding})
    assert got.headers["content-type"].startswith("text/javascript")
    assert "immutable" in got.headers["cache-control"]
    assert got.headers.get("content-encoding") == ("gzip" if encoding == "gzip" else None)
    licence = (STATIC / "scalar.LICENSE.txt").read_text()
    assert hashlib.sha256(got.content).hexdigest() in licence
    assert f"@scalar/api-reference {docs.SCALAR_VERSION}" in licence
    assert docs.SCALAR_VERSION in address


def test_the_reference_does_not_describe_itself(client: TestClient) -> None:
    assert client.get("/openapi.json").json()["paths"] == {}
