"""The whole service on one machine, with a storage that checks signatures: as clients see it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
import stamina
from PIL import Image

from tests.s3 import Bucket
from tests.stack import Stack, running_stack

SMALL: dict[str, Any] = {"width": 128, "height": 72, "duration": 0.5}


class NotYet(Exception):
    """The job has not ended, or its files are still there."""


@pytest.fixture(scope="module")
def service(real_bucket: Bucket) -> Iterator[Stack]:
    with running_stack(**real_bucket.env) as stack:
        yield stack


@pytest.fixture
def client(service: Stack) -> httpx.Client:
    return service.shim


def jpeg() -> bytes:
    buffer = BytesIO()
    Image.linear_gradient("L").resize((160, 90)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def ended(client: httpx.Client, path: str) -> dict[str, Any]:
    """What stands at `path` once its status is a final one."""
    for attempt in stamina.retry_context(on=NotYet, attempts=None, timeout=120, wait_max=0.5):
        with attempt:
            view = client.get(path).raise_for_status().json()
            if view["status"] in ("queued", "processing"):
                raise NotYet
            return view
    raise AssertionError("stamina gives an attempt or raises")


def gone(bucket: Bucket, job_id: str) -> None:
    """Wait until nothing in the bucket is named after the job."""
    for attempt in stamina.retry_context(on=NotYet, attempts=None, timeout=120, wait_max=0.5):
        with attempt:
            if any(job_id in key for key in sorted(bucket.keys())):
                raise NotYet


def test_an_upload_becomes_a_video_by_signed_urls_only(
    client: httpx.Client, real_bucket: Bucket
) -> None:
    image = jpeg()
    asked = {"content_type": "image/jpeg", "content_length": len(image)}
    target = client.post("/api/v1/presign/upload", json=asked).raise_for_status().json()
    url = target["upload_url"]
    wrong_type = httpx.put(url, content=image, headers={"Content-Type": "text/html"})
    too_long = httpx.put(url, content=image * 2, headers={"Content-Type": "image/jpeg"})
    assert (wrong_type.status_code, too_long.status_code) == (403, 403)
    order = {**SMALL, "prompt": "zoom in", "job_id": target["job_id"]}
    early = client.post("/api/v1/generate", json=order)
    assert early.status_code == 422, "nothing has been uploaded"
    httpx.put(url, content=image, headers={"Content-Type": "image/jpeg"}).raise_for_status()
    made = client.post("/api/v1/generate", json=order).raise_for_status().json()
    assert made["job_id"] == target["job_id"]
    job = ended(client, f"/api/v1/jobs/{made['job_id']}")
    assert (job["status"], job["progress"]) == ("completed", 100)
    video = httpx.get(job["result_url"]).raise_for_status()
    assert video.content[4:8] == b"ftyp"
    assert httpx.get(job["result_url"].partition("?")[0]).status_code == 403
    target = client.get(f"/api/v1/presign/download/{job['job_id']}").raise_for_status().json()
    assert target["expires_in"] == 86400
    assert httpx.get(target["download_url"]).content == video.content
    assert client.post("/api/v1/generate", json=order).status_code == 409
    # 202 while the process that made it has not ended: then it is deleted as soon as it has.
    assert client.delete(f"/api/v1/jobs/{job['job_id']}").status_code in (202, 204)
    gone(real_bucket, job["job_id"])
    assert httpx.get(job["result_url"]).status_code == 404


def test_the_second_documents_client_needs_one_machine_only(client: httpx.Client) -> None:
    body = {**SMALL, "prompt": "slow zoom out", "image_base64": b64encode(jpeg()).decode()}
    made = client.post("/generate", json=body).raise_for_status().json()
    assert made["status"] == "queued"
    assert isinstance(made["position"], int)
    done = ended(client, f"/status/{made['job_id']}")
    assert (done["status"], done["error"]) == ("completed", None)
    assert httpx.get(done["video_url"]).raise_for_status().content[4:8] == b"ftyp"
    assert "X-Amz-Expires=3600" in done["video_url"]


def test_health_knows_the_host_of_this_machine(client: httpx.Client) -> None:
    found: dict[str, Any] = {}
    for attempt in stamina.retry_context(on=NotYet, attempts=None, timeout=90, wait_max=1.0):
        with attempt:
            found = client.get("/health", headers={"Authorization": ""}).raise_for_status().json()
            if not found["model_loaded"]:
                raise NotYet
    assert (found["api"], found["database"], found["redis"]) == ("ok", "ok", "not_used")


def test_a_cancelled_job_frees_the_line(client: httpx.Client) -> None:
    made = client.post("/api/v1/generate", json={**SMALL, "prompt": "zoom", "duration": 20})
    job_id = made.raise_for_status().json()["job_id"]
    client.post(f"/api/v1/jobs/{job_id}/cancel").raise_for_status()
    client.post(f"/api/v1/jobs/{job_id}/cancel").raise_for_status()
    assert ended(client, f"/api/v1/jobs/{job_id}")["status"] == "cancelled"
    assert ended(client, f"/status/{job_id}")["status"] == "failed"
