"""Bad bodies get a clear error: no JSON, another type, too long, too slow, a broken form."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import pytest

from tests.api.calls import GENERATE, JSON
from tests.api.conftest import Api, StartApi
from tests.api.outside import assert_problem, assert_serves, exchange

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


@pytest.mark.parametrize("path", [*GENERATE, "/api/v1/presign/upload", "/api/v1/batches"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"prompt": "a cat"',
        b'{"prompt": "a cat",}',
        b"null",
        b"[]",
        b'"prompt"',
        b"17",
        b"NaN",
        b'{"prompt": "\xff\xfe"}',
        b'\xff\xfe{\x00"\x00',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"\x00" * 100,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_is_no_json_object(api: Api, path: str, body: bytes) -> None:
    problem = assert_problem(api.client.post(path, content=body, headers=JSON), (400, 422))
    told = problem["detail"].lower()
    assert "json" in told or "object" in told, told


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/generate", b'{"prompt": "a cat"}'),
        ("/generate", b'{"prompt": "a cat"}'),
        ("/api/v1/presign/upload", b'{"content_type": "image/png"}'),
        ("/api/v1/batches", b'{"items": [{"prompt": "a cat"}]}'),
    ],
)
@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/xml", "application/octet-stream"]
)
def test_a_body_of_another_type(api: Api, path: str, body: bytes, content_type: str) -> None:
    """`curl -d` says "form" to what is JSON: it is taken, or the error leads to the header."""
    told = api.client.post(path, content=body, headers={"Content-Type": content_type})
    if told.status_code == 200:
        return
    problem = assert_problem(told, (400, 415, 422))
    assert "content-type" in problem["detail"].lower() or "json" in problem["detail"].lower()


# --- how a body comes -------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*GENERATE, "/api/v1/presign/upload", "/webhook/complete"])
def test_a_body_of_50_megabytes(api: Api, path: str) -> None:
    """A client that writes all of it before it reads gets the answer too."""
    body = b'{"prompt": "' + b"p" * 50_000_000 + b'"}'
    problem = assert_problem(api.client.post(path, content=body, headers=JSON), 413, "25000000")
    assert "presign/upload" in problem["detail"]


def test_a_body_that_says_it_has_50_megabytes_is_not_waited_for(api: Api) -> None:
    said = exchange(api, "/generate", headers={"Content-Length": "50000000"})
    assert_problem(said.response, 413)
    assert said.sent == 0


def test_a_body_without_an_end(start_api: StartApi) -> None:
    small = start_api(STILLREEL_BODY_MAX_BYTES="100000")
    chunk = b"2710\r\n" + b"p" * 10_000 + b"\r\n"
    said = exchange(
        small, "/generate", headers={"Transfer-Encoding": "chunked"}, body=repeat(chunk)
    )
    assert_problem(said.response, 413, "100000")
    assert_serves(small)


@pytest.mark.parametrize("body", [(), (b"{",), repeat(b" ")], ids=["none", "one", "drip"])
@pytest.mark.parametrize(
    "headers",
    [{"Content-Length": "100000"}, {"Transfer-Encoding": "chunked"}],
    ids=["length", "chunked"],
)
def test_a_body_that_is_too_slow(start_api: StartApi, body: Any, headers: dict[str, str]) -> None:
    hasty = start_api(STILLREEL_BODY_SECONDS="0.5")
    if "Transfer-Encoding" in headers:
        body = (b"1\r\n" + part + b"\r\n" for part in body)
    said = exchange(hasty, "/generate", headers=headers, body=body, pace=0.05)
    assert_problem(said.response, 408, "0.5 s")
    assert_serves(hasty)


def test_slow_bodies_keep_nobody_waiting(start_api: StartApi) -> None:
    hasty = start_api(STILLREEL_BODY_SECONDS="2")
    with ThreadPoolExecutor(32) as pool:
        slow = [
            pool.submit(exchange, hasty, "/generate", headers={"Content-Length": "10"})
            for _ in range(32)
        ]
        assert_serves(hasty)
        assert {job.result().status for job in slow} == {408}


# --- forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x\r\n",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat',
        b"no boundary at all",
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nx\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="width"\r\n\r\nwide\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\0cat\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
        + b"p" * 2_000_000
        + b"\r\n--x--\r\n",
    ],
    ids=lambda body: repr(body[-24:]),
)
def test_a_form_that_is_none(api: Api, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    told = api.client.post("/api/v1/generate", content=body, headers=headers)
    assert_problem(told, (400, 413, 422))


def test_a_form_without_its_boundary(api: Api) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    told = api.client.post("/api/v1/generate", content=b"--x--", headers=headers)
    assert_problem(told, (400, 422), "boundary")
