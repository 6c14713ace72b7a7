"""`stillreel up` as a real process tree on loopback, with a home and a port of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Thread
from typing import Any
from uuid import uuid4

import httpx
import psutil
import stamina

START_SECONDS, STOP_SECONDS, RUN_SECONDS = 600.0, 120.0, 120.0
FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
DEPLOYMENT = "preview-local"
KEY = "the-first-owners-key"

logging.getLogger("stamina").setLevel(logging.ERROR)  # a poll is not worth a warning


class Stack:
    """A running `stillreel up`: its Prefect API and its own (`shim`), its home, log, processes."""

    def __init__(self, home: Path, port: int, env: Mapping[str, str]) -> None:
        self.home = home
        self.url = f"http://127.0.0.1:{port}"
        self.api = httpx.Client(
            base_url=f"{self.url}/api", transport=_Patient(), timeout=30, trust_env=False
        )
        self.shim_port = free_port()
        self.shim_url = f"http://127.0.0.1:{self.shim_port}"
        self.shim = httpx.Client(
            base_url=self.shim_url,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
            trust_env=False,
        )
        self.killed = False
        self._lines: list[str] = []
        self._ended = False
        self._changed = Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stillreel.cli", "up"],
            env=env_of(home)
            | {"STILLREEL_PREFECT_PORT": str(port), "STILLREEL_API_PORT": str(self.shim_port)}
            | {"STILLREEL_API_KEY": KEY}
            | dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = Thread(target=self._read)
        self._reader.start()

    @property
    def log(self) -> str:
        """What it has printed so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for_log(self, text: str, *, timeout: float = RUN_SECONDS) -> None:
        """Return when `text` stands in the log; AssertionError when it ends or takes too long."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._has(text), timeout)
            found = self._has(text)
        assert found, f"{text!r} did not appear in the log:\n{self.log}"

    def deployment_id(self, name: str = DEPLOYMENT) -> str:
        """The id of a deployment of the flow `generate-video`."""
        return self._json("GET", f"/deployments/name/generate-video/{name}")["id"]

    def submit(
        self,
        parameters: Mapping[str, Any],
        key: str | None = None,
        *,
        deployment: str = DEPLOYMENT,
    ) -> str:
        """The id of the flow run that this idempotency key makes; without one, a new run."""
        body = {"parameters": dict(parameters), "idempotency_key": key or uuid4().hex}
        path = f"/deployments/{self.deployment_id(deployment)}/create_flow_run"
        return self._json("POST", path, body)["id"]

    def run(self, run_id: str) -> dict[str, Any]:
        """The flow run as the API tells it now."""
        return self._json("GET", f"/flow_runs/{run_id}")

    def wait(
        self, run_id: str, until: Collection[str] = FINAL, *, timeout: float = RUN_SECONDS
    ) -> dict[str, Any]:
        """The flow run, once its state type is one of `until`; AssertionError on timeout."""
        run: dict[str, Any] = {}
        try:
            for attempt in stamina.retry_context(
                on=_NotYet, attempts=None, timeout=timeout, wait_initial=0.1, wait_max=0.5
            ):
                with attempt:
                    run = self.run(run_id)
                    if run["state_type"] not in until:
                        raise _NotYet
        except _NotYet:
            raise AssertionError(
                f"run {run_id} is {run['state_type']} after {timeout:g} s, not in {set(until)}; "
                f"log:\n{self.log}"
            ) from None
        return run

    def wait_for_end(self, run_id: str, *, timeout: float = 300.0) -> dict[str, Any]:
        """The flow run, once its job has ended for callers: a crash that is retried is no end."""
        job_id = f"job_{run_id.replace('-', '')}"
        status = ""
        try:
            for attempt in stamina.retry_context(
                on=(_NotYet, httpx.TransportError),
                attempts=None,
                timeout=timeout,
                wait_initial=0.2,
                wait_max=0.5,
            ):
                with attempt:
                    status = self.shim.get(f"/api/v1/jobs/{job_id}").json().get("status", "")
                    if status not in ("completed", "failed", "cancelled", "expired"):
                        raise _NotYet
        except _NotYet:
            raise AssertionError(
                f"job {job_id} is {status!r} after {timeout:g} s; log:\n{self.log}"
            ) from None
        return self.wait(run_id)  # its process tells Prefect a moment after the job has ended

    def task_runs(self, run_id: str) -> list[dict[str, Any]]:
        """The task runs of a flow run, in the order of their start."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return self._json("POST", "/task_runs/filter", body)

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The latest artifacts of a flow run by the first word of their keys."""
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        found = self._json("POST", "/artifacts/latest/filter", body)
        return {item["key"].partition("-")[0]: {**item, "id": item["latest_id"]} for item in found}

    def processes(self, *words: str) -> list[psutil.Process]:
        """The living processes of this stack whose command line holds all of `words`."""
        return [
            process
            for process in _processes_of(self.home)
            if all(word in " ".join(_command(process)) for word in words)
        ]

    def kill(self) -> None:
        """End `stillreel up` itself by SIGKILL; its children have to notice on their own."""
        self.killed = True
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End it by SIGTERM, and assert that it ends with 0 and leaves no process behind."""
        self.api.close()
        self.shim.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        # After a kill -9 the kernel ends the children, so they may need a moment.
        left = _processes_of(self.home)
        if self.killed:
            _, left = psutil.wait_procs(left, timeout=STOP_SECONDS)
        commands = [" ".join(_command(process)) for process in left]
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=10)
        self._reader.join(STOP_SECONDS)
        assert commands == [], f"left behind: {commands}; log:\n{self.log}"
        assert self.killed or code == 0, f"ended with {code}; log:\n{self.log}"

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        response = self.api.request(method, path, json=body)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json()

    def _has(self, text: str) -> bool:
        return any(text in line for line in self._lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            for line in pipe:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextmanager
def running_stack(
    *, home: Path | None = None, port: int | None = None, **env: str
) -> Iterator[Stack]:
    """A stack that is ready, and stopped at the end; `env` is added to its environment.

    Without a `home` it has a temporary one. The path is short: it holds a unix socket.
    """
    with tempfile.TemporaryDirectory(prefix="sr-") as temporary:
        stack = Stack(home or Path(temporary), port or free_port(), env)
        try:
            stack.wait_for_log("ready: ", timeout=START_SECONDS)
            yield stack
        finally:
            stack.stop()


def env_of(home: Path) -> dict[str, str]:
    """This process's environment with another home, and without the tests' own Prefect."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("STILLREEL_", "PREFECT_"))}
    return kept | {"STILLREEL_HOME": str(home)}


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _NotYet(Exception):
    """What is waited for is not there yet."""


class _Busy(Exception):
    """SQLite is locked; Prefect answers 503."""


class _Patient(httpx.HTTPTransport):
    """Tries again when SQLite makes Prefect answer 503 or drop the connection."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for attempt in stamina.retry_context(
            on=(_Busy, httpx.TransportError), attempts=None, timeout=60, wait_max=2.0
        ):
            with attempt:
                response = super().handle_request(request)
                if response.status_code == 503:
                    response.close()
                    raise _Busy(request.url.path)
                return response
        raise AssertionError("stamina gives an attempt or raises")


def _processes_of(home: Path) -> list[psutil.Process]:
    """The processes that were started with this home, whoever their parent is now."""
    return [process for process in psutil.process_iter() if _home_of(process) == str(home)]


def _home_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("STILLREEL_HOME", "")
    except (psutil.Error, OSError):  # ended, a zombie, or not ours
        return ""


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
