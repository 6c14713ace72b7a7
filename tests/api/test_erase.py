"""Deletion: nothing of a job is left but what must stay true."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.settings import get_current_settings

from stillreel import keys
from stillreel.api.services import Services
from stillreel.chores.copy_images import CopyImages
from stillreel.chores.tally import Tally
from stillreel.errors import PrefectUnavailable
from stillreel.jobs import erase, marks
from stillreel.jobs.record import record_of
from stillreel.notifications import deliver_due
from stillreel.owners import Caller
from tests.api.background import eventually, keep, prefect_client
from tests.api.conftest import SMALL, Api
from tests.api.test_jobs import Broken, using

EVENTS = {"events", "event_resources"}
"""Prefect's own log of 7 days, which holds the names of runs; nobody can delete from it."""


@pytest.fixture(scope="module")
def prefect(prefect_api: str) -> Iterator[httpx.Client]:
    with prefect_client(prefect_api) as client:
        yield client


def rows_with(word: str) -> list[str]:
    """Tables of Prefect's database in which the word stands."""
    url = get_current_settings().server.database.connection_url
    assert url is not None
    path = url.get_secret_value().partition("///")[2]
    found: list[str] = []
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            rows = database.execute(f'SELECT * FROM "{table}"').fetchall()
            found += [table for row in rows if any(word in str(value) for value in row)]
    database.close()
    return found


