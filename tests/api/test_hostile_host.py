"""A hostile host, scripted: it has a lease, and tries everything else with it.

Prints a table of what was tried (`pytest -s`). The routes are those of the server's own OpenAPI
document, so a new Prefect's are tried too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest
from websockets.exceptions import WebSocketException

from stillreel.fleet.calls import prefect_calls
from stillreel.fleet.leases import Leases
from stillreel.gateway.allowed import CALLS
from stillreel.gateway.calls import BODY_BYTES
from stillreel.gateway.reports import LOG_BYTES
from stillreel.keys import latents_key, lent_key, output_key, source_key
from tests.api.background import eventually
from tests.api.conftest import Api, png
from tests.api.lessee import Lessee, lessee, task_run_event, waiting_job
from tests.api.test_gateway import task_runs_of

SECRET = "a-secret-of-the-installation"
NAMES = ("g5", "control", "local")
SOCKETS = ("/events/out", "/logs/out", "/work_pools/local/workers/connect",
           "/task_runs/subscriptions/scheduled", "/events/in/", "//events/in")  # fmt: skip


@dataclass
class Prey:
    """What a hostile host must not reach; with a second lease, which is not its own either."""

    theirs: str
    their_job: str
    waiting: str
    elsewhere: str
    drain: str
    task_run: str
    artifact: str
    deployment: str
    own_deployment: str
    own_flow: str
    block: str
    their_key: str

    def ids(self, noun: str) -> list[str]:
        """The ids that a path may hold whose first word this is."""
        return {
            "flow_runs": [self.theirs, self.waiting, self.elsewhere, self.drain],
            "task_runs": [self.task_run],
            "artifacts": [self.artifact],
            "deployments": [self.deployment, self.own_deployment],
            "flows": [self.own_flow],
            "block_documents": [self.block],
        }.get(noun, [self.theirs])


@dataclass
class Table:
    """What was tried, by kind, and what became of it."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    successes: list[str] = field(default_factory=list)

    def note(self, kind: str, what: str, status: int, *, is_success: bool) -> None:
        self.rows.setdefault(kind, Counter())[str(status)] += 1
        if is_success:
            self.rows[kind]["success"] += 1
            self.successes.append(f"{kind}: {what} -> {status}")

    def __str__(self) -> str:
        lines = ["", f"{'tried with a lease token':<44}{'tries':>7}{'successes':>11}  answers"]
        for kind, row in self.rows.items():
            counted = {status: n for status, n in row.items() if status != "success"}
            answers = ", ".join(f"{status} x {n}" for status, n in sorted(counted.items()))
            lines.append(f"{kind:<44}{sum(counted.values()):>7}{row['success']:>11}  {answers}")
        return "\n".join(lines)


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    made = Table()
    yield made
    print(made)  # noqa: T201 - the table is what this file is for


@pytest.fixture(scope="module")
def prey(gateway: Api, server: httpx.Client) -> Iterator[Prey]:
    with lessee(gateway) as other:
        job_id, theirs = waiting_job(gateway)
        assert other.claim(theirs) == "ACCEPT"
        task_run, key = str(uuid4()), f"progress-{job_id[-12:]}"
        with other.socket() as socket:
            socket.recv()
            socket.send(json.dumps(task_run_event(theirs, task_run)))
            assert task_runs_of(server, theirs, 1) == [task_run]
        made = other.ask("POST", "/artifacts/", {
            "key": key, "type": "progress", "data": 5.0, "flow_run_id": theirs,
        })  # fmt: skip
        line = {"name": "n", "level": 20, "message": "theirs", "flow_run_id": theirs,
                "timestamp": "2026-11-28T12:00:00Z"}  # fmt: skip
        assert other.ask("POST", "/logs/", [line]).status_code == 201
        deployment = _deployment(server, "wan-2.2-g5")
        path = f"/deployments/{deployment['id']}/create_flow_run"
        own = _deployment(server, "preview-local")
        server.post("/variables/", json={"name": "prey", "value": SECRET})
        yield Prey(
            theirs=theirs,
            their_job=job_id,
            waiting=waiting_job(gateway)[1],
            elsewhere=server.post(path, json={}).json()["id"],
            drain=other.label.run_id,
            task_run=task_run,
            artifact=made.json()["id"],
            deployment=deployment["id"],
            own_deployment=own["id"],
            own_flow=own["flow_id"],
            block=_secret_block(server),
            their_key=key,
        )


