"""The apps of the Convex package in the edge runtime, and the real API that they order from."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.api.background import eventually
from tests.api.conftest import (  # noqa: F401 - fixtures
    KEY,
    api,
    control,
    inference_server,
    prefect_api,
    start_api,
)
from tests.api.control import Control
from tests.convex.openapi import PACKAGE
from tests.receiver import Answer, Exchange, Receiver, Recorded, answer
from tests.stack import free_port

_PASSED = ("webhook-", "content-type", "x-webhook-secret")
SERVER = PACKAGE / "testing" / "loopback" / "server.js"


@dataclass
class Deployment:
    """An app on loopback, called as a browser calls a Convex deployment."""

    url: str
    client: httpx.Client

    def query(self, name: str, **args: Any) -> Any:
        return self._call("query", name, args)

    def mutation(self, name: str, **args: Any) -> Any:
        return self._call("mutation", name, args)

    def action(self, name: str, **args: Any) -> Any:
        return self._call("action", name, args)

    def order(self, **order: Any) -> str:
        """The id of a small job, as soon as the API has taken it."""
        small = {"width": 128, "height": 72, "duration": 0.5, "seed": 7, "prompt": "slow zoom in"}
        job_id = self.mutation("videos:create", **small | order)
        self.wait(job_id, "queued")
        return job_id

    def job(self, job_id: str, module: str = "videos") -> dict[str, Any]:
        return self.query(f"{module}:get", jobId=job_id)

    def wait(self, job_id: str, status: str, module: str = "videos") -> dict[str, Any]:
        """The job, once it is as wanted."""
        for attempt in eventually():
            with attempt:
                job = self.job(job_id, module)
                assert job["status"] == status, job
        return job

    def _call(self, kind: str, name: str, args: Mapping[str, Any]) -> Any:
        body = {"path": name, "format": "convex_encoded_json", "args": [dict(args)]}
        told = self.client.post(f"/api/{kind}", json=body).raise_for_status().json()
        assert told["status"] == "success", told
        return told["value"]


@dataclass
class Relay:
    """Between the API and a deployment: passes webhooks on, and keeps what both said."""

    receiver: Receiver
    path: str
    to: str = ""
    first: list[Answer] = field(default_factory=list[Answer])
    """Answers given before anything is passed on."""
    outcomes: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """What the deployment answered: the status and its word for it."""

    @property
    def address(self) -> str:
        """Where the API sends its webhooks to."""
        return f"{self.receiver.url}{self.path}"

    @property
    def last(self) -> Recorded:
        """The last webhook as the API sent it."""
        return self.receiver.requests[-1]

    def act(self, exchange: Exchange) -> None:
        if self.first:
            self.first.pop(0)(exchange)
            return
        status, outcome = self.send(self.last)
        self.outcomes.append((status, outcome))
        answer(status)(exchange)

    def send(self, request: Recorded, body: bytes = b"", **headers: str) -> tuple[int, str]:
        """What the deployment says to this webhook, or to one with another body and headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {k: v for k, v in request.headers.items() if k.startswith(_PASSED)}
        told = httpx.post(
            f"{self.to}{request.path}",
            content=body or request.body,
            headers=kept | named,
            timeout=30,
            trust_env=False,
        )
        is_json = told.headers.get("content-type") == "application/json"
        return told.status_code, told.json()["outcome"] if is_json else told.text


Deploy = Callable[..., Deployment]


@pytest.fixture(scope="session")
def node(require: Callable[[str, bool], None]) -> str:
    """Node, with the package's dependencies installed."""
    found = shutil.which("node") or ""
    require("Node 20 or later (on the PATH)", bool(found))
    require("the package's dependencies (npm install in convex/)", _has_modules())
    return found


@pytest.fixture(scope="module")
def deploy(node: str) -> Iterator[Deploy]:
    """`deploy("example", VIDEO_API_URL=...)`: a fresh deployment of an app in this environment."""
    with ExitStack() as stack:
        yield lambda app, **env: stack.enter_context(deployment(node, app, env=env))


@contextmanager
def deployment(
    node: str, app: str, folder: Path | None = None, *, port: int = 0, env: Mapping[str, str]
) -> Iterator[Deployment]:
    """An app of testing/loopback in the edge runtime; with `folder`, its built page too."""
    port = port or free_port()
    command = [node, str(SERVER), str(port), app, *([str(folder)] if folder else [])]
    process = subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines: list[str] = []
    assert process.stdout is not None
    try:
        with process.stdout as pipe:
            for line in pipe:
                lines.append(line.decode())
                if lines[-1].startswith("ready: "):
                    break
            else:
                raise AssertionError("the deployment did not start:\n" + "".join(lines))
            rest = Thread(target=lambda: lines.extend(line.decode() for line in pipe))
            rest.start()
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield Deployment(url, client)
            process.terminate()
            process.wait(10)
            rest.join(10)
    finally:
        process.kill()
        process.wait()


@contextmanager
def relayed(
    control: Control,  # noqa: F811 - no fixture here
    path: str = "video/webhook",
    *,
    plain: bool = False,
) -> Iterator[Relay]:
    """A registered receiver of the API's that passes webhooks on."""
    with Receiver() as receiver:
        relay = Relay(receiver, path)
        receiver.answers = (relay.act,)
        control.register(relay.address, plain=plain)
        yield relay
        control.unregister(relay.address)


def _has_modules() -> bool:
    return (PACKAGE / "node_modules" / "convex").is_dir()
