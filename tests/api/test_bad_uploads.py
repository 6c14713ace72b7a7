"""Bad uploads and downloads, and changed links, get a clear error, and nothing is stored."""

from __future__ import annotations

from socket import create_connection
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.api.calls import ask_upload, order, put, upload
from tests.api.conftest import Api, StartApi, png
from tests.api.outside import assert_problem, exchange, stored

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


@pytest.mark.parametrize(
    ("content_type", "size"),
    [("image/jpeg", 100), ("text/html", 100), ("image/png; x=1", 100), ("", 100),
     ("image/png", 99), ("image/png", 101), ("image/png", 0), ("image/png", 1_000_000)],
)  # fmt: skip
def test_an_upload_of_another_type_or_length(api: Api, content_type: str, size: int) -> None:
    target = ask_upload(api, content_type="image/png", content_length=100)
    problem = assert_problem(put(target, bytes(size), content_type), 403, "image/png", "100")
    assert "Content-Type" in problem["detail"]
    assert stored(api, target["job_id"]) == []
    assert put(target, bytes(100)).is_success


def test_an_upload_without_a_length(api: Api) -> None:
    target = ask_upload(api, content_type="image/png")
    told = httpx.put(
        target["upload_url"],
        content=iter([png()]),
        headers={"Content-Type": "image/png"},
        trust_env=False,
    )
    assert_problem(told, (403, 411, 422), "Content-Length")
    assert stored(api, target["job_id"]) == []


def test_an_upload_that_is_too_large(start_api: StartApi) -> None:
    api = start_api(STILLREEL_IMAGE_MAX_BYTES="1000")
    target = ask_upload(api, content_type="image/png")
    assert_problem(put(target, bytes(1001)), 413, "1,000")
    assert stored(api, target["job_id"]) == []
    asked = {"content_type": "image/png", "content_length": 1001}
    assert_problem(api.client.post("/api/v1/presign/upload", json=asked), 413, "1,000")


def test_an_upload_that_breaks_off(api: Api) -> None:
    target = ask_upload(api, content_type="image/png", content_length=1000)
    at, path = urlsplit(api.url), target["upload_url"].removeprefix(api.url)
    head = f"PUT {path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: image/png\r\n"
    with create_connection((at.hostname, at.port)) as sock:
        sock.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + bytes(500))
    assert put(target, bytes(1000)).is_success
    assert [info.size for info in api.storage.list(f"inputs/{target['job_id']}/")] == [1000]


@pytest.mark.parametrize("change", ["key", "signature", "expires", "type", "size", "method"])
def test_a_link_that_was_changed(api: Api, change: str) -> None:
    target = ask_upload(api, content_type="image/png", content_length=100)
    url = httpx.URL(target["upload_url"])
    method, content_type, size = "PUT", "image/png", 100
    match change:
        case "key":
            url = url.copy_with(path=url.path.replace("inputs/", "outputs/"))
        case "signature":
            url = url.copy_set_param("signature", "x" + url.params["signature"][1:] + "x")
        case "expires":
            url = url.copy_set_param("expires", str(int(url.params["expires"]) + 1))
        case "type":
            url, content_type = url.copy_set_param("type", "text/html"), "text/html"
        case "size":
            url, size = url.copy_set_param("size", "1000000"), 1_000_000
        case "method":
            method = "GET"
    told = httpx.request(
        method,
        url,
        content=bytes(size) if method == "PUT" else None,
        headers={"Content-Type": content_type},
        trust_env=False,
    )
    assert_problem(told, 403, "link")
    assert stored(api, target["job_id"]) == []


@pytest.mark.parametrize(
    "path",
    ["/files/", "/files/..%2f..%2fetc%2fpasswd", "/files/../api.key", "/files/%00",
     "/files/outputs/x?expires=9999999999", "/files/x?expires=soon&signature=a",
     "/files/x?expires=" + "9" * 5000 + "&signature=%F0%9F%90%88", "/files/" + "a" * 10_000],
    ids=lambda path: path[:40],
)  # fmt: skip
def test_a_link_that_is_none(api: Api, path: str) -> None:
    assert_problem(exchange(api, path, method="GET").response, (403, 404, 422))


@pytest.mark.parametrize(
    ("wanted", "status", "size"),
    [
        ("bytes=100-", 416, "bytes */100"),
        ("bytes=0-9,200-", 416, "bytes */100"),
        ("bytes=x", 400, None),
        ("pages=1-2", 400, None),
    ],
)
def test_a_range_that_cannot_be(api: Api, wanted: str, status: int, size: str | None) -> None:
    (key,) = stored(api, upload(api, bytes(100)))
    url = api.app.state.services.download_url(key, seconds=60)
    told = httpx.get(url, headers={"Range": wanted}, trust_env=False)
    assert_problem(told, status, "range")
    assert told.headers.get("content-range") == size
    assert httpx.head(url, headers={"Range": wanted}, trust_env=False).status_code == status


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"content_type": ""},
        {"content_type": "text/html"},
        {"content_type": "image/svg+xml"},
        {"content_type": "image/png\r\nX-Evil: 1"},
        {"content_type": "i" * 10_000},
        {"content_type": "image/\0png"},
        {"content_type": 17},
        {"content_type": "image/png", "content_length": 0},
        {"content_type": "image/png", "content_length": -1},
        {"content_type": "image/png", "content_length": "many"},
        {"content_type": "image/png", "content_length": 10**30},
        {"content_type": "image/png", "colour": "red"},
    ],
    ids=lambda body: repr(body)[:60],
)
def test_an_upload_that_cannot_be(api: Api, body: dict[str, Any]) -> None:
    problem = assert_problem(api.client.post("/api/v1/presign/upload", json=body), (413, 422))
    told = problem["detail"].replace(" ", "_").lower()
    assert "content_" in told or "bytes" in told or "colour" in told


def test_an_order_for_an_upload_that_never_came(api: Api) -> None:
    target = ask_upload(api, content_type="image/png")
    assert_problem(order(api, job_id=target["job_id"]), 422, "upload_url")
    assert put(target, png()).is_success
    assert order(api, job_id=target["job_id"]).status_code == 200


def test_an_id_is_used_once(api: Api) -> None:
    target = ask_upload(api, content_type="image/png")
    assert put(target, png()).is_success
    assert order(api, job_id=target["job_id"]).status_code == 200
    assert_problem(order(api, job_id=target["job_id"]), 409, "job_id")
