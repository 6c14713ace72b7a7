"""Audit: each act is in the log at once, and in Prefect's events as far as it answers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from stillreel.audit import audit, auditing, event_of
from stillreel.prefect_api import PrefectApi
from tests.stack import free_port

NOW = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("action", "facts", "event", "resource"),
    [
        (
            "cancel",
            {"job_id": "j", "owner": "o"},
            "stillreel.job.cancel",
            "stillreel.job.j",
        ),
        ("rent", {"host": "h1"}, "stillreel.host.rent", "stillreel.host.h1"),
        ("owner.created", {"owner": "o"}, "stillreel.owner.created", "stillreel.owner.o"),
        ("start", {}, "stillreel.service.start", "stillreel.service.api"),
    ],
)
def test_an_event_names_what_was_done_to_what(
    action: str, facts: dict[str, Any], event: str, resource: str
) -> None:
    made = event_of(action, facts, at=NOW)
    assert (made["event"], made["resource"]["prefect.resource.id"]) == (event, resource)
    assert made["payload"] == facts
    json.dumps(made)


def test_values_that_are_no_json_are_written_as_text() -> None:
    made = event_of("x", {"at": NOW, "n": 1, "none": None}, at=NOW)
    assert made["payload"] == {"at": str(NOW), "n": 1, "none": None}


def test_outside_a_service_the_log_has_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "stillreel.audit"):
        audit("cancel", job_id="job_1")
    (record,) = caplog.records
    assert (record.__dict__["audit"], record.__dict__["job_id"]) == ("cancel", "job_1")


@pytest.fixture
def events() -> Iterator[tuple[str, list[str]]]:
    """A server that takes events as Prefect does, and what it got."""
    got: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.extend(event["payload"]["job_id"] for event in json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()
    thread.join()


def test_all_events_are_sent_before_the_service_ends(events: tuple[str, list[str]]) -> None:
    url, got = events

    async def run() -> None:
        api = PrefectApi(url)
        async with auditing(api):
            for n in range(500):
                audit("submit", job_id=f"job_{n}")
        await api.aclose()

    asyncio.run(run())
    assert got == [f"job_{n}" for n in range(500)]


def test_a_prefect_that_is_away_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        api = PrefectApi(f"http://127.0.0.1:{free_port()}", patience=0.1)
        async with auditing(api):
            audit("submit", job_id="job_1")
        await api.aclose()

    asyncio.run(run())
    assert "1 audit events not sent" in caplog.text
