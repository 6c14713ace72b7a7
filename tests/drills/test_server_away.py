"""The Prefect server is away for a while: inference goes on, and no order is half-accepted."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from stillreel.inference.entry import Kind
from tests.drills.test_kills import inferences_finished, wait_for_entry
from tests.stack import Stack

LATER = 900.0
INFERENCE = {"prompt": "zoom in", "duration": 5, "width": 160, "height": 96}

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        pytest.param(25, 80, id="shorter than the inference"),
        pytest.param(120, 60, id="longer than the inference"),
    ],
)
def test_inference_goes_on_while_the_prefect_server_is_away(
    stack: Stack, seconds: int, steps: int
) -> None:
    run_id = stack.submit({**INFERENCE, "steps": steps})
    before = wait_for_entry(stack, Kind.INFERENCE, run_id, lambda entry: entry.step >= 1)
    key, runs = uuid4().hex, all_runs(stack)
    with server_away(stack):
        back_at = monotonic() + seconds
        while monotonic() < back_at:
            assert_refused(order(stack, key))
            Event().wait(2)  # the length of the outage is what is tried here
        after = wait_for_entry(
            stack, Kind.INFERENCE, run_id, lambda entry: entry.step > before.step
        )
        assert after.problem is None

    stack.wait_for_end(run_id, timeout=LATER)

    job = job_of(stack, job_id_of(run_id))
    assert (job["status"], job["attempt"]) == ("completed", 1)
    assert stack.wait(run_id, timeout=LATER)["state_type"] == "COMPLETED"
    assert inferences_finished(stack, run_id) == 1
    assert all_runs(stack) == runs, "none of the orders was half-accepted"
    answers = [order(stack, key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    [job_id] = {answer.json()["job_id"] for answer in answers}
    assert stack.shim.post(f"/api/v1/jobs/{job_id}/cancel").is_success


# --- helpers, in the order of their use ---------------------------------------------------------


@contextmanager
def server_away(stack: Stack) -> Iterator[None]:
    """The Prefect server is killed, and cannot start again while its port is taken.

    Who only binds a port does not take it: Prefect looks with SO_REUSEADDR, and listens.
    """
    port = httpx.URL(stack.url).port
    assert port
    servers = [*stack.processes("prefect", "server"), *stack.processes("prefect.server")]
    for process in servers:
        process.kill()
    psutil.wait_procs(servers, timeout=30)
    with socket.create_server(("127.0.0.1", port)) as taken:
        thread = Thread(target=hang_up, args=(taken,))
        thread.start()
        try:
            yield
        finally:
            taken.shutdown(socket.SHUT_RDWR)
            thread.join()


def hang_up(taken: socket.socket) -> None:
    """Break off each connection at once, until the socket is shut down."""
    while True:
        try:
            connection, _ = taken.accept()
        except OSError:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def order(stack: Stack, key: str) -> httpx.Response:
    body = {"prompt": "zoom in", "duration": 0.5, "width": 160, "height": 96, "model": "preview"}
    headers = {"Idempotency-Key": key}
    return stack.shim.post("/api/v1/generate", json=body, headers=headers)


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, (answer.status_code, answer.text)
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json()["code"] == "prefect_unavailable"


def job_id_of(run_id: str) -> str:
    return f"job_{run_id.replace('-', '')}"


def all_runs(stack: Stack) -> int:
    """How many videos Prefect knows of."""
    body = {"flows": {"name": {"any_": ["generate-video"]}}}
    return stack.api.post("/flow_runs/count", json=body).json()


def job_of(stack: Stack, job_id: str) -> dict[str, Any]:
    answer = stack.shim.get(f"/api/v1/jobs/{job_id}")
    assert answer.is_success, answer.text
    return answer.json()
