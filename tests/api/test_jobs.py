"""Cancel and retry hold whatever breaks off in between; pages lose no job."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from stillreel.api.services import Services
from stillreel.errors import JobConflict, PrefectUnavailable
from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.listing import Wanted
from stillreel.jobs.record import Record, record_of
from stillreel.notifications import is_due
from stillreel.prefect_api import PrefectApi
from tests.api.background import keep, prefect_client, using
from tests.api.conftest import SMALL, Api, StartApi


@pytest.fixture(scope="module")
def prefect(prefect_api: str) -> Iterator[httpx.Client]:
    with prefect_client(prefect_api) as client:
        yield client


class Broken(PrefectApi):
    """Prefect's API that is away after so many writes."""

    def __init__(self, url: str, writes: int) -> None:
        super().__init__(url)
        self.left = writes

    async def post(self, path: str, body: Any, *, patience: float | None = None) -> Any:
        self._count()
        return await super().post(path, body, patience=patience)

    async def patch(self, path: str, body: Any) -> None:
        self._count()
        await super().patch(path, body)

    def _count(self) -> None:
        if not self.left:
            raise PrefectUnavailable
        self.left -= 1


class Watched(PrefectApi):
    """Prefect's API that looks at the run after each write."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.seen: list[Record] = []

    async def post(self, path: str, body: Any, *, patience: float | None = None) -> Any:
        answer = await super().post(path, body, patience=patience)
        await self._look(path)
        return answer

    async def patch(self, path: str, body: Any) -> None:
        await super().patch(path, body)
        await self._look(path)

    async def _look(self, path: str) -> None:
        self.seen.append(record_of(await self.get("/".join(path.split("/")[:3]))))


class Overwritten(PrefectApi):
    """Prefect's API beside another process, which writes the tags that it read before."""

    def __init__(self, url: str, times: int) -> None:
        super().__init__(url)
        self.times = times

    async def patch(self, path: str, body: Any) -> None:
        before = (await self.get(path))["tags"]
        await super().patch(path, body)
        if self.times:
            self.times -= 1
            await super().patch(path, {"tags": before})


class Aborting(PrefectApi):
    """Prefect's API that allows no other state."""

    async def post(self, path: str, body: Any, *, patience: float | None = None) -> Any:
        if path.endswith("/set_state"):
            return {"status": "ABORT", "details": {"reason": "not now"}}
        return await super().post(path, body, patience=patience)


def run_of(api: Api, prefect: httpx.Client, job_id: str) -> dict[str, Any]:
    return prefect.get(f"/flow_runs/{api.job(job_id)['run_id']}").json()


def ended(api: Api) -> str:
    """The id of a job that was cancelled while it waited, and whose end has not been told."""
    job_id = api.submit()["job_id"]

    async def cancel(services: Services) -> None:
        await services.actions.cancel(await services.reader.get(job_id, fresh=True))

    keep(api, cancel)
    api.forget()
    return job_id


async def _retry(services: Services, job_id: str) -> int:
    return await services.actions.retry(await services.reader.get(job_id, fresh=True))


# --- cancel -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "then"),
    [("SCHEDULED", "CANCELLED"), ("PENDING", "CANCELLED"), ("RUNNING", "CANCELLING")],
)
def test_a_cancel_that_was_broken_off_is_finished_by_the_next(
    api: Api, prefect: httpx.Client, state: str, then: str
) -> None:
    job_id = api.submit()["job_id"]
    path = f"/flow_runs/{api.job(job_id)['run_id']}"
    if state != "SCHEDULED":
        body = {"state": {"type": state}, "force": True}
        prefect.post(f"{path}/set_state", json=body).raise_for_status()
    labels = {marks.CANCELLED: "2026-11-20T00:00:00.000+00:00"}
    prefect.patch(f"{path}/labels", json=labels).raise_for_status()
    for _ in range(2):
        assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 200
        assert prefect.get(path).json()["state_type"] == then


def test_a_cancel_is_refused_where_the_job_goes_on(api: Api, prefect_api: str) -> None:
    job_id = api.submit()["job_id"]

    async def cancel(services: Services) -> bool:
        return await services.actions.cancel(await services.reader.get(job_id, fresh=True))

    with pytest.raises(JobConflict, match="not now"):
        using(api, Aborting(prefect_api), cancel)
    assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"


# --- retry --------------------------------------------------------------------------------------


