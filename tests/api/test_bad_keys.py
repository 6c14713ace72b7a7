"""Bad keys get a clear error: none, another, one that may only read, another owner's job."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.calls import ABOUT_A_JOB, GENERATE, JSON
from tests.api.conftest import SMALL, Api
from tests.api.outside import UNKNOWN_ID, another_owner, assert_problem

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


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
