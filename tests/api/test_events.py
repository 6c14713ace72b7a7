"""Event streams: what is told of a job, in what order, to whom, and after a break."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
import stamina
from prefect.settings import PREFECT_API_URL
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from stillreel.api import events
from stillreel.job import Phase, Stage
from stillreel.owner_store import OwnerStore
from stillreel.owners import parse_key, revoke_key
from stillreel.prefect_api import PrefectApi
from stillreel.progress import Progress
from tests.api.conftest import KEY, Api
from tests.api.outside import (
    UNKNOWN_ID,
    another_owner,
    assert_problem,
    prefect_behind_a_door,
)

WAIT_SECONDS = 60


@dataclass(frozen=True)
class Seen:
    """An event as a reader gets it."""

    id: str
    event: str
    data: Any

    @property
    def status(self) -> str:
        return self.data["status"]


@contextmanager
def streaming(
    client: httpx.Client, job_id: str, last_id: str = "", **params: str
) -> Iterator[Iterator[Seen]]:
    """The events of a job as they come."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    path = f"/api/v1/jobs/{job_id}/events"
    with client.stream("GET", path, headers=headers, params=params) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield _parse(response.iter_lines())


def read_all(client: httpx.Client, job_id: str, last_id: str = "", **params: str) -> list[Seen]:
    """The events of a stream until it closes."""
    with streaming(client, job_id, last_id, **params) as stream:
        return list(stream)


def _parse(lines: Iterator[str]) -> Iterator[Seen]:
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif not line:
            if "data" in fields:
                yield Seen(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


def socket_to(api: Api, job_id: str, query: str = "", **more: Any) -> ClientConnection:
    url = f"{api.url.replace('http', 'ws')}/api/v1/jobs/{job_id}/events{query}"
    return connect(url, proxy=None, **more)


def with_key(key: str = KEY) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


def receive(socket: ClientConnection) -> Seen:
    return Seen(**json.loads(socket.recv(timeout=WAIT_SECONDS)))


def receive_all(socket: ClientConnection) -> list[Seen]:
    found = [Seen(**json.loads(message)) for message in socket]
    assert socket.close_code == 1000
    return found


def cancel(api: Api, job_id: str) -> None:
    assert api.client.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 200


# --- the story ----------------------------------------------------------------------------------


def test_a_job_is_told_from_its_place_in_the_line_to_its_video(
    api: Api, inference_server: None
) -> None:
    job_id = api.submit(duration=4.0)["job_id"]
    with (
        streaming(api.client, job_id) as stream,
        socket_to(api, job_id, **with_key()) as socket,
        ThreadPoolExecutor(1) as worker,
    ):
        first = next(stream)
        assert (first.event, first.status, first.data["job"]["job_id"]) == (
            "status",
            "queued",
            job_id,
        )
        assert receive(socket) == first
        work = worker.submit(copy_context().run, api.execute, job_id)
        seen = [first, *stream]
        told = [first, *receive_all(socket)]
        assert work.result().is_completed()
    assert [e.status for e in seen if e.event == "status"] == ["queued", "processing", "completed"]
    progress = [e.data for e in seen if e.event == "progress"]
    stages = [p["stage"] for p in progress if p["stage"]]
    assert stages == sorted(stages, key=list(Stage).index)
    percents = [p["progress"] for p in progress]
    assert percents == sorted(percents)
    end = seen[-1]
    assert (end.event, end.status, end.data["progress"]) == ("end", "completed", 100)
    video = api.client.get(end.data["result_url"], headers={"Authorization": ""})
    assert video.content[4:8] == b"ftyp"
    assert len({e.id for e in seen}) == len(seen)
    assert [_fact(e) for e in told if e.event != "progress"] == [
        _fact(e) for e in seen if e.event != "progress"
    ]


def test_progress_is_told_as_a_host_counts_it(api: Api) -> None:
    job_id = api.submit()["job_id"]
    told: list[tuple[Any, ...]] = []
    with (
        streaming(api.client, job_id) as stream,
        httpx.Client(base_url=PREFECT_API_URL.value(), timeout=30, trust_env=False) as prefect,
    ):
        next(stream)
        run_id = api.job(job_id)["run_id"]
        running = {"state": {"type": "RUNNING", "name": "Running"}, "force": True}
        prefect.post(f"flow_runs/{run_id}/set_state", json=running).raise_for_status()
        assert next(stream).status == "processing"
        for progress in (
            Progress(Stage.FETCH),
            Progress(Stage.INFER, Phase.DENOISE, 3, 8),
            Progress(Stage.INFER, Phase.DENOISE, 4, 8),
            Progress(Stage.ENCODE, None, 6, 12),
        ):
            body = {"key": "progress", "type": "progress", "flow_run_id": run_id}
            body |= {"data": progress.percent, "description": progress.text}
            prefect.post("artifacts/", json=body).raise_for_status()
            now = next(
                e.data
                for e in stream
                if (e.data["stage"], e.data["step"] or 0) == (progress.stage, progress.step)
            )
            told.append((now["stage"], now["phase"], now["step"], now["steps"], now["progress"]))
    assert told == [
        ("fetch", None, None, None, 0),
        ("infer", "denoise", 3, 8, 35),
        ("infer", "denoise", 4, 8, 44),
        ("encode", None, 6, 12, 87),
    ]


def test_an_ended_job_is_told_at_once_and_once(api: Api) -> None:
    job_id = api.submit()["job_id"]
    cancel(api, job_id)
    (end,) = read_all(api.client, job_id)
    assert (end.event, end.data["job_id"], end.status) == ("end", job_id, "cancelled")
    again = api.client.get(f"/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": end.id})
    assert (again.status_code, again.content) == (204, b"")
    with socket_to(api, job_id, **with_key()) as socket:
        assert receive_all(socket) == [end]
    with socket_to(api, job_id, f"?last_event_id={end.id}", **with_key()) as socket:
        assert receive_all(socket) == []