@pytest.fixture(autouse=True)
def nothing_changes(prey: Prey, server: httpx.Client) -> Iterator[None]:
    """Whatever is tried, what is not the host's own is as it was."""
    before = _world(server, prey)
    yield
    assert _world(server, prey) == before


@pytest.mark.timeout(900)
def test_every_route_of_the_servers_own_schema(
    host: Lessee, prey: Prey, server: httpx.Client, table: Table
) -> None:
    root = str(server.base_url).rstrip("/").removesuffix("/api")
    schema = server.get(f"{root}/openapi.json", timeout=300).json()
    own = {
        ("GET", "/health"),
        ("GET", "/admin/version"),
        ("GET", "/admin/storage"),  # answered by the gateway: there is none
        ("GET", "/work_pools/local"),
        ("GET", f"/deployments/{prey.own_deployment}"),
        ("GET", f"/flows/{prey.own_flow}"),
        ("POST", "/work_pools/local/get_scheduled_flow_runs"),
    }
    tried = 0
    for pattern, operations in schema["paths"].items():
        for method in operations:
            for path in _filled(pattern.removeprefix("/api"), prey):
                for body in _bodies(method, path, prey):
                    answer = host.ask(method.upper(), path, body)
                    tried += 1
                    told = SECRET in answer.text or "theirs" in answer.text
                    is_own = (method.upper(), path) in own and not told
                    is_empty = answer.is_success and answer.text.strip() in ("[]", "")
                    table.note(
                        "every route of Prefect's OpenAPI",
                        f"{method} {path} {body}",
                        answer.status_code,
                        is_success=answer.is_success and not is_own and not is_empty,
                    )
    assert tried > 500
    assert table.successes == []


