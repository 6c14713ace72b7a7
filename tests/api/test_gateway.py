"""The gateway for rented hosts: what a lease opens, and when it does not any more."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi.testclient import TestClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from stillreel.api.app import create_app
from stillreel.fleet.calls import prefect_calls
from stillreel.fleet.leases import Leases
from stillreel.gateway.claims import OF_RUN_MOST, OPEN_MOST, WITHOUT_VIDEO_MOST, Claims
from stillreel.gateway.lease import CLAIM, lease_id
from stillreel.host_report import HostReport, artifact_of
from stillreel.jobs import marks
from stillreel.jobs.attempts import HANDED_BACK
from stillreel.settings import get_settings
from tests.api.background import eventually
from tests.api.conftest import Api, running_api
from tests.api.lessee import Lessee, lessee, task_run_event, waiting_job
from tests.api.outside import Door


@pytest.fixture
def run_id(gateway: Api) -> str:
    """A run that waits in the pool of both."""
    return waiting_job(gateway)[1]


@pytest.fixture(autouse=True)
def both_may_claim(gateway: Api) -> None:
    """What the tests before have left claimed does not count here."""
    desk = gateway.app.state.desk
    desk.claims = Claims(desk.leases)


def test_the_gateway_is_not_there_where_hosts_go_the_direct_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STILLREEL_RENTED_VIA", "direct")
    get_settings.cache_clear()
    asked = TestClient(create_app(get_settings()))  # it is not started: nothing gets so far
    for path in ("/lease/api/health", "/lease/storage/any/objects?prefix=", "/lease/api/events/in"):
        assert asked.get(path).status_code == 404


def test_one_lease_claims_a_run_and_has_it(host: Lessee, other: Lessee, run_id: str) -> None:
    for each in (host, other):
        assert each.ask("GET", f"/flow_runs/{run_id}").status_code == 403

    assert host.claim(run_id) == "ACCEPT"

    assert other.claim(run_id) == "ABORT"
    run = host.ask("GET", f"/flow_runs/{run_id}").json()
    assert run["parameters"]["prompt"] == "only for whoever makes it"
    assert run["state"]["message"] == CLAIM + lease_id(host.label.run_id, 1)
    assert other.ask("GET", f"/flow_runs/{run_id}").status_code == 403
    assert other.set_state(run_id, "RUNNING").status_code == 403
    assert host.set_state(run_id, "RUNNING", name="Running").json()["status"] == "ACCEPT"
    assert other.claim(run_id) == "ABORT"


@pytest.mark.parametrize("name", ["Submitting", "InfrastructurePending", "pending", ""])
def test_a_claim_by_any_other_name_takes_nothing_from_who_has_the_run(
    host: Lessee, other: Lessee, server: httpx.Client, run_id: str, name: str
) -> None:
    """Prefect lets a Pending run be Pending under another name."""
    again = {"state": {"type": "PENDING", "name": name}}
    path = f"/flow_runs/{run_id}/set_state"
    assert host.ask("POST", path, again).json()["status"] == "ACCEPT"
    assert server.get(f"/flow_runs/{run_id}").json()["state"]["name"] == "Pending"
    for each in (other, host):
        assert each.ask("POST", path, again).json()["status"] == "ABORT"
    server.post(path, json={"state": {"type": "PENDING", "name": "Pending"}}).raise_for_status()
    state = server.get(f"/flow_runs/{run_id}").json()["state"]
    assert state["message"] == CLAIM + lease_id(host.label.run_id, 1)


def test_a_poll_shows_that_a_run_waits_and_not_what_it_is(host: Lessee, gateway: Api) -> None:
    job_id, run_id = waiting_job(gateway)

    answer = host.ask("POST", "/work_pools/local/get_scheduled_flow_runs", {"limit": 200})

    entries = {entry["flow_run"]["id"]: entry["flow_run"] for entry in answer.json()}
    assert 0 < len(entries) <= 10
    for run in entries.values():
        assert not run.keys() & {"parameters", "labels", "context", "tags", "idempotency_key"}
        assert FlowRun.model_validate(run).name == "a job that waits"  # a worker can read it
    assert job_id not in answer.text
    assert "whoever" not in answer.text
    assert host.claim(run_id) == "ACCEPT"


def test_a_run_of_another_pool_is_not_to_be_claimed(host: Lessee, server: httpx.Client) -> None:
    found = server.get("/deployments/name/generate-video/wan-2.2-g5").json()
    made = server.post(f"/deployments/{found['id']}/create_flow_run", json={}).json()

    assert host.claim(made["id"]) == "403"

    run = server.get(f"/flow_runs/{made['id']}").json()
    assert run["state_type"] == "SCHEDULED"


def test_who_schedules_a_run_anew_takes_it_from_its_lease(
    host: Lessee, other: Lessee, gateway: Api, server: httpx.Client, run_id: str
) -> None:
    assert host.claim(run_id) == "ACCEPT"
    assert host.set_state(run_id, "RUNNING").json()["status"] == "ACCEPT"

    server.post(
        f"/flow_runs/{run_id}/set_state",
        json={"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}},
    ).raise_for_status()
    gateway.app.state.desk.leases.forget(run_id)

    assert host.set_state(run_id, "COMPLETED").status_code == 403
    assert host.ask("PATCH", f"/flow_runs/{run_id}", {"name": "mine"}).status_code == 403
    assert host.ask("GET", f"/flow_runs/{run_id}").status_code == 200  # its last lines are its own
    assert other.claim(run_id) == "ACCEPT"
    assert host.ask("GET", f"/flow_runs/{run_id}").status_code == 403
    assert host.claim(run_id) == "ABORT"


def test_a_host_hands_a_run_back_and_says_nothing_of_attempts(
    host: Lessee, server: httpx.Client, run_id: str
) -> None:
    assert host.claim(run_id) == "ACCEPT"
    assert host.set_state(run_id, "RUNNING").is_success
    handed = host.set_state(
        run_id,
        "SCHEDULED",
        name="AwaitingRetry",
        message="attempt 1 of 3",
        state_details={"scheduled_time": "2099-12-31T00:00:00Z"},
    )
    assert handed.json()["status"] == "ACCEPT"
    run = server.get(f"/flow_runs/{run_id}").json()
    name = lease_id(host.label.run_id, 1)
    assert (run["state"]["name"], run["state"]["message"]) == ("AwaitingRetry", HANDED_BACK + name)
    assert datetime.fromisoformat(run["next_scheduled_start_time"]) <= datetime.now(UTC)
    assert host.claim(run_id) == "ACCEPT"


@pytest.mark.parametrize("how", ["CRASHED", "settled", "deleted"])
def test_a_host_revives_no_job_that_has_ended(
    gateway: Api, host: Lessee, server: httpx.Client, run_id: str, how: str
) -> None:
    assert host.claim(run_id) == "ACCEPT"
    assert host.set_state(run_id, "RUNNING").json()["status"] == "ACCEPT"
    now = datetime.now(UTC).isoformat()
    if how == "CRASHED":
        assert host.set_state(run_id, "CRASHED").json()["status"] == "ACCEPT"
    else:
        settled = {marks.SETTLED: 1, marks.END_AT: now, marks.END: "completed"}
        labels = settled if how == "settled" else {marks.DELETED: now}
        server.patch(f"/flow_runs/{run_id}/labels", json=labels).raise_for_status()
        # Another process did that; of such a thing the gateway hears two seconds later.
        gateway.app.state.desk.leases.forget(run_id)
    before = server.get(f"/flow_runs/{run_id}").json()["state"]["id"]

    for kind in ("RUNNING", "SCHEDULED", "PENDING"):
        assert host.set_state(run_id, kind).json()["status"] == "ABORT"

    assert server.get(f"/flow_runs/{run_id}").json()["state"]["id"] == before
    if how == "settled":  # whoever starts it again in Prefect's UI may
        again = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}}
        server.post(f"/flow_runs/{run_id}/set_state", json=again).raise_for_status()
        assert host.claim(run_id) == "ACCEPT"
    assert host.set_state(run_id, "FAILED").json()["status"] == "ACCEPT"


def test_a_lease_claims_what_is_due_and_no_more_than_it_can_do(
    gateway: Api, server: httpx.Client
) -> None:
    with lessee(gateway) as host:
        runs = [waiting_job(gateway)[1] for _ in range(OPEN_MOST + 1)]
        assert {host.claim(run) for run in runs[:OPEN_MOST]} == {"ACCEPT"}
        assert host.claim(runs[-1]) == "ABORT"
        assert host.set_state(runs[0], "FAILED").json()["status"] == "ACCEPT"
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        body = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": later}}}
        server.post(f"/flow_runs/{runs[-1]}/set_state", json=body).raise_for_status()
        assert host.claim(runs[-1]) == "ABORT"
        asked = {"limit": 200, "scheduled_before": "2099-01-01T00:00:00Z"}
        offered = host.ask("POST", "/work_pools/local/get_scheduled_flow_runs", asked).json()
        assert runs[-1] not in {entry["flow_run"]["id"] for entry in offered}
        assert host.claim(waiting_job(gateway)[1]) == "ACCEPT"


def test_only_what_has_a_video_is_completed_and_only_what_is_unwanted_cancelled(
    gateway: Api, server: httpx.Client
) -> None:
    with lessee(gateway) as host:
        for _ in range(WITHOUT_VIDEO_MOST):
            run_id = waiting_job(gateway)[1]
            assert host.claim(run_id) == "ACCEPT"
            assert host.set_state(run_id, "RUNNING").is_success
            assert host.set_state(run_id, "CANCELLED").status_code == 403
            assert host.set_state(run_id, "COMPLETED").json()["status"] == "ACCEPT"
            state = server.get(f"/flow_runs/{run_id}").json()["state"]
            assert (state["type"], state["message"]) == ("CRASHED", "it ended without a video")
        assert host.claim(waiting_job(gateway)[1]) == "ABORT"  # it makes no videos


def test_a_cancelled_run_is_ended_and_nothing_else(
    gateway: Api, host: Lessee, server: httpx.Client
) -> None:
    job_id, run_id = waiting_job(gateway)
    assert host.claim(run_id) == "ACCEPT"
    assert host.set_state(run_id, "RUNNING").is_success
    assert gateway.client.post(f"/api/v1/jobs/{job_id}/cancel").is_success
    for kind in ("RUNNING", "SCHEDULED"):
        assert host.set_state(run_id, kind).json()["status"] == "ABORT"
    assert host.set_state(run_id, "CANCELLED").json()["status"] == "ACCEPT"
    assert server.get(f"/flow_runs/{run_id}").json()["state_type"] == "CANCELLED"


def test_a_lease_bounces_no_run_for_ever(host: Lessee, run_id: str) -> None:
    for _ in range(OF_RUN_MOST):
        assert host.claim(run_id) == "ACCEPT"
        assert host.set_state(run_id, "SCHEDULED").json()["status"] == "ACCEPT"
    assert host.claim(run_id) == "ABORT"


def test_heartbeats_have_our_time_and_do_not_crowd_out_those_of_others(
    host: Lessee, server: httpx.Client, gateway: Api, run_id: str
) -> None:
    assert host.claim(run_id) == "ACCEPT"
    last = str(uuid4())
    with host.socket() as socket:
        assert json.loads(socket.recv())["type"] == "auth_success"
        for _ in range(20):
            beat = task_run_event(run_id, last) | {
                "event": "prefect.flow-run.heartbeat",
                "occurred": "2099-01-01T00:00:00Z",
                "resource": {"prefect.resource.id": f"prefect.flow-run.{run_id}"},
            }
            socket.send(json.dumps(beat))
        socket.send(json.dumps(task_run_event(run_id, last, labels={"a": None})))
        socket.send(json.dumps(task_run_event(run_id, last)))
        assert task_runs_of(server, run_id, 1) == [last]
    wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]},
              "resource": {"id": [f"prefect.flow-run.{run_id}"]},
              "occurred": {"until": "2100-01-01T00:00:00Z"}}  # fmt: skip
    for attempt in eventually():
        with attempt:
            answer = server.post("/events/filter", json={"filter": wanted, "limit": 50})
            beats = answer.json()["events"]
            assert 1 <= len(beats) <= 3  # a slow machine may take longer than one pause
    assert all(datetime.fromisoformat(b["occurred"]) <= datetime.now(UTC) for b in beats)


@pytest.mark.parametrize("body", [
    {"tags": ["undelivered"]}, {"parameters": {}}, {"labels": {"a": "b"}},
    {"name": "n", "job_variables": {"env": {}}},
])  # fmt: skip
def test_a_host_changes_no_parameters_and_no_marks(
    host: Lessee, run_id: str, body: dict[str, Any]
) -> None:
    assert host.claim(run_id) == "ACCEPT"
    assert host.ask("PATCH", f"/flow_runs/{run_id}", body).status_code == 403
    assert host.ask("PATCH", f"/flow_runs/{run_id}/labels", {"stillreel.end": 1}).status_code == 403


def test_artifacts_have_keys_of_their_own_job(
    host: Lessee, other: Lessee, gateway: Api, server: httpx.Client
) -> None:
    job_id, run_id = waiting_job(gateway)
    assert host.claim(run_id) == "ACCEPT"
    body = {"key": f"progress-{job_id[-12:]}", "type": "progress", "data": 5.0,
            "flow_run_id": run_id}  # fmt: skip

    made = host.ask("POST", "/artifacts/", body)

    assert made.status_code == 201, made.text
    path = f"/artifacts/{made.json()['id']}"
    assert host.ask("PATCH", path, {"data": 9.0}).status_code == 204
    assert other.ask("PATCH", path, {"data": 1.0}).status_code == 403
    assert server.get(path).json()["data"] == 9.0
    for changed in (
        {"key": "progress-other"},
        {"flow_run_id": None},
        {"flow_run_id": str(uuid4())},
        {"id": str(uuid4())},
        {"task_run_id": "no-id"},
        {"key": None},
        {"type": "table"},
        {"data": 101},
        {"data": [{"a": 1}]},
        {"data": "x" * 20_001},
        {"metadata_": {"a": None}},
    ):
        assert host.ask("POST", "/artifacts/", body | changed).status_code == 403, changed
    assert other.ask("POST", "/artifacts/", body).status_code == 403


def test_a_host_reports_itself_under_its_own_name_only(host: Lessee, server: httpx.Client) -> None:
    worker = str(host.label)
    told = HostReport(worker=worker, pool="local", gpu="A10G", models=("wan-2.2",))
    report = artifact_of(told, at=datetime.now(UTC)) | {"data": "[click](https://evil.example)"}
    beat = {"name": worker, "heartbeat_interval_seconds": 10}
    made = host.ask("POST", "/artifacts/", report)
    assert made.status_code == 201
    assert "A10G" in made.json()["data"]
    assert "evil" not in made.text
    assert host.ask("POST", "/artifacts/", report | {"key": "host-other"}).status_code == 403
    for wrong in ({"pool": "g5"}, {"worker": "other"}, {"gpu": "[x](https://evil.example)"},
                  {"usd_per_hour": "nan"}, {"version": "v" * 300}, {"at": None}):  # fmt: skip
        facts = {"metadata_": report["metadata_"] | wrong}
        assert host.ask("POST", "/artifacts/", report | facts).status_code == 403, wrong
    path = "/work_pools/local/workers/heartbeat"
    assert host.ask("POST", path, beat).status_code == 204
    assert host.ask("POST", path, beat | {"name": "other"}).status_code == 403
    assert host.ask("POST", path.replace("local", "g5"), beat).status_code == 403
    server.delete(f"/work_pools/local/workers/{worker}").raise_for_status()  # it would be online


def test_lines_of_other_runs_are_left_out_of_the_log(
    host: Lessee, server: httpx.Client, run_id: str, gateway: Api
) -> None:
    theirs = waiting_job(gateway)[1]
    assert host.claim(run_id) == "ACCEPT"
    line = {"name": "n", "level": 20, "message": "hello", "timestamp": "2026-11-28T12:00:00Z"}
    both = [line | {"flow_run_id": run_id}, line | {"flow_run_id": theirs}]

    assert host.ask("POST", "/logs/", both).status_code == 201
    assert host.ask("POST", "/logs/", both[1:]).text == "null"
    elsewhere = line | {"flow_run_id": str(uuid4())}
    assert host.ask("POST", "/logs/", [elsewhere]).status_code == 403

    wanted = {"logs": {"flow_run_id": {"any_": [run_id, theirs]}}}
    found = server.post("/logs/filter", json=wanted).json()
    assert [entry["flow_run_id"] for entry in found] == [run_id]


def test_task_runs_are_made_by_events_of_an_own_run_only(
    host: Lessee, other: Lessee, server: httpx.Client, gateway: Api, run_id: str
) -> None:
    theirs = waiting_job(gateway)[1]
    assert host.claim(run_id) == "ACCEPT"
    assert other.claim(theirs) == "ACCEPT"
    mine, forged, stolen = (str(uuid4()) for _ in range(3))
    with other.socket() as socket:
        assert json.loads(socket.recv())["type"] == "auth_success"
        socket.send(json.dumps(task_run_event(theirs, stolen)))
        assert task_runs_of(server, theirs, 1) == [stolen]
    with host.socket() as socket:
        assert json.loads(socket.recv())["type"] == "auth_success"
        for event in (
            task_run_event(theirs, forged),
            task_run_event(run_id, stolen),
            {**task_run_event(run_id, mine), "event": "prefect.flow-run.Completed"},
            {**task_run_event(run_id, mine), "related": []},
            {"what": "is this"},
            task_run_event(run_id, mine, id=forged, flow_run_id=theirs, state={"type": "FAILED"}),
        ):
            socket.send(json.dumps(event))
        assert task_runs_of(server, run_id, 1) == [mine]  # the last of them, and made anew
    assert task_runs_of(server, theirs, 1) == [stolen]
    assert server.get(f"/task_runs/{forged}").status_code == 404
    assert server.get(f"/task_runs/{stolen}").json()["flow_run_id"] == theirs


def test_a_lease_counts_what_waits_for_its_own_pool_only(host: Lessee, run_id: str) -> None:
    body: dict[str, Any] = {
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "flows": {"name": {"any_": ["generate-video"]}},
        "work_pools": {"name": {"any_": ["local"]}},
    }
    assert host.ask("POST", "/flow_runs/count", body).json() >= 1
    for changed in ({"work_pools": {"name": {"any_": ["g5"]}}}, {"work_pools": None}, {"flows": {}},
                    {"flow_runs": {}}, {"deployments": {}}):  # fmt: skip
        assert host.ask("POST", "/flow_runs/count", body | changed).status_code == 403, changed


def test_a_filter_finds_own_runs_only(host: Lessee, other: Lessee, gateway: Api) -> None:
    mine, theirs, waits = (waiting_job(gateway)[1] for _ in range(3))
    assert (host.claim(mine), other.claim(theirs)) == ("ACCEPT", "ACCEPT")
    wanted = {"flow_runs": {"id": {"any_": [mine, theirs, waits, "x"]}}}
    assert [run["id"] for run in host.ask("POST", "/flow_runs/filter", wanted).json()] == [mine]
    narrow = {"flow_runs": wanted["flow_runs"] | {"state": {"type": {"any_": ["CANCELLING"]}}}}
    assert host.ask("POST", "/flow_runs/filter", narrow).json() == []
    for wide in ({}, {"flow_runs": {}}, {"flow_runs": {"id": {"not_any_": [mine]}}},
                 {"flow_runs": wanted["flow_runs"], "flows": {"name": {"any_": ["x"]}}},
                 {"flow_runs": wanted["flow_runs"] | {"operator": "or_"}}):  # fmt: skip
        assert host.ask("POST", "/flow_runs/filter", wide).status_code == 403, wide


@pytest.mark.parametrize("how", ["revoked", "its drain is over"])
def test_a_token_counts_no_longer_than_its_lease(
    gateway: Api, server: httpx.Client, how: str
) -> None:
    with lessee(gateway) as host:
        run_id = waiting_job(gateway)[1]
        assert host.claim(run_id) == "ACCEPT"
        drain = host.label.run_id
        if how == "revoked":
            with prefect_calls() as calls:
                Leases(calls).gone(drain, 1)
        else:
            body = {"state": {"type": "COMPLETED"}, "force": True}
            server.post(f"/flow_runs/{drain}/set_state", json=body).raise_for_status()

        for attempt in eventually():  # what is known of a lease is two seconds old at most
            with attempt:
                assert host.ask("GET", f"/flow_runs/{run_id}").status_code == 401
        assert host.set_state(run_id, "COMPLETED").status_code == 401
        with host.socket() as socket, pytest.raises(Exception, match="1008"):
            socket.recv()


def test_prefect_gets_its_own_credential_and_never_the_lease_token(
    door: Door, prefect_api: str
) -> None:
    password = str(PREFECT_API_AUTH_STRING.value() or "admin:the-real-one")
    env = {"STILLREEL_KEEPER_LEADS": "false"}
    with (
        temporary_settings(updates={PREFECT_API_AUTH_STRING: password}),
        running_api(env) as api,
        lessee(api) as host,
    ):
        door.heard.clear()
        assert host.ask("GET", "/work_pools/local").status_code == 200
        assert host.ask("POST", "/block_types/filter", {}).status_code == 403
        said = b"".join(door.heard)
    assert b"GET /api/work_pools/local" in said
    assert b"Authorization: Basic " + b64encode(password.encode()) in said
    assert b"block_types" not in said
    assert host.authorization.removeprefix("Basic ").encode() not in said
    assert host.token.encode() not in said


def task_runs_of(server: httpx.Client, run_id: str, count: int) -> list[str]:
    """The task runs of this run, once there are so many."""
    found: list[str] = []
    for attempt in eventually():
        with attempt:
            body = {"flow_runs": {"id": {"any_": [run_id]}}}
            found = [run["id"] for run in server.post("/task_runs/filter", json=body).json()]
            assert len(found) >= count
    return found