def test_four_retries_at_once_are_one(api: Api, prefect: httpx.Client) -> None:
    job_id = ended(api)
    with ThreadPoolExecutor(4) as pool:
        path = f"/api/v1/jobs/{job_id}/retry"
        answers = list(pool.map(lambda _: api.client.post(path), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    assert all("queued" in a.json()["error"] for a in answers if a.status_code == 409)
    run_id = api.job(job_id)["run_id"]
    states = prefect.get("/flow_run_states/", params={"flow_run_id": run_id}).json()
    assert [state["type"] for state in states].count("SCHEDULED") == 2
    assert api.job(job_id)["round"] == 2


@pytest.mark.parametrize("writes", range(4))
def test_a_retry_that_was_broken_off_can_be_done_again(
    api: Api, prefect: httpx.Client, prefect_api: str, writes: int
) -> None:
    job_id = ended(api)
    path = f"/flow_runs/{api.job(job_id)['run_id']}"
    prefect.patch(path, json={"tags": ["owner:default"]}).raise_for_status()  # its end is told
    try:
        using(api, Broken(prefect_api, writes), lambda services: _retry(services, job_id))
    except PrefectUnavailable:
        api.forget()
        assert api.job(job_id)["status"] in ("cancelled", "failed")
        assert api.client.post(f"/api/v1/jobs/{job_id}/retry").status_code == 200
    else:
        assert writes == 3, "only the last write may fail unseen"
    api.forget()
    run = prefect.get(path).json()
    assert api.job(job_id)["status"] == "queued"
    assert run["state_type"] == "SCHEDULED"
    assert marks.UNDELIVERED in run["tags"]
    assert not run["labels"][marks.CANCELLED]


def test_no_retry_has_an_end_told_that_has_not_come(api: Api, prefect_api: str) -> None:
    job_id = ended(api)
    watched = Watched(prefect_api)
    using(api, watched, lambda services: _retry(services, job_id))
    assert [record.round for record in watched.seen[:2]] == [2, 2]
    assert not any(record.is_final and is_due(record) for record in watched.seen)
    assert is_due(watched.seen[-1]), "the round's own end is told at once"


def test_a_retry_counts_towards_the_quota(start_api: StartApi) -> None:
    owner = f"o{uuid4().hex[:8]}"
    api = start_api(STILLREEL_API_OWNER=owner, STILLREEL_JOBS_WAITING_MAX="1")
    counts = api.app.state.services.quotas._counts
    first = api.submit()["job_id"]
    assert api.client.post(f"/api/v1/jobs/{first}/cancel").is_success
    counts.clear()
    second = api.submit()["job_id"]
    told = api.client.post(f"/api/v1/jobs/{first}/retry")
    assert (told.status_code, told.json()["code"]) == (429, "quota_exceeded")
    assert api.client.post(f"/api/v1/jobs/{second}/cancel").is_success
    counts.clear()
    assert api.client.post(f"/api/v1/jobs/{first}/retry").status_code == 200


# --- tags and owners ----------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_a_tag_holds_though_another_process_overwrites_it(
    api: Api, prefect: httpx.Client, prefect_api: str, times: int
) -> None:
    run = run_of(api, prefect, api.submit()["job_id"])
    using(
        api,
        Overwritten(prefect_api, times),
        lambda services: services.actions.tag(run["id"], add=["kept"]),
    )
    assert set(prefect.get(f"/flow_runs/{run['id']}").json()["tags"]) == {*run["tags"], "kept"}


def test_a_tag_that_never_holds_is_said(api: Api, prefect: httpx.Client, prefect_api: str) -> None:
    run = run_of(api, prefect, api.submit()["job_id"])
    with pytest.raises(PrefectUnavailable, match="tags"):
        using(
            api,
            Overwritten(prefect_api, 100),
            lambda services: services.actions.tag(run["id"], add=["kept"]),
        )


def test_a_run_made_in_prefect_is_nobodys(api: Api, prefect: httpx.Client) -> None:
    """Whatever its parameters say: lists, usage and quotas do not know them."""
    model = run_of(api, prefect, api.submit()["job_id"])
    body = {"parameters": model["parameters"] | {"owner": "default"}, "tags": ["owner:default"]}
    path = f"/deployments/{model['deployment_id']}/create_flow_run"
    made = prefect.post(path, json=body).raise_for_status().json()
    job_id = f"job_{UUID(made['id']).hex}"
    assert api.job(job_id)["owner"] is None

    async def listed(services: Services) -> list[str]:
        page = await services.lister.list(Wanted(owner="default"), limit=100)
        return [job.record.job_id for job in page.jobs]

    assert job_id not in keep(api, listed)


# --- pages --------------------------------------------------------------------------------------


@pytest.fixture
def batch(api: Api) -> tuple[str, list[str]]:
    """Id of a batch and of its six jobs, the newest first."""
    body = {"items": [SMALL | {"prompt": f"zoom {n}"} for n in range(6)]}
    made = api.client.post("/api/v1/batches", json=body).json()
    listed = api.client.get("/api/v1/jobs", params={"batch_id": made["batch_id"]}).json()
    job_ids = [job["job_id"] for job in listed["jobs"]]
    assert sorted(job_ids) == sorted(item["job_id"] for item in made["results"])
    return made["batch_id"], job_ids


def walk(api: Api, between: Callable[[str], Any], **query: Any) -> list[str]:
    """The ids of all pages; each job that is listed is worked with before the next page."""
    found: list[str] = []
    cursor = ""
    while True:
        page = api.client.get("/api/v1/jobs", params=query | {"cursor": cursor}).json()
        for job in page["jobs"]:
            found.append(job["job_id"])
            between(job["job_id"])
        cursor = page["next_cursor"] or ""
        if not cursor:
            return found


def test_pages_skip_nothing_when_listed_jobs_are_deleted(
    api: Api, batch: tuple[str, list[str]]
) -> None:
    batch_id, job_ids = batch

    def delete(job_id: str) -> None:
        assert api.client.delete(f"/api/v1/jobs/{job_id}").status_code == 204

    assert walk(api, delete, batch_id=batch_id, limit=2) == job_ids


def test_pages_skip_nothing_when_listed_jobs_change_their_status(
    api: Api, batch: tuple[str, list[str]]
) -> None:
    batch_id, job_ids = batch

    def cancel(job_id: str) -> None:
        assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success

    assert walk(api, cancel, batch_id=batch_id, limit=2, status="queued") == job_ids


@pytest.mark.parametrize("oldest_first", [False, True])
def test_jobs_of_one_instant_are_each_on_one_page(
    api: Api, prefect: httpx.Client, oldest_first: bool
) -> None:
    model, batch_id = run_of(api, prefect, api.submit()["job_id"]), f"batch_{uuid4().hex[:24]}"
    made: list[str] = []
    for second in (1, 2, 2, 2, 2, 3):
        at = {"scheduled_time": f"2026-11-01T00:00:0{second}.5Z"}
        body = {
            "parameters": model["parameters"],
            "tags": [marks.batch_tag(batch_id)],
            "state": {"type": "SCHEDULED", "state_details": at},
        }
        path = f"/deployments/{model['deployment_id']}/create_flow_run"
        made.append(prefect.post(path, json=body).raise_for_status().json()["id"])

    async def pages(services: Services) -> list[list[Record]]:
        wanted, cursor = Wanted(batch=batch_id, oldest_first=oldest_first), ""
        found: list[list[Record]] = []
        while not found or cursor:
            page = await services.lister.list(wanted, limit=2, cursor=cursor)
            found.append([job.record for job in page.jobs])
            cursor = page.cursor
        return found

    found = [record for page in keep(api, pages) for record in page]
    assert sorted(record.run_id for record in found) == sorted(made)
    times = [record.expected_at for record in found]
    assert times == sorted(times, reverse=not oldest_first)
    for run_id in made:
        prefect.delete(f"/flow_runs/{run_id}").raise_for_status()


def cursor_of(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


NOW = (1_795_000_000_000_000).to_bytes(8, "big")


@pytest.mark.parametrize(
    "cursor",
    [
        cursor_of(NOW),  # behind no job
        cursor_of(NOW + b"a"),
        cursor_of(NOW[:4]),
        cursor_of(NOW + bytes(17)),
        cursor_of(bytes(8) + bytes(16)),  # 1970
        cursor_of(b"\xff" * 24),  # after the year 9999
        cursor_of(b"\x7f" + b"\xff" * 23),
        cursor_of((4_133_980_800_000_000).to_bytes(8, "big") + bytes(16)),  # 2101
        cursor_of(NOW + bytes(16)) + " ",
        "a" * 4001,
        "é",
        "=",
    ],
)
def test_a_cursor_that_is_none_of_ours(api: Api, cursor: str) -> None:
    told = api.client.get("/api/v1/jobs", params={"cursor": cursor})
    assert told.status_code == 422, told.text
    assert "cursor" in told.text


def test_a_cursor_may_be_of_jobs_that_are_gone(api: Api) -> None:
    told = api.client.get("/api/v1/jobs", params={"cursor": cursor_of(NOW + bytes(16))})
    assert told.status_code == 200


@pytest.mark.parametrize("name", ["created_after", "created_before"])
@pytest.mark.parametrize(
    "at",
    ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1999-12-31T23:59:59Z",
     "2101-01-01T00:00:00Z"],
)  # fmt: skip
def test_a_time_long_past_or_far_ahead_is_refused(api: Api, name: str, at: str) -> None:
    told = api.client.get("/api/v1/jobs", params={name: at})
    assert told.status_code == 422, told.text
    assert "2000 to 2100" in told.text


def test_a_time_of_any_zone_is_taken(api: Api) -> None:
    for at in ("2000-01-01T00:00:00+23:59", "2100-12-31T23:59:59-23:59"):
        for name in ("created_after", "created_before"):
            assert api.client.get("/api/v1/jobs", params={name: at}).status_code == 200
    statuses = [str(status) for status in JobStatus]
    assert api.client.get("/api/v1/jobs", params={"status": statuses}).status_code == 200
