"""A rented host as the gateway sees it: its token, and what it sends with it."""

from __future__ import annotations

import http.client
import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Running
from websockets.sync.client import ClientConnection, connect

from stillreel.fleet.calls import prefect_calls
from stillreel.fleet.labels import Label
from stillreel.fleet.leases import FLOW, Asked, Leases
from stillreel.fleet.orders import granting
from tests.api.background import prefect_client

if TYPE_CHECKING:
    from tests.api.conftest import Api

USD_PER_HOUR = 0.36
PENDING = {"state": {"type": "PENDING", "name": "Pending"}}


@flow(name=FLOW)
def drain_flow() -> None:
    """Stands for the drain: only its name and its labels count here."""


@dataclass(frozen=True)
class Lessee:
    """A host with a lease of its own."""

    api: Api
    label: Label
    token: str
    client: httpx.Client

    @property
    def authorization(self) -> str:
        return "Basic " + b64encode(f"lease:{self.token}".encode()).decode()

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return self.client.request(method, path, json=body)

    def claim(self, run_id: str) -> str:
        """What becomes of a claim: ACCEPT, ABORT, or the status of a refusal."""
        answer = self.ask("POST", f"/flow_runs/{run_id}/set_state", PENDING)
        return answer.json()["status"] if answer.is_success else str(answer.status_code)

    def set_state(self, run_id: str, kind: str, **state: Any) -> httpx.Response:
        body = {"state": {"type": kind, **state}}
        return self.ask("POST", f"/flow_runs/{run_id}/set_state", body)

    def raw(self, method: str, target: str, headers: dict[str, str] | None = None) -> int:
        """The status of a request whose target goes over the wire as it is written here."""
        at = urlsplit(self.api.url)
        line = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
        try:
            line.putrequest(method, target, skip_accept_encoding=True)
            for name, value in {"Authorization": self.authorization, **(headers or {})}.items():
                line.putheader(name, value)
            line.endheaders()
            return line.getresponse().status
        finally:
            line.close()

    @contextmanager
    def socket(self, path: str = "/events/in", token: str = "") -> Iterator[ClientConnection]:
        """A socket that has said who it is."""
        url = f"{self.api.url.replace('http', 'ws')}/lease/api{path}"
        with connect(url, subprotocols=["prefect"], proxy=None) as socket:  # type: ignore[list-item]
            socket.send(json.dumps({"type": "auth", "token": f"lease:{token or self.token}"}))
            yield socket


@contextmanager
def lessee(api: Api, pool: str = "local", *, hours: float = 1.0) -> Iterator[Lessee]:
    """A host whose drain has just been granted a lease on this pool."""
    with get_client(sync_client=True) as client:
        drain = str(client.create_flow_run(drain_flow, state=Running()).id)
    with prefect_calls() as calls:
        book = Leases(calls)
        now = datetime.now(UTC)
        until = now + timedelta(hours=hours)
        assert book.claim(drain, f"{pool}-{uuid4().hex}", now)
        asked = Asked(1, until, USD_PER_HOUR, now)
        assert book.ask(drain, asked, usd=0.0, reserved_usd=0.0, now=now)
        calls.patch(f"/flow_runs/{drain}/labels", {"stillreel.drain.pool": pool})
        label = Label("main", drain, 1)
        token = granting(book)(label, until)
    base = f"{api.url}/lease/api"
    with httpx.Client(base_url=base, auth=("lease", token), timeout=60, trust_env=False) as line:
        yield Lessee(api, label, token, line)


def prefect(url: str) -> httpx.Client:
    """Prefect itself, as its operator speaks to it."""
    return prefect_client(url)


def waiting_job(api: Api) -> tuple[str, str]:
    """A job that waits in the pool `local`: its id and its run's."""
    job_id = api.submit(prompt="only for whoever makes it")["job_id"]
    return job_id, api.job(job_id)["run_id"]


def task_run_event(run_id: str, task_run_id: str, **task_run: Any) -> dict[str, Any]:
    """What an engine says of a task run that has begun."""
    state = {"type": "RUNNING", "name": "Running", "message": "", "state_details": {}}
    return {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.task-run.Running",
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{task_run_id}",
            "prefect.resource.name": "infer",
            "prefect.state-type": "RUNNING",
            "prefect.state-name": "Running",
            "prefect.state-timestamp": datetime.now(UTC).isoformat(),
            "prefect.orchestration": "client",
        },
        "related": [
            {
                "prefect.resource.id": f"prefect.flow-run.{run_id}",
                "prefect.resource.role": "flow-run",
            }
        ],
        "payload": {
            "intended": {"from": "PENDING", "to": "RUNNING"},
            "initial_state": {"type": "PENDING", "name": "Pending", "message": ""},
            "validated_state": state,
            "task_run": {
                "name": "infer",
                "task_key": "infer",
                "dynamic_key": str(uuid4()),
                "run_count": 1,
                **task_run,
            },
        },
    }
