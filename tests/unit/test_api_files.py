"""Local files over HTTP: to whom has the link, in ranges, and never more than was signed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from stillreel import storage as storage_module
from stillreel.api import files
from stillreel.api.middleware import ResponseHeaders
from stillreel.errors import StillreelError
from stillreel.links import Links
from stillreel.storage import LocalStorage

BASE = "http://testserver"
LINKS = Links(BASE, b"s" * 32)
KEY = "outputs/job_01234567/output.mp4"
INPUT = "inputs/job_01234567/input.png"
VIDEO = bytes(range(256)) * 1000
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    storage = LocalStorage(tmp_path / "storage", LINKS)
    storage.put_bytes(KEY, VIDEO, content_type="video/mp4")
    return storage


@pytest.fixture
def app(storage: LocalStorage) -> FastAPI:
    return app_on(storage)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def app_on(storage: object, links: Links | None = LINKS) -> FastAPI:
    app = FastAPI()
    app.add_middleware(ResponseHeaders)
    app.include_router(files.router)
    app.state.services = SimpleNamespace(storage=storage, links=links)

    @app.exception_handler(StillreelError)
    async def tell(request: Request, error: StillreelError) -> JSONResponse:
        return JSONResponse({"code": error.code, "detail": error.message}, error.http_status)

    return app


def outcome(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def stored(storage: LocalStorage) -> list[str]:
    """All files below the storage, half-written ones too."""
    found = (path for path in storage.root.rglob("*") if path.is_file())
    return sorted(path.relative_to(storage.root).as_posix() for path in found)


# --- download ---------------------------------------------------------------------------------


def test_a_link_gives_the_file(client: TestClient) -> None:
    answer = client.get(LINKS.download_url(KEY, 60))
    assert (answer.status_code, answer.content) == (200, VIDEO)
    headers = answer.headers
    assert headers["content-type"] == "video/mp4"
    assert headers["content-length"] == str(len(VIDEO))
    assert headers["accept-ranges"] == "bytes"
    assert headers["cache-control"] == "private"
    assert headers["x-content-type-options"] == "nosniff"
    assert "content-disposition" not in headers, "it would come before the name in a page's link"


def test_head_gives_the_headers(client: TestClient) -> None:
    url = LINKS.download_url(KEY, 60)
    answer, full = client.head(url), client.get(url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers == full.headers


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-1", 0, 2),
        ("bytes=100-199", 100, 200),
        ("bytes=255000-", 255_000, 256_000),
        ("bytes=-10", 255_990, 256_000),
        ("bytes=255999-999999", 255_999, 256_000),
    ],
)
def test_a_range_is_answered(client: TestClient, asked: str, start: int, end: int) -> None:
    answer = client.get(LINKS.download_url(KEY, 60), headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, VIDEO[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/256000"


def test_a_range_beyond_the_end_is_not_satisfiable(client: TestClient) -> None:
    answer = client.get(LINKS.download_url(KEY, 60), headers={"Range": "bytes=256000-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */256000"


def test_a_range_of_a_replaced_file_gives_the_new_file(
    client: TestClient, storage: LocalStorage
) -> None:
    url = LINKS.download_url(KEY, 60)
    headers = {"Range": "bytes=0-1", "If-Range": client.head(url).headers["etag"]}
    assert client.get(url, headers=headers).status_code == 206
    storage.put_bytes(KEY, b"new", content_type="video/mp4")
    answer = client.get(url, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"new")


def test_a_browser_is_told_to_save_what_it_is_asked_to_save(client: TestClient) -> None:
    answer = client.get(LINKS.download_url(KEY, 60) + "&download=1")
    assert answer.headers["content-disposition"] == 'attachment; filename="output.mp4"'


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.png", "inline"),
        ("a.json", "inline"),
        ("a.html", "attachment"),
        ("a.svg", "attachment"),
        ("a.xml", "attachment"),
        ("a.safetensors", "attachment"),
    ],
)
def test_a_file_that_could_act_is_never_shown(
    client: TestClient, storage: LocalStorage, name: str, shown: str
) -> None:
    storage.put_bytes(name, b"x", content_type="any")
    answer = client.get(LINKS.download_url(name, 60))
    told = answer.headers.get("content-disposition", "inline")
    assert told.partition(";")[0] == shown


def test_a_key_with_every_kind_of_character_is_found(app: FastAPI, storage: LocalStorage) -> None:
    key = "outputs/é %2e%2e?&#+/100% \N{FIRE}.png"
    storage.put_bytes(key, b"x", content_type="image/png")

    async def get() -> bytes:  # TestClient undoes the quoting of a path twice, servers do it once
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return (await client.get(LINKS.download_url(key, 60))).content

    assert asyncio.run(get()) == b"x"


def test_an_expired_link_is_refused(client: TestClient) -> None:
    answer = client.get(LINKS.download_url(KEY, -1))
    assert outcome(answer) == (403, "forbidden")
    assert "expired" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("output.mp4", "poster.jpg"),
        ("/files/", "/files//"),
        ("expires=", "expires=9"),
        ("signature=", "signature=A"),
        ("signature=", "expires=1&signature="),
        ("signature=", "other="),
    ],
)
def test_a_tampered_link_is_refused(client: TestClient, old: str, new: str) -> None:
    url = LINKS.download_url(KEY, 60)
    assert client.get(url).status_code == 200
    assert outcome(client.get(url.replace(old, new, 1))) == (403, "forbidden")


def test_a_link_does_not_change_its_method(client: TestClient, storage: LocalStorage) -> None:
    upload = LINKS.upload_url(KEY, "image/png", 1, 60)
    assert outcome(client.get(upload)) == (403, "forbidden")
    assert client.head(upload).status_code == 403
    download = LINKS.download_url(KEY, 60)
    assert outcome(client.put(download, content=b"x", headers=PNG)) == (403, "forbidden")
    for method in ("POST", "DELETE", "PATCH"):
        assert client.request(method, download).status_code == 405
    assert storage.get_bytes(KEY) == VIDEO


def test_what_is_not_there_is_told(client: TestClient) -> None:
    for key in ("outputs/none.mp4", "outputs", "outputs/job_01234567", f"{KEY}/x"):
        assert outcome(client.get(LINKS.download_url(key, 60))) == (404, "object_missing")


@pytest.mark.parametrize(
    "key", ["../secret.txt", "outputs/../../secret.txt", "/etc/passwd", ".parts/x", "a\\b", "a\0b"]
)
def test_no_key_leads_out_of_the_storage(app: FastAPI, storage: LocalStorage, key: str) -> None:
    (storage.root.parent / "secret.txt").write_bytes(b"hidden")
    for method in ("GET", "PUT"):
        url = (
            LINKS.download_url(key, 60)
            if method == "GET"
            else LINKS.upload_url(key, "image/png", 1, 60)
        )
        status, body = exchange(app, method, url, key=key, body=[b"x"], **{"content-length": "1"})
        assert status == 422
        assert b"storage key" in body
    assert (storage.root.parent / "secret.txt").read_bytes() == b"hidden"


def test_without_local_storage_there_are_no_files(storage: LocalStorage) -> None:
    for app in (app_on(object()), app_on(storage, None)):
        with TestClient(app) as client:
            assert outcome(client.get(LINKS.download_url(KEY, 60))) == (404, "not_found")
            put = client.put(LINKS.upload_url(INPUT, "image/png", 1, 60), content=b"x", headers=PNG)
            assert outcome(put) == (404, "not_found")


# --- upload -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_an_upload_is_stored(client: TestClient, storage: LocalStorage, size: int) -> None:
    url = LINKS.upload_url(INPUT, "image/png", size, 60)
    answer = client.put(url, content=bytes(size), headers=PNG)
    assert (answer.status_code, answer.content) == (200, b"")
    assert storage.get_bytes(INPUT) == bytes(size)
    assert stored(storage) == [INPUT, KEY]


def test_an_upload_may_be_repeated(client: TestClient, storage: LocalStorage) -> None:
    url = LINKS.upload_url(INPUT, "image/png", 3, 60)
    for body in (b"old", b"new"):
        assert client.put(url, content=body, headers=PNG).status_code == 200
    assert storage.get_bytes(INPUT) == b"new"


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        pytest.param(b"12345", {"Content-Type": "image/jpeg"}, id="another type"),
        pytest.param(b"12345", {"Content-Type": "image/png; q=1"}, id="a type and more"),
        pytest.param(b"12345", {}, id="no type"),
        pytest.param(b"123456", PNG, id="a longer body"),
        pytest.param(b"1234", PNG, id="a shorter body"),
        pytest.param(b"12345", {**PNG, "Content-Length": "05"}, id="a strange length"),
    ],
)
def test_an_upload_has_the_signed_type_and_length(
    client: TestClient, storage: LocalStorage, content: bytes, headers: dict[str, str]
) -> None:
    url = LINKS.upload_url(INPUT, "image/png", 5, 60)
    assert outcome(client.put(url, content=content, headers=headers)) == (403, "forbidden")
    assert stored(storage) == [KEY]


def test_a_body_in_chunks_without_a_length_is_refused(
    client: TestClient, storage: LocalStorage
) -> None:
    url = LINKS.upload_url(INPUT, "image/png", 5, 60)
    answer = client.put(url, content=iter([b"12", b"345"]), headers=PNG)
    assert "content-length" not in answer.request.headers
    assert outcome(answer) == (403, "forbidden")
    assert stored(storage) == [KEY]


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(LINKS.upload_url(INPUT, "image/png", 5, -1), id="expired"),
        pytest.param(
            LINKS.upload_url(INPUT, "image/png", 4, 60).replace("size=4", "size=5"), id="size"
        ),
        pytest.param(
            LINKS.upload_url(INPUT, "text/html", 5, 60).replace("text%2Fhtml", "image%2Fpng"),
            id="type",
        ),
        pytest.param(f"{BASE}/files/{INPUT}", id="unsigned"),
        pytest.param(
            LINKS.upload_url("inputs/job_x/input.png", "image/png", 5, 60).replace(
                "inputs/job_x/input.png", INPUT
            ),
            id="key",
        ),
    ],
)
def test_a_wrong_upload_link_is_refused(
    client: TestClient, storage: LocalStorage, url: str
) -> None:
    answer = client.put(url, content=b"12345", headers=PNG)
    assert outcome(answer) == (403, "forbidden")
    assert stored(storage) == [KEY]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param([b"123", b"456"], 413, id="longer than its length says"),
        pytest.param([b"123"], 422, id="shorter than its length says"),
        pytest.param([b"123", None], 422, id="cut off"),
    ],
)
def test_a_body_that_lies_about_its_length_changes_nothing(
    app: FastAPI, storage: LocalStorage, body: list[bytes | None], status: int
) -> None:
    storage.put_bytes(INPUT, b"old", content_type="image/png")
    url = LINKS.upload_url(INPUT, "image/png", 5, 60)
    answered, _ = exchange(app, "PUT", url, body=body, **{"content-length": "5"})
    assert answered == status
    assert storage.get_bytes(INPUT) == b"old"
    assert stored(storage) == [INPUT, KEY]


def test_an_endless_body_is_read_no_further_than_signed(
    app: FastAPI, storage: LocalStorage
) -> None:
    url = LINKS.upload_url(INPUT, "image/png", 5, 60)
    taken: list[bytes] = []

    async def flood() -> AsyncIterator[bytes]:
        while True:
            taken.append(b"1234")
            yield taken[-1]

    async def put() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.put(url, content=flood(), headers={**PNG, "Content-Length": "5"})

    assert outcome(asyncio.run(put())) == (413, "body_too_large")
    assert len(taken) == 2
    assert stored(storage) == [KEY]


@pytest.mark.parametrize(
    ("key", "limit"), [(INPUT, "START_SECONDS"), ("temp/job_01234567/0123", "URL_SECONDS")]
)
def test_a_body_that_stalls_is_given_up(
    key: str, limit: str, app: FastAPI, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, limit, 0.05)

    async def stall() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.Event().wait()

    async def put() -> httpx.Response:
        url = LINKS.upload_url(key, "image/png", 5, 60)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.put(url, content=stall(), headers={**PNG, "Content-Length": "5"})

    assert outcome(asyncio.run(put())) == (408, "body_too_slow")
    assert stored(storage) == [KEY]


def test_an_upload_that_is_cancelled_leaves_nothing(app: FastAPI, storage: LocalStorage) -> None:
    url = LINKS.upload_url(INPUT, "image/png", 5, 60)

    async def put_and_cancel() -> None:
        stalled = asyncio.Event()

        async def stall() -> AsyncIterator[bytes]:
            yield b"1"
            stalled.set()
            await asyncio.Event().wait()

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            headers = {**PNG, "Content-Length": "5"}
            task = asyncio.create_task(client.put(url, content=stall(), headers=headers))
            await stalled.wait()
            assert len(stored(storage)) == 2
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(put_and_cancel())
    assert stored(storage) == [KEY]


def test_by_a_link_of_a_rented_host_one_upload_comes_at_a_time(
    app: FastAPI, storage: LocalStorage
) -> None:
    key = "temp/job_01234567/0123"
    url = LINKS.upload_url(key, "image/png", 5, 60)

    async def put_twice() -> None:
        begun = asyncio.Event()

        async def stall() -> AsyncIterator[bytes]:
            yield b"1"
            begun.set()
            await asyncio.Event().wait()

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            headers = {**PNG, "Content-Length": "5"}
            first = asyncio.create_task(client.put(url, content=stall(), headers=headers))
            await begun.wait()
            for _ in range(3):
                second = await client.put(url, content=b"12345", headers=PNG)
                assert outcome(second) == (503, "storage_unavailable")
            assert len(stored(storage)) == 2
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            again = await client.put(url, content=b"12345", headers=PNG)
            assert again.status_code == 200

    asyncio.run(put_twice())
    assert stored(storage) == [KEY, key]


def test_a_rented_host_does_not_fill_the_disk(
    client: TestClient, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "FREE_BYTES", 10**18)
    url = LINKS.upload_url("temp/job_01234567/0123", "image/png", 5, 60)
    assert outcome(client.put(url, content=b"12345", headers=PNG)) == (507, "disk_full")
    assert stored(storage) == [KEY]


def test_a_storage_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with TestClient(app_on(LocalStorage(tmp_path / "file"))) as client:
        url = LINKS.upload_url(INPUT, "image/png", 1, 60)
        answer = client.put(url, content=b"x", headers=PNG)
    assert outcome(answer) == (502, "storage_refused")


def exchange(
    app: FastAPI, method: str, url: str, *, key: str = "", body: list[bytes | None], **headers: str
) -> tuple[int, bytes]:
    """Status and body of an answer to exactly this; None in `body` is a broken connection."""
    split = urlsplit(url)
    path = f"/files/{key}" if key else split.path
    headers = {"content-type": "image/png", **headers}
    events: list[dict[str, Any]] = [
        {"type": "http.disconnect"}
        if chunk is None
        else {"type": "http.request", "body": chunk, "more_body": chunk is not body[-1]}
        for chunk in body
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": split.query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_a_page_of_any_site_may_use_a_link(client: TestClient) -> None:
    """A browser asks first, and then has to find the permission on every answer, refusals too."""
    asked = {
        "Origin": "https://happy-otter-1.example",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "content-type",
    }
    told = client.options(f"/files/{INPUT}", headers=asked)
    assert told.status_code == 204
    assert "PUT" in told.headers["access-control-allow-methods"]
    assert "content-type" in told.headers["access-control-allow-headers"].lower()
    url = LINKS.upload_url(INPUT, "image/png", 3, 60)
    for answer in (
        told,
        client.put(url, content=b"png", headers=PNG),
        client.put(f"/files/{INPUT}", content=b"png", headers=PNG),
        client.get(LINKS.download_url(KEY, 60)),
        client.get(f"/files/{KEY}"),
    ):
        assert answer.headers["access-control-allow-origin"] == "*", answer.status_code
        assert "access-control-allow-credentials" not in answer.headers
