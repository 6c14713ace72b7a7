"""Bad ids, lists, headers and paths get a clear error, and nothing is lost."""

from __future__ import annotations

import base64
import json
from urllib.parse import unquote

import pytest

from tests.api.calls import ABOUT_A_JOB, JSON, cancel
from tests.api.conftest import Api
from tests.api.outside import UNKNOWN_ID, assert_problem, exchange

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


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


# --- lists ------------------------------------------------------------------------------------


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


# --- the rest of a request --------------------------------------------------------------------


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