def files_with(word: str, *folders: Path) -> list[str]:
    """Files in whose names or bytes the word stands."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [str(p) for p in files if word in str(p) or word.encode() in p.read_bytes()]


def places(api: Api) -> tuple[Path, Path]:
    results = get_current_settings().results.local_storage_path
    assert results is not None
    return api.settings.host.home, results


def used(api: Api) -> dict[str, Any]:
    return api.client.get("/api/v1/usage").json()["total"]


class Erased:
    """A job that was completed and deleted, and what was known of it before."""

    def __init__(self, api: Api, prefect: httpx.Client) -> None:
        self.word = f"zebra{uuid4().hex}"
        self.headers = {"Idempotency-Key": uuid4().hex}
        self.body = SMALL | {"prompt": f"zoom in on the {self.word}"}
        before = used(api)
        self.job_id = api.client.post(
            "/api/v1/generate", json=self.body, headers=self.headers
        ).json()["job_id"]
        assert api.execute(self.job_id).is_completed()
        self.run_id = api.job(self.job_id)["run_id"]
        note = {
            "name": "test",
            "level": 20,
            "message": f"working on {self.word}",
            "timestamp": "2026-11-20T12:00:00Z",
            "flow_run_id": self.run_id,
        }
        prefect.post("/logs/", json=[note]).raise_for_status()
        for attempt in eventually():
            with attempt:
                assert {"flow_run", "log"} <= set(rows_with(self.word))
                assert self.count(prefect, "task_runs") == 5
        self.used = used(api)
        assert self.used["videos"] == before["videos"] + 1
        self.traces = files_with(self.word, *places(api))
        self.answer = api.client.delete(f"/api/v1/jobs/{self.job_id}")

    def count(self, prefect: httpx.Client, what: str) -> int:
        if what == "task_runs":
            body = {"flow_runs": {"id": {"any_": [self.run_id]}}}
        else:
            body = {what: {"flow_run_id": {"any_": [self.run_id]}}}
        return len(prefect.post(f"/{what}/filter", json=body).json())


@pytest.fixture(scope="module")
def erased(api: Api, prefect: httpx.Client, inference_server: None) -> Erased:
    return Erased(api, prefect)


def test_nothing_of_the_prompt_is_left(api: Api, erased: Erased) -> None:
    assert erased.answer.status_code == 204
    assert erased.traces, "there was nothing to find before"
    assert files_with(erased.word, *places(api)) == []
    for attempt in eventually():
        with attempt:
            assert set(rows_with(erased.word)) <= EVENTS


def test_objects_results_artifacts_and_tasks_are_gone(
    api: Api, prefect: httpx.Client, erased: Erased
) -> None:
    home, results = places(api)
    for folder in ("inputs", "latents", "outputs", "temp"):
        assert list(api.storage.list(f"{folder}/{erased.job_id}/")) == []
    assert files_with(erased.job_id, home, results) == []
    assert [path for path in results.iterdir() if erased.run_id in path.name] == []
    assert prefect.get(f"/flow_runs/{erased.run_id}").status_code == 404
    assert erased.count(prefect, "artifacts") == erased.count(prefect, "task_runs") == 0
    for attempt in eventually():
        with attempt:
            assert erased.count(prefect, "logs") == 0


def test_the_tombstone_says_what_must_stay_true(
    prefect: httpx.Client, erased: Erased, api: Api
) -> None:
    body = {"flow_runs": {"idempotency_key": {"any_": [erased.job_id]}}}
    (tombstone,) = prefect.post("/flow_runs/filter", json=body).json()
    labels = tombstone["labels"]
    assert (tombstone["name"], tombstone["parameters"]) == (erased.job_id, {})
    assert (labels[marks.OWNER], labels[marks.MODEL]) == ("default", "preview")
    assert labels[marks.STATUS] == "completed"
    assert labels[marks.GPU_SECONDS] > 0


def test_a_deleted_job_answers_that_it_is_gone(api: Api, erased: Erased) -> None:
    path = f"/api/v1/jobs/{erased.job_id}"
    for answer in (api.client.get(path), api.client.delete(path)):
        assert (answer.status_code, answer.json()["code"]) == (410, "job_deleted")
    listed = api.client.get("/api/v1/jobs", params={"limit": 100}).json()["jobs"]
    assert erased.job_id not in [job["job_id"] for job in listed]


def test_a_replay_makes_no_new_job(api: Api, prefect: httpx.Client, erased: Erased) -> None:
    answer = api.client.post("/api/v1/generate", json=erased.body, headers=erased.headers)
    assert (answer.status_code, answer.json()["code"]) == (410, "job_deleted")
    body = {"flow_runs": {"idempotency_key": {"any_": [erased.job_id]}}}
    assert prefect.post("/flow_runs/count", json=body).json() == 1


def test_who_deleted_it_is_an_event_in_prefect(prefect: httpx.Client, erased: Erased) -> None:
    resource = {"id": [f"stillreel.job.{erased.job_id}"]}
    for attempt in eventually():
        with attempt:
            found = prefect.post("/events/filter", json={"filter": {"resource": resource}}).json()
            events = {event["event"]: event["payload"] for event in found["events"]}
            assert events.keys() >= {"stillreel.job.submit", "stillreel.job.delete"}
    assert events["stillreel.job.delete"]["owner"] == "default"
    assert events["stillreel.job.delete"]["key_id"]


def test_usage_still_counts_a_deleted_job(api: Api, erased: Erased) -> None:
    now = used(api)
    assert now["videos"] >= erased.used["videos"]
    assert now["gpu_seconds"] >= erased.used["gpu_seconds"]


def test_what_came_late_is_deleted_later(
    api: Api, prefect: httpx.Client, erased: Erased, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = keys.latents_key(erased.job_id, "0" * 32)
    api.storage.put_bytes(late, b"late", content_type="application/octet-stream")
    artifact = {"type": "markdown", "data": erased.word, "flow_run_id": erased.run_id}
    prefect.post("/artifacts/", json=artifact).raise_for_status()
    keep(api, erase.erase_due)
    assert api.storage.head(late), "it is looked for when its time has come, not at once"
    monkeypatch.setattr(erase, "AFTERMATH", timedelta(0))
    keep(api, erase.erase_due)
    assert api.storage.head(late) is None
    assert erased.count(prefect, "artifacts") == 0
    mine = {"idempotency_key": {"any_": [erased.job_id]}}  # jobs of other tests may still wait
    body = {"flow_runs": mine | {"tags": {"all_": [marks.ERASE]}}}
    assert prefect.post("/flow_runs/count", json=body).json() == 0


def test_a_waiting_job_is_deleted_at_once(api: Api, prefect: httpx.Client) -> None:
    made = api.submit(prompt="never made")
    run_id = api.job(made["job_id"])["run_id"]
    assert api.client.delete(f"/api/v1/jobs/{made['job_id']}").status_code == 204
    assert prefect.get(f"/flow_runs/{run_id}").status_code == 404
    assert api.client.get(f"/api/v1/jobs/{made['job_id']}").status_code == 410


def test_a_running_job_is_stopped_and_then_deleted(
    api: Api, prefect: httpx.Client, inference_server: None
) -> None:
    word = f"gazelle{uuid4().hex}"
    made = api.submit(prompt=word, width=640, height=360, duration=20.0)
    job_id, run_id = made["job_id"], api.job(made["job_id"])["run_id"]
    thread = Thread(target=copy_context().run, args=(api.execute, job_id))
    thread.start()
    for attempt in eventually():
        with attempt:
            assert api.job(job_id)["stage"]
    answer = api.client.delete(f"/api/v1/jobs/{job_id}")
    assert (answer.status_code, answer.json()["status"]) == (202, "deleting")
    assert api.client.get(f"/api/v1/jobs/{job_id}").status_code == 410
    assert api.client.delete(f"/api/v1/jobs/{job_id}").status_code == 410
    thread.join()
    keep(api, erase.erase_due)
    assert prefect.get(f"/flow_runs/{run_id}").status_code == 404
    assert files_with(word, *places(api)) == files_with(job_id, *places(api)) == []
    for attempt in eventually():
        with attempt:
            assert set(rows_with(word)) <= EVENTS


def test_a_run_whose_host_is_silent_is_given_up(
    api: Api, prefect: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = api.submit()
    job_id, run_id = made["job_id"], api.job(made["job_id"])["run_id"]
    body = {"state": {"type": "RUNNING"}, "force": True}
    prefect.post(f"/flow_runs/{run_id}/set_state", json=body).raise_for_status()
    assert api.client.delete(f"/api/v1/jobs/{job_id}").status_code == 202
    keep(api, erase.erase_due)
    assert prefect.get(f"/flow_runs/{run_id}").status_code == 200
    monkeypatch.setattr(erase, "PATIENCE", timedelta(0))
    keep(api, erase.erase_due)  # ends it
    keep(api, erase.erase_due)  # and deletes it
    assert prefect.get(f"/flow_runs/{run_id}").status_code == 404


def test_a_deletion_that_was_broken_off_is_finished(
    api: Api, prefect: httpx.Client, inference_server: None
) -> None:
    job_id = api.submit()["job_id"]
    assert api.execute(job_id).is_completed()
    run_id = api.job(job_id)["run_id"]
    prefect.patch(f"/flow_runs/{run_id}", json={"tags": [marks.ERASE]}).raise_for_status()
    keep(api, erase.erase_due)
    api.forget()
    assert prefect.get(f"/flow_runs/{run_id}").status_code == 404
    assert api.client.get(f"/api/v1/jobs/{job_id}").status_code == 410
    assert list(api.storage.list(f"outputs/{job_id}/")) == []


@pytest.mark.parametrize(("writes", "key_id"), [(1, None), (2, "k1")])
def test_a_deletion_is_audited_once_where_it_is_broken_off(
    api: Api,
    prefect: httpx.Client,
    prefect_api: str,
    caplog: pytest.LogCaptureFixture,
    writes: int,
    key_id: str | None,
) -> None:
    """After the tag, or after the label: the keeper deletes it, whoever got which answer."""
    job_id = api.submit()["job_id"]
    assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    run_id = api.job(job_id)["run_id"]
    caller = Caller("default", "k1", frozenset({"generate"}), "default")

    async def delete(services: Services) -> None:
        snapshot = await services.reader.get(job_id, fresh=True)
        await erase.erase(services, snapshot, caller=caller)

    caplog.set_level("INFO", logger="stillreel.audit")
    with pytest.raises(PrefectUnavailable):
        using(api, Broken(prefect_api, writes), delete)
    keep(api, erase.erase_due)
    assert prefect.get(f"/flow_runs/{run_id}").status_code == 404
    found = [vars(line) for line in caplog.records if vars(line).get("job_id") == job_id]
    told = [line for line in found if line.get("audit") == "delete"]
    assert [(line["owner"], line.get("key_id")) for line in told] == [("default", key_id)]


def lose(prefect: httpx.Client, run_id: str, tag: str) -> None:
    """Leave the run as it is when another process has overwritten the tags of a deletion."""
    labels = {marks.DELETED: "2026-11-20T00:00:00.000+00:00"}
    prefect.patch(f"/flow_runs/{run_id}/labels", json=labels).raise_for_status()
    prefect.patch(f"/flow_runs/{run_id}", json={"tags": [tag]}).raise_for_status()


def test_a_deletion_whose_tag_was_overwritten_is_found_among_the_ends(
    api: Api, prefect: httpx.Client
) -> None:
    job_id = api.submit()["job_id"]
    run_id = api.job(job_id)["run_id"]
    assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    for attempt in eventually():  # the API tells the end in the background
        with attempt:
            tags = prefect.get(f"/flow_runs/{run_id}").json()["tags"]
            assert marks.UNDELIVERED not in tags
    lose(prefect, run_id, marks.UNDELIVERED)
    for attempt in eventually():
        with attempt:
            keep(api, _deliver_all)
            keep(api, erase.erase_due)
            assert prefect.get(f"/flow_runs/{run_id}").status_code == 404
    api.forget()
    assert api.client.get(f"/api/v1/jobs/{job_id}").status_code == 410


async def _deliver_all(services: Services) -> None:
    await deliver_due(services)
    while tasks := list(services.deliveries._tasks.values()):
        await asyncio.gather(*tasks)


def test_a_deletion_whose_tag_was_overwritten_is_found_among_the_images(
    api: Api, prefect: httpx.Client
) -> None:
    run_id = api.job(api.submit()["job_id"])["run_id"]
    lose(prefect, run_id, marks.UNCOPIED)
    record = record_of(prefect.get(f"/flow_runs/{run_id}").json())
    keep(api, lambda services: CopyImages(services, Tally()).copy(record))
    assert prefect.get(f"/flow_runs/{run_id}").json()["tags"] == [marks.ERASE]


def test_the_note_of_another_job_stays(api: Api, inference_server: None) -> None:
    values = {"prompt": f"pan left {uuid4().hex}"}
    first, second = (api.submit(**values)["job_id"] for _ in range(2))
    for job_id in (first, second):
        assert api.execute(job_id).is_completed()
    (latents,) = api.storage.list(f"latents/{second}/")
    note = keys.reuse_key("default", Path(latents.key).stem)
    assert api.client.delete(f"/api/v1/jobs/{first}").status_code == 204
    assert api.storage.head(note)
    assert api.client.delete(f"/api/v1/jobs/{second}").status_code == 204
    assert api.storage.head(note) is None


def test_two_deletions_at_once_are_one(api: Api) -> None:
    job_id = api.submit()["job_id"]
    with ThreadPoolExecutor(4) as pool:
        path = f"/api/v1/jobs/{job_id}"
        answers = list(pool.map(lambda _: api.client.delete(path).status_code, range(4)))
    assert 204 in answers
    assert set(answers) <= {204, 410}


def test_only_jobs_that_there_are_can_be_deleted(api: Api) -> None:
    for job_id in (f"job_{'a' * 40}", "job_1", "..", "x" * 300):
        assert api.client.delete(f"/api/v1/jobs/{job_id}").status_code in (404, 405)
    assert api.client.delete(f"/api/v1/jobs/job_{'a' * 40}").json()["code"] == "job_unknown"
