"""Calls that clients make: orders, uploads, and many at one instant."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx

from tests.api.conftest import SMALL, Api, png

JSON = {"Content-Type": "application/json"}
GENERATE = ("/api/v1/generate", "/generate")
ABOUT_A_JOB = [
    ("GET", "/api/v1/jobs/{}"),
    ("GET", "/status/{}"),
    ("GET", "/api/v1/presign/download/{}"),
    ("GET", "/api/v1/jobs/{}/events"),
    ("POST", "/api/v1/jobs/{}/cancel"),
    ("POST", "/api/v1/jobs/{}/retry"),
    ("POST", "/api/v1/jobs/{}/redeliver"),
    ("DELETE", "/api/v1/jobs/{}"),
]
PNG_BASE64 = base64.b64encode(png()).decode()


def order(api: Api, **values: Any) -> httpx.Response:
    """The answer to an order that is good but for these values."""
    return api.client.post("/api/v1/generate", json=SMALL | {"prompt": "a cat"} | values)


def at_once(
    api: Api, count: int, path: str, bodies: Callable[[int], Any], **headers: str
) -> list[httpx.Response]:
    """The answers to so many requests that leave at one instant."""
    barrier = Barrier(count)

    def send(n: int) -> httpx.Response:
        barrier.wait()
        return api.client.post(path, json=bodies(n), headers=headers, timeout=20)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(send, range(count)))


def cancel(api: Api, job_id: str) -> httpx.Response:
    return api.client.post(f"/api/v1/jobs/{job_id}/cancel")


def ask_upload(api: Api, **body: Any) -> dict[str, Any]:
    """Where an image may be put: `job_id`, `upload_url` and the rest."""
    told = api.client.post("/api/v1/presign/upload", json=body)
    assert told.status_code == 200, told.text
    return told.json()


def put(target: dict[str, Any], content: bytes, content_type: str = "image/png") -> httpx.Response:
    """The answer to an upload to that place."""
    return httpx.put(
        target["upload_url"],
        content=content,
        headers={"Content-Type": content_type},
        timeout=60,
        trust_env=False,
    )


def upload(api: Api, image: bytes, **body: Any) -> str:
    """The id that the image was uploaded for."""
    target = ask_upload(api, content_type="image/png", **body)
    told = put(target, image)
    assert told.is_success, told.text
    return target["job_id"]