def test_a_quiet_stream_is_kept_alive(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 1)
    path = f"/api/v1/jobs/{api.submit()['job_id']}/events"
    with api.client.stream("GET", path) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("retry: ")
        assert next(line for line in lines if line.startswith(":"))


# --- after a break ------------------------------------------------------------------------------


def test_what_was_missed_is_told_first_also_at_another_process(
    api: Api, start_api: Callable[..., Api], inference_server: None
) -> None:
    job_id = api.submit()["job_id"]
    with streaming(api.client, job_id) as stream:
        first = next(stream)
    api.execute(job_id)
    restarted = start_api()
    for resumed in (
        read_all(api.client, job_id, first.id),
        read_all(restarted.client, job_id, first.id),
        read_all(restarted.client, job_id, last_event_id=first.id),
    ):
        assert [(e.event, e.status) for e in resumed] == [
            ("status", "processing"),
            ("end", "completed"),
        ]
        assert resumed[0].data["job"] is None
        assert resumed[0].data["at"] > first.data["at"]
    after = read_all(restarted.client, job_id, resumed[0].id)
    assert [e.event for e in after] == ["end"]
    again = restarted.client.get(
        f"/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": after[0].id}
    )
    assert again.status_code == 204


def test_the_newest_is_not_told_twice(api: Api) -> None:
    job_id = api.submit()["job_id"]
    with streaming(api.client, job_id) as stream:
        first = next(stream)
    with streaming(api.client, job_id, first.id) as stream:
        cancel(api, job_id)
        assert [(e.event, e.status) for e in stream] == [
            ("status", "cancelled"),
            ("end", "cancelled"),
        ]


def test_another_round_goes_on_after_the_end_of_the_one_before(api: Api) -> None:
    job_id = api.submit()["job_id"]
    cancel(api, job_id)
    (end,) = read_all(api.client, job_id)
    assert api.client.post(f"/api/v1/jobs/{job_id}/retry").status_code == 200
    with streaming(api.client, job_id, end.id) as stream:
        event = next(stream)
        assert (event.event, event.status, event.data["job"]["round"]) == ("status", "queued", 2)


@pytest.mark.parametrize("last_id", ["nonsense", "99999999999999999999-end", "0-", "-1-end"])
def test_an_id_that_is_none_of_ours_begins_anew(api: Api, last_id: str) -> None:
    with streaming(api.client, api.submit()["job_id"], last_id) as stream:
        assert next(stream).status == "queued"


def test_a_stream_outlives_an_outage_of_prefect(
    api: Api,
    prefect_api: str,
    start_api: Callable[..., Api],
    caplog: pytest.LogCaptureFixture,
) -> None:
    job_id = api.submit()["job_id"]
    with prefect_behind_a_door(prefect_api) as door:
        shaky = start_api(STILLREEL_PREFECT_SECONDS="3")
        with streaming(shaky.client, job_id) as stream, caplog.at_level(logging.INFO):
            assert next(stream).status == "queued"
            door.shut()
            _until(lambda: any("a stream waits" in r.getMessage() for r in caplog.records))
            cancel(api, job_id)
            door.open()
            assert [e.status for e in stream] == ["cancelled", "cancelled"]


def test_a_stream_ends_when_its_job_is_deleted(api: Api) -> None:
    job_id = api.submit()["job_id"]
    run_id = api.job(job_id)["run_id"]
    with streaming(api.client, job_id) as stream:
        next(stream)
        httpx.patch(
            f"{PREFECT_API_URL.value()}/flow_runs/{run_id}/labels",
            json={"stillreel.deleted": "2026-11-20T12:00:00+00:00"},
            trust_env=False,
        ).raise_for_status()
        assert "end" not in {e.event for e in stream}
    assert_problem(api.client.get(f"/api/v1/jobs/{job_id}/events"), 410)


# --- who may listen, and how often --------------------------------------------------------------