def test_every_call_of_the_allow_list_with_the_ids_of_others(
    host: Lessee, prey: Prey, table: Table
) -> None:
    states: list[Any] = [
        {"state": {"type": kind}, "force": force}
        for kind in (
            "RUNNING",
            "COMPLETED",
            "FAILED",
            "CRASHED",
            "CANCELLED",
            "SCHEDULED",
            "PAUSED",
        )
        for force in (False, True)
    ]
    line = {"name": "n", "level": 20, "message": "mine", "timestamp": "2026-11-28T12:00:00Z"}
    artifact = {"type": "markdown", "data": "mine"}
    for run_id in (prey.theirs, prey.waiting, prey.elsewhere, prey.drain):
        tries: list[tuple[str, str, Any]] = [
            ("GET", f"/flow_runs/{run_id}", None),
            ("GET", f"/flow_run_states/?flow_run_id={run_id}", None),
            ("PATCH", f"/flow_runs/{run_id}", {"name": "mine"}),
            *(("POST", f"/flow_runs/{run_id}/set_state", state) for state in states),
            ("POST", "/logs/", [line | {"flow_run_id": run_id}]),
            ("POST", "/logs/", [line | {"flow_run_id": run_id, "worker_id": str(uuid4())}]),
            ("POST", "/artifacts/", artifact | {"flow_run_id": run_id, "key": prey.their_key}),
            ("POST", "/artifacts/", artifact | {"task_run_id": prey.task_run}),
            ("PATCH", f"/artifacts/{prey.artifact}", {"data": "mine"}),
        ]
        if run_id != prey.waiting:  # that one it may claim
            tries += [("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "PENDING"}})]
        for method, path, body in tries:
            answer = host.ask(method, path, body)
            is_nothing = answer.text == "null" or '"status":"ABORT"' in answer.text
            table.note(
                "calls of the allow-list, others' ids",
                f"{method} {path} {body}",
                answer.status_code,
                is_success=answer.is_success and not is_nothing,
            )
    assert table.successes == []


def test_tokens_that_do_not_count(host: Lessee, gateway: Api, prey: Prey, table: Table) -> None:
    with lessee(gateway, hours=-1.0) as late:
        expired = late.token
    head, secret = host.token.rsplit("_", 1)[0], host.token[-43:]
    their_head = f"lease_{prey.drain.replace('-', '')}_1"
    for name, user, token in (
        ("none", "", ""),
        ("expired", "lease", expired),
        ("another user", "admin", host.token),
        ("own secret, another drain", "lease", f"{their_head}_{secret}"),
        ("own secret, another host", "lease", f"{head[:-1]}2_{secret}"),
        ("upper case", "lease", host.token.upper()),
        ("cut", "lease", host.token[:-1]),
        ("guessed", "lease", f"{head}_{'A' * 43}"),
        ("an id of a job's run", "lease", f"lease_{prey.theirs.replace('-', '')}_1_{secret}"),
    ):
        for path in ("/work_pools/local", f"/flow_runs/{prey.theirs}", "/health"):
            answer = httpx.get(
                f"{gateway.url}/lease/api{path}", auth=(user, token) if user else None,
                trust_env=False, timeout=60,
            )  # fmt: skip
            table.note("tokens that do not count", f"{name} {path}", answer.status_code,
                       is_success=answer.is_success)  # fmt: skip
            assert answer.status_code == 401, name
    for headers in ({"Authorization": f"Bearer {host.token}"}, {"X-API-Key": host.token}):
        for path in ("/api/v1/jobs", "/api/v1/usage", "/files/x", "/metrics"):
            answer = httpx.get(f"{gateway.url}{path}", headers=headers, trust_env=False, timeout=60)
            table.note("the token at the public API", path, answer.status_code,
                       is_success=answer.is_success)  # fmt: skip
    assert table.successes == []


def test_tricks_with_paths(host: Lessee, prey: Prey, table: Table) -> None:
    base, run = "/lease/api", prey.theirs
    for method, target in (
        ("GET", f"/{base}/flow_runs/{run}"),
        ("GET", f"{base}//flow_runs/{run}"),
        ("GET", f"{base}/flow_runs//{run}"),
        ("GET", f"{base}/flow_runs/{run}/"),
        ("GET", f"{base}/work_pools/local/../../flow_runs/{run}"),
        ("GET", f"{base}/work_pools/local/%2e%2e/%2e%2e/flow_runs/{run}"),
        ("GET", f"{base}/work_pools/local%2f..%2f..%2fflow_runs%2f{run}"),
        ("GET", f"{base}/work_pools/..%5cflow_runs%5c{run}"),
        ("GET", f"{base}/work_pools/../flow_runs/{run}"),
        ("GET", f"{base}/work_pools/.."),
        ("GET", f"{base}/work_pools/%6cocal/queues/default"),
        ("GET", f"{base}/%66low_runs/{run}"),
        ("GET", f"{base}/FLOW_RUNS/{run}"),
        ("GET", f"/LEASE/API/flow_runs/{run}"),
        ("GET", f"{base}/flow_runs/{run.upper()}"),
        ("GET", f"{base}/flow_runs/{run};x=1"),
        ("GET", f"{base}/flow_runs/{run}%00"),
        ("GET", f"{base}/flow_runs/{run}%0d%0aX:y"),
        ("GET", f"{base}/flow_runs/{run}?x=1"),
        ("GET", f"{base}/flow_run_states/?flow_run_id={run}&flow_run_id={run}"),
        ("GET", f"{base}/flow_run_states/?flow_run_id[]={run}"),
        ("GET", f"{base}/../api/flow_runs/{run}"),
        ("GET", f"{base}/../../api/v1/jobs"),
        ("GET", f"/lease/./api/flow_runs/{run}"),
        ("GET", f"http://127.0.0.1{base}/flow_runs/{run}"),
        ("GET", f"{base}/flow_runs/{run}#x"),
        ("get", f"{base}/flow_runs/{run}"),
        ("HEAD", f"{base}/flow_runs/{run}"),
        ("OPTIONS", f"{base}/flow_runs/{run}"),
        ("DELETE", f"{base}/flow_runs/{run}"),
        ("PUT", f"{base}/flow_runs/{run}"),
        ("PROPFIND", f"{base}/flow_runs/{run}"),
    ):
        status = host.raw(method, target)
        table.note("tricks with paths and methods", f"{method} {target}", status,
                   is_success=status < 400)  # fmt: skip
    for name, value in (
        ("X-HTTP-Method-Override", "DELETE"),
        ("X-Original-URL", f"/api/flow_runs/{run}"),
        ("X-Rewrite-URL", f"/api/flow_runs/{run}"),
        ("X-Forwarded-Prefix", "/api"),
    ):
        status = host.raw("GET", f"{base}/flow_runs/{run}", {name: value})
        table.note("tricks with headers", name, status, is_success=status < 400)
    assert table.successes == []


def test_bodies_that_are_too_much(host: Lessee, prey: Prey, table: Table) -> None:
    deep = "[" * 100_000
    line = {"name": "n", "level": 20, "timestamp": "2026-11-28T12:00:00Z",
            "flow_run_id": prey.theirs}  # fmt: skip
    for what, path, content in (
        ("large state", f"/flow_runs/{prey.theirs}/set_state", b" " * (BODY_BYTES + 1)),
        ("large log", "/logs/", json.dumps([line | {"message": "x" * LOG_BYTES}]).encode()),
        ("many lines", "/logs/", json.dumps([1] * 20_000).encode()),
        ("many runs", "/logs/",
         json.dumps([line | {"flow_run_id": str(uuid4())} for _ in range(50)]).encode()),
        ("deep", "/logs/", deep.encode()),
        ("no JSON", "/flow_runs/filter", b"{"),
        ("NaN", "/flow_runs/filter", b'{"limit": NaN}'),
        ("infinite", "/flow_runs/filter", b'{"limit": 1e999}'),
        ("not UTF-8", "/flow_runs/filter", '{"sort": "\u00e9"}'.encode("latin-1")),
        ("UTF-16", "/flow_runs/filter", '{"sort": "x"}'.encode("utf-16")),
        ("half a pair", "/flow_runs/filter", b'{"limit": "\\ud800"}'),
        ("NUL", "/flow_runs/filter", b'{"flow_runs": {"id": {"any_": ["\\u0000"]}}}'),
        ("no object", "/flow_runs/filter", b"[[]]"),
        ("a list for a word", f"/flow_runs/{prey.theirs}/set_state", b'{"state": {"type": []}}'),
        ("a list for a kind", "/artifacts/", b'{"key": ["k"], "type": []}'),
        ("many ids", "/flow_runs/filter",
         json.dumps({"flow_runs": {"id": {"any_": [prey.theirs] * 5000}}}).encode()),
    ):  # fmt: skip
        answer = host.client.post(path, content=content)
        table.note("bodies that are too large or no JSON", what, answer.status_code,
                   is_success=answer.is_success)  # fmt: skip
        assert answer.status_code in (403, 413, 422), what
    assert table.successes == []


def test_sockets(host: Lessee, prey: Prey, table: Table) -> None:
    for path in SOCKETS:
        status = _said_over(host, path)
        table.note("sockets other than /events/in", path, status, is_success=status == 101)
    for token in (f"lease_{prey.drain.replace('-', '')}_1_{host.token[-43:]}", "x", " "):
        status = _said_over(host, "/events/in", token)
        table.note("/events/in without a token that counts", token[:5], status,
                   is_success=status == 101)  # fmt: skip
    assert table.successes == []


def test_events_about_what_is_not_its_own(
    host: Lessee, prey: Prey, table: Table, server: httpx.Client, gateway: Api
) -> None:
    own, last = waiting_job(gateway)[1], str(uuid4())
    assert host.claim(own) == "ACCEPT"
    forged = str(uuid4())
    beat = {
        **task_run_event(prey.theirs, prey.task_run),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{prey.theirs}"},
    }
    tries: list[dict[str, Any]] = [
        task_run_event(prey.theirs, prey.task_run),
        task_run_event(prey.theirs, forged),
        task_run_event(own, prey.task_run),
        beat,
        beat | {"event": "prefect.flow-run.Failed"},
        beat | {"event": []},
        beat | {"event": "stillreel.fleet.budget"},
        beat | {"resource": {"prefect.resource.id": f"prefect.deployment.{prey.deployment}"}},
        beat | {"event": "prefect.worker.executed-flow-run",
                "resource": {"prefect.resource.id": "prefect.worker.process.other"}},
        {**task_run_event(own, str(uuid4()), id=prey.task_run), "account": str(uuid4())},
    ]  # fmt: skip
    with host.socket() as socket:
        socket.recv()
        for event in tries:
            socket.send(json.dumps(event))
        socket.send(json.dumps(task_run_event(own, last, id=forged, flow_run_id=prey.theirs)))
        assert task_runs_of(server, own, 1) == [last]
    wanted = {"filter": {"event": {"name": ["stillreel.fleet.budget", "prefect.flow-run.Failed"]},
                         "resource": {"id": [f"prefect.flow-run.{prey.theirs}"]}}}  # fmt: skip
    got_through = server.post("/events/filter", json=wanted).json()["events"]
    for event in tries:
        table.note("events about others", str(event["event"]), 403, is_success=False)
    assert got_through == []
    assert server.get(f"/task_runs/{forged}").status_code == 404
    assert table.successes == []


def test_objects_that_are_not_its_own(host: Lessee, prey: Prey, gateway: Api, table: Table) -> None:
    job_id, own = waiting_job(gateway)
    assert host.claim(own) == "ACCEPT"
    theirs = [f"inputs/{prey.their_job}/input.png", output_key(prey.their_job, "output.mp4"),
              latents_key(prey.their_job, "0" * 32), lent_key(prey.their_job, "0" * 32),
              f"results/infer-2-{prey.theirs}-0a1b"]  # fmt: skip
    for key in theirs:
        gateway.storage.put_bytes(key, b"theirs", content_type="image/png")
    tricks = [f"inputs/{job_id}/../{prey.their_job}/input.png", f"/{theirs[0]}", f"./{theirs[0]}",
              theirs[0].replace("/", "//", 1), theirs[0].replace("/", "%2f"), theirs[0].upper(),
              f"inputs/{job_id}/..%2f{prey.their_job}/input.png", "..", "", "inputs", "owners/x",
              theirs[0] + "\x00", f"inputs/{job_id}\\..\\{prey.their_job}"]  # fmt: skip
    for run_id in (own, prey.theirs, prey.waiting, prey.drain, str(uuid4()), f"..%2f{own}"):
        for key in (*theirs, *(tricks if run_id == own else ())):
            for what, answer in _storage_calls(host, run_id, key):
                table.note("objects of others, and tricks with keys", f"{what} {run_id} {key}",
                           answer.status_code, is_success=answer.is_success)  # fmt: skip
    assert table.successes == []
    assert {gateway.storage.get_bytes(key) for key in theirs} == {b"theirs"}


def test_what_it_did_once_more_when_its_lease_is_over(gateway: Api, table: Table) -> None:
    with lessee(gateway) as late:
        job_id, run_id = waiting_job(gateway)
        assert late.claim(run_id) == "ACCEPT"
        key = source_key(job_id)
        gateway.storage.put_bytes(key, png(), content_type="image/png")
        line = {"name": "n", "level": 20, "message": "m", "timestamp": "2026-11-28T12:00:00Z",
                "flow_run_id": run_id}  # fmt: skip
        calls: list[tuple[str, str, Any]] = [
            ("GET", f"/flow_runs/{run_id}", None),
            ("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "RUNNING"}}),
            ("POST", "/logs/", [line]),
            ("POST", "/work_pools/local/get_scheduled_flow_runs", {"limit": 1}),
        ]
        for method, path, body in calls:
            assert late.ask(method, path, body).is_success, path
        base, headers = f"{gateway.url}/lease/storage/{run_id}", _bearer(late)
        order = {"key": key, "content_type": "image/png", "size": 100_000}
        with httpx.Client(headers=headers, trust_env=False, timeout=60) as client:
            allowed = client.post(f"{base}/uploads", json=order)
            assert allowed.is_success, allowed.text
            done = {"upload": allowed.json()["upload"]}
            with prefect_calls() as prefect_api:
                Leases(prefect_api).gone(late.label.run_id, late.label.number)
            for attempt in eventually():
                with attempt:
                    assert late.ask("GET", "/health").status_code == 401
            answers = [late.ask(*call) for call in calls]
            answers += [client.post(f"{base}/uploads/done", json=done)]
            answers += [answer for _, answer in _storage_calls(late, run_id, key)]
    for answer in answers:
        table.note("the same calls after the end of the lease", str(answer.url), answer.status_code,
                   is_success=answer.is_success)  # fmt: skip
    assert table.successes == []


def test_the_allow_list_is_short_enough_to_be_read() -> None:
    assert len(CALLS) <= 25
    assert {call.method for call in CALLS} <= {"GET", "POST", "PATCH"}


def _filled(pattern: str, prey: Prey) -> Iterator[str]:
    """The paths of a pattern with what a host may know in its places."""
    if "{" not in pattern:
        yield pattern
        return
    head, _, rest = pattern.partition("{")
    place, _, tail = rest.partition("}")
    values = NAMES if "name" in place and "queue" not in place else ("default",)
    if place == "id" or place.endswith("_id"):
        values = tuple(prey.ids(pattern.split("/")[1]))
    elif place == "key":
        values = (prey.their_key,)
    elif "slug" in place:
        values = ("secret",)
    for value in values:
        yield from _filled(head + value + tail, prey)


def _bearer(host: Lessee) -> dict[str, str]:
    return {"Authorization": f"Bearer {host.token}"}


def _storage_calls(host: Lessee, run_id: str, key: str) -> Iterator[tuple[str, httpx.Response]]:
    """Every call of storage by lease, about this object of this run."""
    base = f"{host.api.url}/lease/storage/{run_id}"
    order = {"key": key, "content_type": "image/png", "size": 100_000}
    image = _bearer(host) | {"Content-Type": "image/png"}
    with httpx.Client(headers=_bearer(host), trust_env=False, timeout=60) as client:
        yield "find", client.get(f"{base}/object", params={"key": key})
        yield "link", client.get(f"{base}/link", params={"key": key, "seconds": 60})
        yield "list", client.get(f"{base}/objects", params={"prefix": key})
        yield "put", client.put(f"{base}/object", params={"key": key}, content=b"x", headers=image)
        yield "allow", client.post(f"{base}/uploads", json=order)
        yield "delete", client.delete(f"{base}/object", params={"key": key})


def _bodies(method: str, path: str, prey: Prey) -> list[Any]:
    if method in ("get", "delete", "head"):
        return [None]
    if path.endswith(("/filter", "/count", "/paginate", "/history")):
        return [
            {},
            {"limit": 200},
            {"flow_runs": {"id": {"any_": [prey.theirs, prey.waiting]}}},
            {"include_secrets": True, "block_documents": {"is_anonymous": {"eq_": False}}},
            {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}},
        ]
    return [
        {},
        [],
        {"state": {"type": "COMPLETED", "name": "Completed"}, "force": True},
        {"name": "mine", "value": "mine", "flow_id": prey.own_flow, "parameters": {}},
    ]


def _world(server: httpx.Client, prey: Prey) -> dict[str, Any]:
    """What is not the host's own, as Prefect has it."""
    of_theirs = {"flow_runs": {"id": {"any_": [prey.theirs]}}}
    return {
        "runs": [_lasting(server.get(f"/flow_runs/{run_id}").json())
                 for run_id in (prey.theirs, prey.waiting, prey.elsewhere, prey.drain)],
        "task runs": [_lasting(x) for x in server.post("/task_runs/filter", json=of_theirs).json()],
        "artifact": server.get(f"/artifacts/{prey.artifact}").json(),
        "latest": server.get(f"/artifacts/{prey.their_key}/latest").json(),
        "logs": server.post("/logs/filter", json={"logs": {"flow_run_id": {"any_": [
                      prey.theirs, prey.waiting, prey.elsewhere, prey.drain]}}}).json(),
        "block": server.get(f"/block_documents/{prey.block}").json(),
        "pools": sorted(x["name"] for x in server.post("/work_pools/filter", json={}).json()),
        "automations": server.post("/automations/count", json={}).json(),
        "variables": {x["name"]: x["value"] for x in
                      server.post("/variables/filter", json={"limit": 200}).json()
                      if "leader" not in x["name"]},
        "deployments": sorted(x["id"] for x in server.post("/deployments/filter", json={}).json()),
        "flows": sorted(x["name"] for x in server.post("/flows/filter", json={}).json()),
    }  # fmt: skip


def _lasting(run: dict[str, Any]) -> dict[str, Any]:
    """A run without what Prefect computes when it is asked."""
    return {name: value for name, value in run.items() if not name.startswith("estimated_")}


def _deployment(server: httpx.Client, name: str) -> dict[str, Any]:
    return server.get(f"/deployments/name/generate-video/{name}").json()


def _secret_block(server: httpx.Client) -> str:
    """The id of a block that holds a secret."""
    from prefect.blocks.system import Secret

    Secret(value=SECRET).save(name := f"prey-{uuid4().hex[:8]}")  # type: ignore[arg-type]
    return server.get(f"/block_types/slug/secret/block_documents/name/{name}").json()["id"]


def _said_over(host: Lessee, path: str, token: str = "") -> int:
    """101 when a socket takes our word for who we are; else why not."""
    try:
        with host.socket(path, token) as socket:
            hello = json.loads(socket.recv(timeout=60))
            return 101 if hello.get("type") == "auth_success" else 403
    except (WebSocketException, TimeoutError, OSError) as exc:
        response = getattr(exc, "response", None)
        return response.status_code if response is not None else 1008
