"""With Prefect away every call is answered within 5 s, however many wait and whenever they came."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.api.conftest import SMALL, StartApi
from tests.api.outside import Door, assert_problem, assert_serves

LONGEST_SECONDS = 6.0
"""5 s, which a client is promised, and what a busy machine takes."""
APART_SECONDS = 0.4


def test_calls_that_come_one_after_another_do_not_wait_for_each_other(
    door: Door, start_api: StartApi
) -> None:
    api = start_api()
    jobs = [api.submit()["job_id"] for _ in range(3)]
    door.shut()
    api.forget()
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/api/v1/generate", SMALL | {"prompt": "x"}),
        ("GET", f"/api/v1/jobs/{jobs[0]}", None),
        ("GET", "/api/v1/jobs", None),
        ("POST", "/api/v1/presign/upload", {"content_type": "image/png", "job_id": jobs[1]}),
        ("POST", f"/api/v1/jobs/{jobs[2]}/cancel", None),
    ]

    def send(n: int) -> tuple[httpx.Response, float]:
        time.sleep(n * APART_SECONDS)  # the distance of arrivals is what is tried here
        method, path, body = calls[n % len(calls)]
        started = time.monotonic()
        told = api.client.request(method, path, json=body, timeout=30)
        return told, time.monotonic() - started

    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(send, range(25)))
    for n, (told, seconds) in enumerate(answers):
        assert assert_problem(told, 503)["code"] == "prefect_unavailable"
        assert int(told.headers["Retry-After"]) > 0
        assert seconds < LONGEST_SECONDS, (calls[n % len(calls)], seconds)
    door.open()
    assert_serves(api)
