"""Bad input gets a clear error, and nothing is lost: each row of the list, from outside.

Every test ends with a good order, and with the look at a job that was there before.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import repeat
from socket import create_connection
from threading import Barrier
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.states import Running

from stillreel.errors import AddressRefused
from tests.api.background import eventually
from tests.api.conftest import SMALL, Api, StartApi, png
from tests.api.outside import (
    UNKNOWN_ID,
    another_owner,
    assert_problem,
    assert_serves,
    count_runs,
    exchange,
    stored,
)
from tests.receiver import Answer, Receiver, answer, endless, redirect

JSON = {"Content-Type": "application/json"}
GENERATE = ("/api/v1/generate", "/generate")
ABOUT_A_JOB = [
    ("GET", "/api/v1/jobs/{}"),
    ("GET", "/status/{}"),
    ("GET", "/api/v1/presign/download/{}"),
    ("GET", "/api/v1/jobs/{}/events"),
    ("POST", "/api/v1/jobs/{}/cancel"),
    ("POST", "/api/v1/jobs/{}/retry"),
    ("POST", "/api/v1/jobs/{}/redeliver"),
    ("DELETE", "/api/v1/jobs/{}"),
]
PNG_BASE64 = base64.b64encode(png()).decode()


@pytest.fixture(scope="module")
def earlier_job(api: Api) -> str:
    return api.submit(prompt="before all that")["job_id"]


@pytest.fixture(autouse=True)
def nothing_is_lost(api: Api, earlier_job: str) -> Iterator[None]:
    yield
    assert_serves(api)
    api.forget()
    assert api.job(earlier_job)["status"] == "queued"


def order(api: Api, **values: Any) -> httpx.Response:
    return api.client.post("/api/v1/generate", json=SMALL | {"prompt": "a cat"} | values)


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer the-first-owners-ke"},
        {"Authorization": "Bearer the-first-owners-key2"},
        {"Authorization": "Bearer " + "k" * 10_000},
        {"Authorization": b"Bearer the-first-owners-k\xe9y"},
        {"Authorization": "", "X-API-Key": b"\xff\xfe"},
        {"Authorization": "Bearer sr_abcdefghij27_" + "A" * 43},
    ],
    ids=str,
)
def test_a_key_that_is_none(api: Api, headers: dict[str, str | bytes]) -> None:
    raw = [
        (name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in headers.items()
    ]
    told = api.client.post("/api/v1/generate", headers=raw, json={"prompt": "x"})
    problem = assert_problem(told, 401)
    assert problem["error"] in ("Missing authorization header", "Invalid API key")


@pytest.mark.parametrize(
    "path",
    [*GENERATE, "/api/v1/presign/upload", "/api/v1/batches", "/api/v1/estimate"],
)
def test_without_a_key_no_body_is_read(api: Api, path: str) -> None:
    told = httpx.post(api.url + path, content=b"{", headers=JSON, trust_env=False)
    assert_problem(told, 401)


def test_a_key_that_may_only_read(api: Api) -> None:
    with another_owner(api, scopes=["read"]) as reader:
        assert reader.get("/api/v1/jobs").status_code == 200
        assert_problem(reader.post("/generate", json={"prompt": "x"}), 403, "generate")


def test_another_owners_job_is_like_none(api: Api, earlier_job: str) -> None:
    """Also its error: nobody learns which ids there are."""
    with another_owner(api) as other:
        for method, path in ABOUT_A_JOB:
            assert_alike(
                other.request(method, path.format(earlier_job)),
                other.request(method, path.format(UNKNOWN_ID)),
            )


@pytest.mark.parametrize(
    ("path", "values"),
    [("/api/v1/presign/upload", {"content_type": "image/png"}), ("/api/v1/generate", SMALL)],
)
def test_another_owners_job_takes_no_image(
    api: Api, earlier_job: str, path: str, values: dict[str, Any]
) -> None:
    with another_owner(api) as other:
        assert_alike(
            other.post(path, json=values | {"job_id": earlier_job}),
            other.post(path, json=values | {"job_id": UNKNOWN_ID}),
        )


def assert_alike(foreign: httpx.Response, unknown: httpx.Response) -> None:
    one, two = assert_problem(foreign, 404, "job"), assert_problem(unknown, 404)
    for problem in (one, two):
        del problem["instance"], problem["request_id"]
    assert one == two


def test_lists_hold_only_ones_own_jobs(api: Api, earlier_job: str) -> None:
    with another_owner(api) as other:
        assert other.get("/api/v1/jobs").json()["jobs"] == []
        own = other.post("/generate", json=SMALL | {"prompt": "mine"}).json()["job_id"]
        seen = other.get("/api/v1/jobs", params={"owner": "default"}).json()["jobs"]
    assert [job["job_id"] for job in seen] == [own]


# --- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job_id",
    [
        UNKNOWN_ID,
        "x",
        "..",
        "../../../etc/passwd",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "job_abcdefgh%2f..%2fother",
        "job_abcdefgh%00",
        "%00",
        "%ff%fe",
        "%F0%9F%90%88",
        "job_" + "a" * 10_000,
        "a" * 10_000,
        "job_00000000000000000000000000000000",
        "%27%20OR%201%3D1--",
    ],
    ids=lambda job_id: job_id[:40],
)
def test_an_id_that_is_none(api: Api, job_id: str) -> None:
    for method, path in [*ABOUT_A_JOB, ("GET", "/api/v1/batches/{}")]:
        said = exchange(api, path.format(job_id), method=method, headers={"Content-Length": "0"})
        # A path with dots or slashes may be another one, which has other methods.
        assert_problem(said.response, 404 if is_segment(job_id) else (404, 405))


def is_segment(text: str) -> bool:
    return unquote(text) != ".." and "/" not in unquote(text)


@pytest.mark.parametrize(
    "job_id", ["..", "../outputs/x", "a/b", "job_\0abcdefgh", "j" * 10_000, "\ud800", "", "  "]
)
@pytest.mark.parametrize("path", ["/api/v1/presign/upload", "/api/v1/generate"])
def test_an_id_in_a_body_that_is_none(api: Api, path: str, job_id: str) -> None:
    body = {"job_id": job_id} | (
        {"content_type": "image/png"} if path.endswith("upload") else {"duration": 1}
    )
    told = api.client.post(path, content=json.dumps(body), headers=JSON)
    if told.status_code == 200:  # an empty id is one that was left out
        assert not job_id.strip()
        assert told.json()["job_id"].startswith("job_")
        return
    assert_problem(told, (404, 422))


# --- bodies -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 17),
        ("prompt", ["a"]),
        ("prompt", {"a": 1}),
        ("image_url", 17),
        ("image_base64", ["x"]),
        ("duration", "long"),
        ("duration", [5]),
        ("width", "wide"),
        ("width", 12.5),
        ("width", -2),
        ("seed", -2),
        ("seed", 2**70),
        ("fps", 1000),
        ("fps", -1),
        ("steps", 100_000),
        ("codec", "vp8"),
        ("quality", "best"),
        ("audio", "perhaps"),
        ("priority", "now"),
        ("deadline", "tomorrow"),
        ("deadline", "2026-11-21T00:00:00"),
        ("webhook_url", 17),
        ("job_id", 17),
        ("preset", "p" * 1000),
        ("colour", "red"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_field_of_the_wrong_kind_is_pointed_at(api: Api, field: str, value: object) -> None:
    problem = assert_problem(order(api, **{field: value}), 422, field)
    assert f"#/{field}" in [mistake["pointer"] for mistake in problem["errors"]]


def test_all_wrong_fields_are_named_at_once(api: Api) -> None:
    problem = assert_problem(order(api, width="wide", fps=-1, colour="red"), 422)
    assert {mistake["pointer"] for mistake in problem["errors"]} == {"#/width", "#/fps", "#/colour"}


@pytest.mark.parametrize("path", ["/generate", "/api/v1/presign/upload", "/api/v1/estimate"])
def test_a_million_wrong_fields_stand_in_nobodys_way(api: Api, earlier_job: str, path: str) -> None:
    """24 MB are allowed, and one event loop is all there is."""
    fields = ",".join(f'"f{n}":1' for n in range(1_900_000))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            api.client.post, path, content=f"{{{fields}}}", headers=JSON, timeout=120
        )
        while not answer.done():
            api.client.get(f"/api/v1/jobs/{earlier_job}", timeout=3).raise_for_status()
    assert_problem(answer.result(), (413, 422), "field")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": "sora"}, ("sora", "preview")),
        ({"model": "m" * 10_000}, ("model", "40")),
        ({"preset": "turbo"}, ("turbo", "standard")),
        ({"width": 2, "height": 2}, ("2x2", "16", "4096")),
        ({"width": 4096, "height": 14}, ("4096x14", "16")),
        ({"fps": 23}, ("23", "24")),
        ({"image_url": "https://8.8.8.8/a.png", "image_base64": PNG_BASE64}, ("keep one",)),
        ({"image_url": "https://8.8.8.8/a.png", "job_id": UNKNOWN_ID}, ("keep one",)),
        ({"prompt": ""}, ("image", "prompt")),
        ({"prompt": "   "}, ("image", "prompt")),
        ({"prompt": None}, ("image", "prompt")),
        ({"deadline": "2020-01-01T00:00:00Z"}, ("deadline", "future")),
        ({"deadline": "9999-01-01T00:00:00Z"}, ("deadline", "days")),
    ],
    ids=lambda values: repr(values)[:40],
)
def test_an_order_that_no_model_can_fulfil(
    api: Api, values: dict[str, Any], says: tuple[str, ...]
) -> None:
    assert_problem(order(api, **values), 422, *says)


def test_a_size_off_the_grid_is_refused_or_said(api: Api, inference_server: None) -> None:
    """A size is changed, if at all, with a word to the caller."""
    told = order(api, width=129, height=73)
    if told.status_code != 200:
        assert_problem(told, 422, "129", "73")
        return
    job_id = told.json()["job_id"]
    assert api.execute(job_id).is_completed()
    job = api.job(job_id)
    assert (job["video"]["width"], job["video"]["height"]) == (128, 72)
    assert "128x72 instead of 129x73" in " ".join(job["warnings"])


@pytest.mark.parametrize(
    "duration", ["-1", "0", "-0.0", "31", "1000000000", "1e999", "NaN", "Infinity", "-Infinity"]
)
@pytest.mark.parametrize("path", GENERATE)
def test_a_duration_out_of_bounds(api: Api, path: str, duration: str) -> None:
    """NaN and Infinity are no JSON, yet Python's and others' writers make them."""
    body = f'{{"prompt": "a cat", "duration": {duration}}}'
    problem = assert_problem(api.client.post(path, content=body, headers=JSON), (400, 422))
    assert "duration" in problem["detail"] or "JSON" in problem["detail"]
    if not math.isnan(float(duration)) and 0 < float(duration) < math.inf:
        assert "30" in problem["detail"]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ('"a\\u0000cat"', "NUL"),
        ('"half of \\ud83d"', "unicode"),
        ('"\\udc08 and the other"', "unicode"),
        (json.dumps("p" * 100_000), "4000"),
        (json.dumps("\U0001f408" * 4001), "4000"),
    ],
    ids=["NUL", "high surrogate", "low surrogate", "100 kB", "4001 cats"],
)
@pytest.mark.parametrize("path", GENERATE)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_text_that_cannot_be_kept(
    api: Api, path: str, field: str, prompt: str, says: str
) -> None:
    body = f'{{"{field}": {prompt}}}'
    assert_problem(api.client.post(path, content=body, headers=JSON), 422, field, says)


@pytest.mark.parametrize(
    "prompt",
    ["\U0001f408\u200d\U0001f680 auf dem Mond", "\u202egninraw", "Robert'); DROP TABLE jobs;--",
     "{{ secret }} ${HOME} %s", "line\nbreak\ttab", "\U0001f408" * 4000],
    ids=lambda prompt: prompt[:12],
)  # fmt: skip
def test_a_text_that_is_only_unusual_is_kept_as_it_is(api: Api, prompt: str) -> None:
    job_id = api.submit(prompt=prompt)["job_id"]
    assert api.job(job_id)["prompt"] == prompt


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


# --- images -----------------------------------------------------------------------------------


def bomb(side: int = 12_000) -> bytes:
    """A small, valid PNG of 144 million black pixels."""
    pack = zlib.compressobj(9)
    row = bytes(side + 1)
    data = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


BOMB = bomb()
NO_IMAGES = {
    "text": b"This is not an image at all.",
    "html": b"<!doctype html><title>Log in</title>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "pdf": b"%PDF-1.7\n",
    "a head alone": png()[:40],
    "mp4": b"\0\0\0\x20ftypisom" + bytes(100),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.mark.parametrize("content", NO_IMAGES.values(), ids=NO_IMAGES)
@pytest.mark.parametrize("way", ["base64", "data url", "form", "upload"])
def test_what_is_no_image(api: Api, way: str, content: bytes) -> None:
    problem = assert_problem(send_image(api, way, content), (413, 415, 422), "image")
    assert problem["code"].startswith("image_")


@pytest.mark.parametrize("way", ["base64", "data url", "form", "upload"])
def test_an_image_bomb(api: Api, way: str) -> None:
    assert len(BOMB) < 1_000_000
    assert_problem(send_image(api, way, BOMB), (413, 422), "64,000,000", "pixels")


@pytest.mark.parametrize(
    "text",
    ["", "!!!!", "abc", "data:", "data:image/png,abc", "data:image/png;base64", "\u20ac\u20ac",
     "data:image/png;base64,", "https://example.com/a.png", PNG_BASE64[:-3] + "*"],
)  # fmt: skip
def test_what_is_no_base64(api: Api, text: str) -> None:
    told = api.client.post("/generate", json={"image_base64": text, "duration": 1})
    assert_problem(told, 422, "image")


def test_an_image_that_is_too_small(api: Api) -> None:
    told = send_image(api, "base64", png(1, 1))
    if told.status_code != 200:
        assert_problem(told, 422, "image", "pixel")


def test_two_images_in_a_form(api: Api) -> None:
    told = api.client.post(
        "/api/v1/generate",
        data={"image_url": "https://8.8.8.8/a.png"},
        files={"image": ("a.png", png(), "image/png")},
    )
    assert_problem(told, 422, "image")


def send_image(api: Api, way: str, content: bytes) -> httpx.Response:
    text = base64.b64encode(content).decode()
    match way:
        case "base64":
            return order(api, image_base64=text)
        case "data url":
            return order(api, image_base64=f"data:image/png;base64,{text}")
        case "form":
            return api.client.post(
                "/api/v1/generate",
                data={"prompt": "a cat"},
                files={"image": ("a.png", content, "image/png")},
            )
    target = ask_upload(api, content_type="image/png")
    assert put(target, content).is_success
    return order(api, job_id=target["job_id"])


@pytest.mark.parametrize(
    ("act", "code", "says"),
    [
        (answer(404), "image_unavailable", "404"),
        (answer(403), "image_unavailable", "403"),
        (answer(body=b"<html>no</html>", Content_Type="image/png"), "image_rejected", "image"),
        (answer(body=b"", Content_Type="image/png"), "image_rejected", "image"),
        (answer(body=BOMB, Content_Type="image/png"), "image_too_large", "pixels"),
        (endless, "image_too_large", "bytes"),
        (redirect("http://169.254.169.254/latest/meta-data/"), "address_refused", "public"),
        (redirect("http://127.0.0.1:1/a.png"), "address_refused", "public"),
        (redirect("http://2130706433:1/a.png"), "address_refused", "public"),
        (redirect("file:///etc/passwd"), "address_refused", "public"),
        (redirect("/again"), "image_unavailable", "redirects"),
    ],
    ids=["404", "403", "html", "empty", "bomb", "endless", "metadata", "port", "decimal", "file",
         "loop"],
)  # fmt: skip
def test_an_address_without_an_image(
    start_api: StartApi, act: Answer, code: str, says: str
) -> None:
    """It is known when it is fetched, soon after the order: then the job fails, and says why."""
    with Receiver((act,)) as server:
        api = start_api(
            STILLREEL_ALLOW_ADDRESSES=f"127.0.0.1:{server.port}",
            STILLREEL_IMAGE_MAX_BYTES="1000000",
        )
        job_id = api.submit(image_url=f"{server.url}image.png")["job_id"]
        job: dict[str, Any] = {}
        for attempt in eventually():
            with attempt:
                job = api.job(job_id)
                assert (job["status"], job["error_code"]) == ("failed", code)
    assert says in job["error"]
    assert "127.0.0.1" not in job["error"]
    assert "169.254" not in job["error"]
    assert job["result_url"] is None


def test_half_an_image_fails_and_says_so(api: Api, inference_server: None) -> None:
    """Its head is good; that the rest is missing shows when it is decoded."""
    told = send_image(api, "base64", png()[: len(png()) // 2])
    if told.status_code != 200:
        assert_problem(told, 422, "image")
        return
    job_id = told.json()["job_id"]
    assert not api.execute(job_id).is_completed()
    job = api.job(job_id)
    assert (job["status"], job["error_code"]) == ("failed", "image_rejected")


# --- addresses --------------------------------------------------------------------------------

FORBIDDEN = {
    "loopback": "http://127.0.0.1/",
    "its port": "http://127.0.0.1:4200/api/health",
    "all of it": "http://127.1.2.3/",
    "short": "http://127.1/",
    "decimal": "http://2130706433/",
    "octal": "http://0177.0.0.1/",
    "octal in one": "http://017700000001/",
    "hex": "http://0x7f.0.0.1/",
    "hex in one": "http://0x7f000001/",
    "zero": "http://0/",
    "any": "http://0.0.0.0/",
    "name": "http://localhost/",
    "name with a dot": "http://localhost./",
    "upper case": "http://LOCALHOST/",
    "address with a dot": "http://127.0.0.1./",
    "below localhost": "http://a.localhost/",
    "private 10": "http://10.0.0.1/",
    "private 172": "http://172.16.0.1/",
    "private 192": "http://192.168.1.1/",
    "carrier": "http://100.64.0.1/",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "metadata in decimal": "http://2852039166/",
    "metadata of Azure": "http://168.63.129.16/",
    "multicast": "http://224.0.0.1/",
    "broadcast": "http://255.255.255.255/",
    "documentation": "http://192.0.2.1/",
    "v6 loopback": "http://[::1]/",
    "v6 any": "http://[::]/",
    "v6 mapped": "http://[::ffff:127.0.0.1]/",
    "v6 mapped in hex": "http://[::ffff:7f00:1]/",
    "v6 compatible": "http://[::127.0.0.1]/",
    "v6 nat64": "http://[64:ff9b::7f00:1]/",
    "v6 6to4": "http://[2002:7f00:1::]/",
    "v6 link": "http://[fe80::1]/",
    "v6 unique": "http://[fd00::1]/",
    "v6 metadata": "http://[fd00:ec2::254]/",
    "user": "http://user@8.8.8.8/",
    "user and password": "http://example.com:80@127.0.0.1/",
    "backslash": "http://8.8.8.8\\@127.0.0.1/",
    "fullwidth": "http://\uff11\uff12\uff17.0.0.1/",
    "circled": "http://\u2460\u2461\u2466.0.0.1/",
    "ideographic dot": "http://127\u30020\u30020\u30021/",
    "file": "file:///etc/passwd",
    "ftp": "ftp://8.8.8.8/a.png",
    "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
    "data": "data:image/png;base64,AAAA",
    "javascript": "javascript:alert(1)",
    "no scheme": "8.8.8.8/a.png",
    "two slashes": "//8.8.8.8/a.png",
    "no host": "http:///a.png",
    "port 0": "http://8.8.8.8:0/",
    "port 99999": "http://8.8.8.8:99999/",
    "words": "an image of a cat",
    "line break": "http://127.0.0.1/\r\nHost: x",
    "half an address": "http://[::1/",
}


@pytest.mark.parametrize("url", FORBIDDEN.values(), ids=FORBIDDEN)
def test_an_address_that_is_not_public(api: Api, url: str) -> None:
    """For images and webhooks alike, and in the same words: no oracle of what is inside."""
    for field in ("image_url", "webhook_url"):
        problem = assert_problem(order(api, **{field: url}), 422)
        assert problem["code"] == "address_refused"
        assert problem["detail"] == AddressRefused().message


def test_an_address_that_is_too_long(api: Api) -> None:
    for field in ("image_url", "webhook_url"):
        url = "https://8.8.8.8/" + "a" * 3000
        assert_problem(order(api, **{field: url}), 422, field, "2048")


def test_only_the_pair_itself_is_allowed(start_api: StartApi) -> None:
    with Receiver() as server:
        api = start_api(STILLREEL_ALLOW_ADDRESSES=f"127.0.0.1:{server.port}")
        assert order(api, image_url=server.url).status_code == 200
        for host in ("localhost", "127.1", "[::ffff:127.0.0.1]", "127.0.0.1.", "2130706433"):
            assert_problem(order(api, image_url=f"http://{host}:{server.port}/"), 422, "public")
        assert_problem(order(api, image_url="http://127.0.0.1/"), 422, "public")


# --- the same order twice ---------------------------------------------------------------------


def at_once(
    api: Api, count: int, path: str, bodies: Callable[[int], Any], **headers: str
) -> list[httpx.Response]:
    """The answers to so many requests that leave at one instant."""
    barrier = Barrier(count)

    def send(n: int) -> httpx.Response:
        barrier.wait()
        return api.client.post(path, json=bodies(n), headers=headers, timeout=20)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(send, range(count)))


@pytest.mark.parametrize("path", GENERATE)
def test_twenty_times_the_same_order_at_one_instant(api: Api, path: str) -> None:
    body = SMALL | {"prompt": "once", "image_base64": PNG_BASE64}
    told = at_once(api, 20, path, lambda _: body, **{"Idempotency-Key": f'"{uuid4()}"'})
    assert {response.status_code for response in told} == {200}
    ids = {response.json()["job_id"] for response in told}
    assert len(ids) == 1
    assert count_runs(ids.pop()) == 1
    replayed = [response.headers.get("Idempotency-Replayed") for response in told]
    assert (replayed.count("true"), replayed.count(None)) == (19, 1)


def test_two_orders_under_one_key_at_one_instant(api: Api) -> None:
    """One of them is made, and the others are told."""
    told = at_once(
        api,
        10,
        "/generate",
        lambda n: SMALL | {"prompt": f"cat {n}"},
        **{"Idempotency-Key": str(uuid4())},
    )
    made = [response for response in told if response.status_code == 200]
    assert len(made) == 1
    for response in told:
        if response is not made[0]:
            assert_problem(response, 422, "Idempotency-Key")
    assert count_runs(made[0].json()["job_id"]) == 1


def test_twenty_orders_for_one_upload_at_one_instant(api: Api) -> None:
    target = ask_upload(api, content_type="image/png")
    assert put(target, png()).is_success
    told = at_once(
        api,
        20,
        "/api/v1/generate",
        lambda n: SMALL | {"prompt": f"cat {n}", "job_id": target["job_id"]},
    )
    made = [response for response in told if response.status_code == 200]
    assert len(made) == 1
    for response in told:
        if response is not made[0]:
            assert_problem(response, 409, "job_id")
    assert count_runs(target["job_id"]) == 1


@pytest.mark.parametrize("key", ["", '""', "k" * 256, "a\tb", '"half'], ids=repr)
def test_an_idempotency_key_that_is_none(api: Api, key: str) -> None:
    told = api.client.post("/generate", json={"prompt": "x"}, headers={"Idempotency-Key": key})
    assert_problem(told, (400, 422), "Idempotency-Key", "255")


def test_keys_of_two_owners_do_not_meet(api: Api) -> None:
    headers, body = {"Idempotency-Key": str(uuid4())}, {"prompt": "x"}
    one = api.client.post("/generate", json=body, headers=headers).json()
    with another_owner(api) as other:
        two = other.post("/generate", json=body, headers=headers)
    assert two.status_code == 200
    assert two.json()["job_id"] != one["job_id"]


# --- uploads ----------------------------------------------------------------------------------


def ask_upload(api: Api, **body: Any) -> dict[str, Any]:
    told = api.client.post("/api/v1/presign/upload", json=body)
    assert told.status_code == 200, told.text
    return told.json()


def put(target: dict[str, Any], content: bytes, content_type: str = "image/png") -> httpx.Response:
    return httpx.put(
        target["upload_url"],
        content=content,
        headers={"Content-Type": content_type},
        timeout=60,
        trust_env=False,
    )


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


# --- jobs in the wrong state ------------------------------------------------------------------


def set_running(api: Api, job_id: str) -> None:
    run_id = UUID(api.job(job_id)["run_id"])
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Running(), force=True)
    api.forget()


def cancel(api: Api, job_id: str) -> httpx.Response:
    return api.client.post(f"/api/v1/jobs/{job_id}/cancel")


def test_deleting_a_job_that_runs_cancels_it_first(api: Api) -> None:
    """For callers it is gone at once; its files go when its host has stopped."""
    job_id = api.submit(image_base64=PNG_BASE64)["job_id"]
    set_running(api, job_id)
    told = api.client.delete(f"/api/v1/jobs/{job_id}")
    assert (told.status_code, told.json()["status"]) == (202, "deleting")
    for method, path in ABOUT_A_JOB:
        if method != "DELETE":
            again = api.client.request(method, path.format(job_id))
            assert_problem(again, 410, "deleted")
    assert job_id not in api.client.get("/api/v1/jobs?limit=100").text


def test_deleting_twice(api: Api) -> None:
    job_id = api.submit(image_base64=PNG_BASE64)["job_id"]
    assert cancel(api, job_id).is_success
    assert api.client.delete(f"/api/v1/jobs/{job_id}").is_success
    assert stored(api, job_id) == []
    again = api.client.delete(f"/api/v1/jobs/{job_id}")
    if not again.is_success:  # the same as once is as good
        assert_problem(again, (404, 410), "deleted")
    assert_problem(api.client.get(f"/api/v1/jobs/{job_id}"), 410, "deleted")


def test_cancelling_twice_is_the_same_as_once(api: Api) -> None:
    job_id = api.submit()["job_id"]
    first, second = cancel(api, job_id), cancel(api, job_id)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["status"] == second.json()["status"] == "cancelled"
    assert first.json()["ended_at"] == second.json()["ended_at"]


def test_cancelling_twenty_times_at_one_instant(api: Api) -> None:
    for _ in range(5):
        job_id = api.submit()["job_id"]
        told = at_once(api, 20, f"/api/v1/jobs/{job_id}/cancel", lambda _: None)
        assert {response.status_code for response in told} == {200}
        assert {response.json()["status"] for response in told} == {"cancelled"}


def test_retrying_ten_times_at_one_instant_opens_one_round(api: Api) -> None:
    job_id = api.submit()["job_id"]
    assert cancel(api, job_id).is_success
    told = at_once(api, 10, f"/api/v1/jobs/{job_id}/retry", lambda _: None)
    for response in told:
        if response.status_code != 200:
            assert_problem(response, 409, "ended")
    assert any(response.status_code == 200 for response in told)
    api.forget()
    assert (api.job(job_id)["status"], api.job(job_id)["round"]) == ("queued", 2)


def test_deleting_ten_times_at_one_instant(api: Api) -> None:
    job_id = api.submit(image_base64=PNG_BASE64)["job_id"]
    assert cancel(api, job_id).is_success
    with ThreadPoolExecutor(10) as pool:
        told = list(pool.map(lambda _: api.client.delete(f"/api/v1/jobs/{job_id}"), range(10)))
    for response in told:
        if not response.is_success:
            assert_problem(response, (404, 410), "deleted")
    assert any(response.is_success for response in told)
    assert stored(api, job_id) == []


def test_what_is_too_late_for_a_completed_job(api: Api, inference_server: None) -> None:
    job_id = api.submit()["job_id"]
    assert api.execute(job_id).is_completed()
    assert_problem(cancel(api, job_id), 409, "completed")
    assert_problem(api.client.post(f"/api/v1/jobs/{job_id}/retry"), 409, "completed")
    asked = {"job_id": job_id, "content_type": "image/png"}
    assert_problem(api.client.post("/api/v1/presign/upload", json=asked), 409, "completed")
    job = api.job(job_id)
    assert job["status"] == "completed"
    assert httpx.get(job["result_url"], trust_env=False).status_code == 200


def test_what_is_too_early_for_a_waiting_job(api: Api) -> None:
    job_id = api.submit()["job_id"]
    assert_problem(api.client.get(f"/api/v1/presign/download/{job_id}"), 409, "queued")
    assert_problem(api.client.post(f"/api/v1/jobs/{job_id}/retry"), 409, "queued")
    assert_problem(api.client.post(f"/api/v1/jobs/{job_id}/redeliver"), 409)
    assert api.job(job_id)["status"] == "queued"


def test_events_of_a_job_that_has_ended_end_too(api: Api) -> None:
    job_id = api.submit()["job_id"]
    assert cancel(api, job_id).is_success
    headers = {"Accept": "text/event-stream"}
    with api.client.stream("GET", f"/api/v1/jobs/{job_id}/events", headers=headers) as stream:
        assert stream.status_code == 200, stream.read()
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = "".join(stream.iter_text())
    assert "cancelled" in text
    last = text.rstrip().rpartition("id:")[2].partition("\n")[0].strip()
    assert last
    with api.client.stream(
        "GET", f"/api/v1/jobs/{job_id}/events", headers=headers | {"Last-Event-ID": last}
    ) as again:
        assert again.status_code in (200, 204)
        again.read()


@pytest.mark.parametrize("last", ["", "x", "-1", "9" * 100, "\u00e9", "0"], ids=repr)
def test_a_last_event_id_that_is_none(api: Api, last: str) -> None:
    job_id = api.submit()["job_id"]
    assert cancel(api, job_id).is_success
    told = api.client.get(
        f"/api/v1/jobs/{job_id}/events", headers=[(b"Last-Event-ID", last.encode("latin-1"))]
    )
    if told.status_code == 200:
        assert "cancelled" in told.text
    else:
        assert_problem(told, (400, 422), "Last-Event-ID")


# --- lists, and the rest of a request ---------------------------------------------------------


def cursor(offset: object, before: str = "2026-11-20T00:00:00+00:00") -> str:
    """A cursor as only somebody makes it who has looked into one."""
    text = json.dumps([offset, before])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("model=%00", "model"),  # Postgres answers it with an error, for ever
        ("batch_id=%00", "batch_id"),
        ("owner=%00", "owner"),
        ("limit=0", "limit"),
        ("limit=101", "100"),
        ("limit=many", "limit"),
        ("cursor=garbage", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=" + "9" * 1000, "cursor"),
        ("cursor=" + cursor(10**30), "cursor"),
        ("cursor=" + cursor(-1), "cursor"),
        ("cursor=" + cursor(True), "cursor"),
        ("cursor=" + cursor(0, "2026-11-20"), "cursor"),
        ("status=done", "queued"),
        ("status=", "status"),
        ("created_after=yesterday", "created_after"),
        ("created_after=2026-11-20T00:00:00", "created_after"),
        ("created_before=99999-01-01T00:00:00Z", "created_before"),
        ("q=" + "a" * 1000, "200"),
        ("model=" + "a" * 1000, "model"),
    ],
)
def test_a_list_that_cannot_be(api: Api, query: str, says: str) -> None:
    assert_problem(api.client.get(f"/api/v1/jobs?{query}"), 422, says)


@pytest.mark.parametrize(
    "query",
    ["q=%00", "q=%ff%fe", "q=%25%5F%27", "batch_id=nothing",
     "model=nothing", "q=%ED%A0%80", "status=completed&status=failed",
     "created_after=0001-01-01T00:00:00Z", "created_before=9999-12-31T23:59:59Z",
     "created_after=2026-11-20T00:00:00%2B14:00"],
)  # fmt: skip
def test_a_list_that_is_only_unusual(api: Api, query: str) -> None:
    told = api.client.get(f"/api/v1/jobs?{query}")
    if told.status_code != 200:
        assert_problem(told, 422)


@pytest.mark.parametrize(
    "prefer",
    ["wait=abc", "wait=-1", "wait=" + "9" * 5000, "wait=1e9", ";;;", "wait=0", "a" * 10_000],
    ids=lambda prefer: prefer[:12],
)
def test_a_wish_that_cannot_be_is_no_error(api: Api, prefer: str) -> None:
    """RFC 7240: what is not understood is passed over."""
    job_id = api.submit()["job_id"]
    assert cancel(api, job_id).is_success
    told = api.client.get(f"/api/v1/jobs/{job_id}", headers={"Prefer": prefer})
    if told.status_code != 200:
        assert_problem(told, (400, 422), "Prefer")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api/v1", 404),
        ("GET", "/api/v2/generate", 404),
        ("GET", "/generate", 405),
        ("DELETE", "/generate", 405),
        ("PUT", "/api/v1/jobs", 405),
        ("POST", "/health", 405),
        ("BREW", "/generate", 405),
        ("POST", "/generate/", 404),
        ("GET", "/problems/nothing", 404),
    ],
)
def test_an_address_or_method_that_is_not_there(
    api: Api, method: str, path: str, status: int
) -> None:
    told = api.client.request(method, path)
    assert_problem(told, status)
    if status == 405:
        assert told.headers["allow"]


def test_a_request_id_of_the_caller_is_kept_where_it_is_sane(api: Api) -> None:
    told = api.client.get("/nothing", headers={"X-Request-Id": "trace-17"})
    assert assert_problem(told, 404)["request_id"] == "trace-17"
    for bad in ("a b", "x" * 1000, '"><script>'):
        told = api.client.get("/nothing", headers={"X-Request-Id": bad})
        assert assert_problem(told, 404)["request_id"] != bad


def test_a_page_of_a_browser_is_no_problem(api: Api) -> None:
    """What a picture may be, is sniffed; what a browser shows, is not ours to guess."""
    buffer = BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "GIF")
    text = base64.b64encode(buffer.getvalue()).decode()
    told = order(api, image_base64=f"data:text/html;base64,{text}")
    if told.status_code == 200:
        [key] = stored(api, told.json()["job_id"])
        assert key.endswith(".gif")
    else:
        assert_problem(told, 422, "image")