def test_a_key_has_so_many_streams_at_once_and_a_closed_one_is_free_at_once(
    start_api: Callable[..., Api],
) -> None:
    api = start_api(STILLREEL_STREAMS_MAX="1")
    job_id = api.submit()["job_id"]
    path = f"/api/v1/jobs/{job_id}/events"
    with streaming(api.client, job_id) as stream:
        next(stream)
        refused = api.client.get(path)
        assert_problem(refused, 429, "event streams")
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(InvalidStatus) as denied:
            socket_to(api, job_id, **with_key())
        assert denied.value.response.status_code == 429
    _until(lambda: _opens(api, path))
    with _patient_socket(api, job_id) as socket:
        receive(socket)
        assert api.client.get(path).status_code == 429
    _until(lambda: _opens(api, path))


def test_only_the_jobs_owner_listens(api: Api) -> None:
    job_id = api.submit()["job_id"]
    with another_owner(api) as stranger:
        key = stranger.headers["authorization"].removeprefix("Bearer ")
        for name in (job_id, UNKNOWN_ID, "job_%00"):
            assert_problem(stranger.get(f"/api/v1/jobs/{name}/events"), 404)
        with pytest.raises(InvalidStatus) as denied:
            socket_to(api, job_id, **with_key(key))
        assert denied.value.response.status_code == 404
        assert json.loads(denied.value.response.body)["code"] == "job_unknown"


@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_a_good_key_nobody_listens(api: Api, key: str) -> None:
    job_id = api.submit()["job_id"]
    headers = {"Authorization": f"Bearer {key}" if key else ""}
    assert_problem(api.client.get(f"/api/v1/jobs/{job_id}/events", headers=headers), 401)
    for query, more in (("", with_key(key)), (f"?key={KEY}", {}), ("", {})):
        with pytest.raises(InvalidStatus) as denied:
            socket_to(api, job_id, query, **more)
        assert denied.value.response.status_code == 401
        assert denied.value.response.headers["www-authenticate"] == "Bearer"


def test_a_browser_names_its_key_among_the_protocols(api: Api) -> None:
    job_id = api.submit()["job_id"]
    with socket_to(api, job_id, subprotocols=["stillreel", f"key.{KEY}"]) as socket:
        assert socket.subprotocol == "stillreel"
        assert receive(socket).status == "queued"


@pytest.mark.parametrize(
    ("job", "key", "code", "reason"),
    [
        ("own", "wrong", 4401, "unauthorized"),
        ("own", "", 4401, "unauthorized"),
        (UNKNOWN_ID, KEY, 4404, "job_unknown"),
    ],
)
def test_a_browser_is_told_why_it_is_refused(
    api: Api, job: str, key: str, code: int, reason: str
) -> None:
    job_id = api.submit()["job_id"] if job == "own" else job
    protocols = ["stillreel", *([f"key.{key}"] if key else [])]
    with (
        socket_to(api, job_id, subprotocols=protocols) as socket,
        pytest.raises(ConnectionClosed) as closed,
    ):
        receive(socket)
    assert closed.value.rcvd
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)


def test_a_key_that_is_revoked_hears_no_more(api: Api) -> None:
    name = f"revoked-{uuid4().hex[:8]}"
    with another_owner(api, name=name) as client:
        body = {"prompt": "slow zoom in", "width": 128, "height": 72, "duration": 0.5}
        made = client.post("/api/v1/generate", json=body)
        assert made.status_code == 200, made.text
        job_id = made.json()["job_id"]
        with streaming(client, job_id) as stream:
            next(stream)
            _revoke(api, name, client.headers["authorization"].removeprefix("Bearer "))
            assert "end" not in {e.event for e in stream}
        assert_problem(client.get(f"/api/v1/jobs/{job_id}/events"), 401)


def test_what_a_socket_says_is_passed_over(api: Api) -> None:
    job_id = api.submit()["job_id"]
    with socket_to(api, job_id, **with_key()) as socket:
        receive(socket)
        socket.send("hello")
        socket.send(b"\x00")
        cancel(api, job_id)
        assert [e.event for e in receive_all(socket)] == ["status", "end"]


def _fact(event: Seen) -> tuple[str, str, str | None]:
    return event.event, event.status, event.data.get("at")


def _opens(api: Api, path: str) -> bool:
    with api.client.stream("GET", path) as response:
        return response.status_code == 200


def _patient_socket(api: Api, job_id: str) -> ClientConnection:
    for attempt in stamina.retry_context(on=InvalidStatus, wait_initial=0.05, timeout=10):
        with attempt:
            return socket_to(api, job_id, **with_key())
    raise AssertionError


def _until(holds: Callable[[], bool]) -> None:
    for attempt in stamina.retry_context(
        on=AssertionError, wait_initial=0.05, wait_max=0.5, attempts=None, timeout=60
    ):
        with attempt:
            assert holds()


def _revoke(api: Api, name: str, text: str) -> None:
    parsed = parse_key(text)
    assert parsed

    async def change() -> None:
        prefect = PrefectApi(str(PREFECT_API_URL.value()), patience=20.0)
        try:
            store = OwnerStore(prefect, api.settings)
            await store.change(name, lambda owner: revoke_key(owner, parsed[0]), "key.revoked")
        finally:
            await prefect.aclose()

    asyncio.run(change())
