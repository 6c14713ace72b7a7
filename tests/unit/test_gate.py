"""The gate of the drills holds the request that it is told, and lets all others through."""

from __future__ import annotations

from threading import Thread

import httpx

from tests.gate import Gate
from tests.receiver import receiver

SECONDS = 60.0


def test_one_request_is_held_until_it_is_let_go() -> None:
    with receiver() as behind, Gate(lambda: behind.port) as gate:
        held = gate.hold("POST /held")
        sent = Thread(target=post, args=(f"{gate.url}/held",))
        sent.start()
        assert held.reached.wait(SECONDS)
        assert post(f"{gate.url}/other").status_code == 200
        assert [request.path for request in behind.requests] == ["/other"]
        held.open()
        sent.join(SECONDS)
        assert [request.path for request in behind.requests] == ["/other", "/held"]
        assert gate.requests == ["POST /held", "POST /other"]


def test_a_server_that_is_away_is_away_behind_the_gate_too() -> None:
    with receiver() as behind:
        port = behind.port
    with Gate(lambda: port) as gate:
        try:
            post(gate.url)
        except httpx.TransportError:
            return
    raise AssertionError("somebody answered")


def post(url: str) -> httpx.Response:
    return httpx.post(url, json={}, trust_env=False, timeout=SECONDS)
