"""The first design document, as a client sees it who has nothing else.

Paths, headers, fields and words are those of the document; small sizes only make it quick.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from queue import Queue
from typing import Any

import av
import httpx
import pytest
from PIL import Image

from tests.api.conftest import KEY, Api, StartApi, png
from tests.api.outside import WAIT_SECONDS, image_server, work_with
from tests.receiver import Exchange, Receiver, answer

SECRET = "your-webhook-secret"
NO_KEY = {"Authorization": ""}
GUARDED = [
    ("POST", "/api/v1/generate"),
    ("GET", "/api/v1/jobs/job_abc123"),
    ("POST", "/api/v1/presign/upload"),
    ("GET", "/api/v1/presign/download/job_abc123"),
    ("GET", "/api/v1/queue/stats"),
]


def is_time(text: str) -> bool:
    return text.endswith("Z") and datetime.fromisoformat(text).tzinfo is not None


def get_queue_size(url: str) -> int:
    """What the document's `batch_processor.py` does."""
    resp = httpx.get(
        f"{url}/api/v1/queue/stats", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False
    )
    return resp.json()["pending_jobs"]


def plays(url: str, path: Path) -> bool:
    """Whether a player that has no key gets a video from here."""
    found = httpx.get(url, timeout=60, trust_env=False)
    assert found.status_code == 200, found.text
    path.write_bytes(found.content)
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0)) > 1


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """`https://example.com/image.jpg`, as far as it goes without a network."""
    with image_server(png()) as (url, pair):
        yield url, pair


# --- POST /api/v1/generate, GET /api/v1/jobs/:id ----------------------------------------------


def test_the_documents_order_is_taken(start_api: StartApi, source: tuple[str, str]) -> None:
    url, pair = source
    api = start_api(STILLREEL_ALLOW_ADDRESSES=pair)
    order = {
        "image_url": url,
        "prompt": "A cinematic video of the scene",
        "duration": 5,
        "webhook_url": url,  # any address that is allowed; nothing is told yet
    }
    made = api.client.post("/api/v1/generate", json=order)
    assert made.is_success
    assert made.headers["content-type"].startswith("application/json")
    assert made.json()["status"] == "queued"
    assert isinstance(made.json()["job_id"], str)
    assert is_time(made.json()["created_at"])
    job = api.client.get(f"/api/v1/jobs/{made.json()['job_id']}")
    assert job.status_code == 200
    told = job.json()
    assert told["job_id"] == made.json()["job_id"]
    assert told["status"] == "queued"
    assert told["progress"] == 0
    assert told["created_at"] == made.json()["created_at"]
    assert not told.get("result_url")
    assert not told.get("completed_at")


def test_a_job_with_an_image_address_completes(
    start_api: StartApi,
    source: tuple[str, str],
    inference_server: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, pair = source
    api = start_api(STILLREEL_ALLOW_ADDRESSES=pair)
    order = {"image_url": url, "prompt": "A cinematic video of the scene", "duration": 1}
    job_id = api.client.post("/api/v1/generate", json=order).json()["job_id"]
    with work_with(monkeypatch, STILLREEL_ALLOW_ADDRESSES=pair):
        assert api.execute(job_id).is_completed()
    job = api.job(job_id)
    assert {"job_id": job_id, "status": "completed", "progress": 100}.items() <= job.items()
    assert is_time(job["created_at"])
    assert is_time(job["completed_at"])
    assert job["created_at"] < job["completed_at"]
    assert plays(job["result_url"], tmp_path / "video.mp4")

    download = api.client.get(f"/api/v1/presign/download/{job_id}")
    assert download.status_code == 200
    assert download.json()["expires_in"] == 86400
    assert plays(download.json()["download_url"], tmp_path / "again.mp4")


def test_all_but_the_image_may_be_left_out(start_api: StartApi, source: tuple[str, str]) -> None:
    url, pair = source
    api = start_api(STILLREEL_ALLOW_ADDRESSES=pair)
    made = api.client.post("/api/v1/generate", json={"image_url": url})
    assert made.is_success
    assert made.json()["status"] == "queued"


# --- POST /api/v1/presign/upload --------------------------------------------------------------


def upload(api: Api, content: bytes, content_type: str, **body: Any) -> dict[str, Any]:
    asked = api.client.post("/api/v1/presign/upload", json=body | {"content_type": content_type})
    assert asked.status_code == 200, asked.text
    assert asked.json()["expires_in"] == 3600
    put = httpx.put(
        asked.json()["upload_url"],
        content=content,
        headers={"Content-Type": content_type},
        trust_env=False,
    )
    assert put.is_success, put.text
    return asked.json()


def jpeg_of(colour: str) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    Image.new("RGB", (128, 72), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def first_pixel(url: str, path: Path) -> tuple[int, int, int]:
    path.write_bytes(httpx.get(url, trust_env=False).content)
    with av.open(str(path)) as video:
        image = next(video.decode(video=0)).to_image()
        red, green, blue = image.getpixel((image.width // 2, image.height // 2))
        return red, green, blue


def test_an_image_uploaded_for_a_job_is_the_one_that_moves(
    api: Api, inference_server: None, tmp_path: Path
) -> None:
    """As the document has it: the job is there, and its image is put beside it."""
    job_id = api.submit()["job_id"]
    upload(api, jpeg_of("red"), "image/jpeg", job_id=job_id)
    assert api.execute(job_id).is_completed()
    red, green, blue = first_pixel(api.job(job_id)["result_url"], tmp_path / "red.mp4")
    assert red > 180
    assert max(green, blue) < 70


def test_an_image_uploaded_before_the_job_needs_no_address(
    api: Api, inference_server: None, tmp_path: Path
) -> None:
    job_id = upload(api, jpeg_of("blue"), "image/jpeg")["job_id"]
    made = api.submit(job_id=job_id)
    assert made["job_id"] == job_id
    assert api.execute(job_id).is_completed()
    red, green, blue = first_pixel(api.job(job_id)["result_url"], tmp_path / "blue.mp4")
    assert blue > 180
    assert max(red, green) < 70


# --- POST /webhook/complete -------------------------------------------------------------------


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_nobody_outside_can_say_how_a_job_ended(start_api: StartApi, status: str) -> None:
    """The document believes who knows the secret; here state is believed, and nobody."""
    api = start_api(WEBHOOK_SECRET=SECRET)
    job_id = api.submit()["job_id"]
    body = {
        "job_id": job_id,
        "status": status,
        "video_url": "https://r2.example.com/outputs/other/output.mp4",
        "error": "forged",
    }
    headers = {"X-Webhook-Secret": SECRET, "Authorization": f"Bearer {KEY}"}
    told = api.client.post("/webhook/complete", json=body, headers=headers)
    assert told.status_code in (200, 202, 204, 401, 403), told.text
    api.forget()
    job = api.job(job_id)
    assert (job["status"], job["progress"]) == ("queued", 0)
    assert not job["result_url"]
    assert not job["error"]


# --- GET /health, GET /api/v1/queue/stats -----------------------------------------------------


def test_health_is_open_and_has_the_documents_fields(api: Api) -> None:
    health = httpx.get(f"{api.url}/health", trust_env=False)
    assert health.status_code == 200
    told = health.json()
    assert told["api"] == "ok"
    assert told["redis"] == "not_used"
    assert told["database"] == "ok"
    assert type(told["queue"]["pending"]) is int
    assert type(told["queue"]["processing"]) is int
    for secret in (KEY, str(api.settings.host.home), "127.0.0.1"):
        assert secret not in health.text


def test_the_queue_grows_with_each_job(api: Api) -> None:
    def pending() -> int:
        return httpx.get(f"{api.url}/health", trust_env=False).json()["queue"]["pending"]

    before = get_queue_size(api.url), pending()
    api.submit()
    api.submit()
    assert (get_queue_size(api.url), pending()) == (before[0] + 2, before[1] + 2)


# --- authentication ---------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("header", [None, "", "Basic abc", KEY], ids=repr)
def test_no_bearer_key_is_told_as_in_the_document(
    api: Api, method: str, path: str, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    told = httpx.request(method, api.url + path, headers=headers, json={}, trust_env=False)
    assert told.status_code == 401
    assert told.json()["error"] == "Missing authorization header"


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("headers", [{"Authorization": "Bearer no"}, {"X-API-Key": "no"}], ids=str)
def test_a_wrong_key_is_told_as_in_the_document(
    api: Api, method: str, path: str, headers: dict[str, str]
) -> None:
    told = httpx.request(method, api.url + path, headers=headers, json={}, trust_env=False)
    assert told.status_code == 401
    assert told.json()["error"] == "Invalid API key"


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}])
def test_both_headers_open_every_door(api: Api, headers: dict[str, str]) -> None:
    for method, path in GUARDED:
        told = httpx.request(method, api.url + path, headers=headers, json={}, trust_env=False)
        assert told.status_code in (200, 404, 422), (method, path, told.text)


# --- Convex -----------------------------------------------------------------------------------


class ConvexApp:
    """The document's Convex side: its `submitToApi` action and its `httpAction`, in Python."""

    def __init__(self) -> None:
        self.rows: Queue[dict[str, Any]] = Queue()
        self.receiver = Receiver((self._http_action,))

    @property
    def webhook_url(self) -> str:
        return f"{self.receiver.url}api/webhooks/video-complete"

    def submit_to_api(self, api_url: str, image_url: str) -> dict[str, Any]:
        response = httpx.post(
            f"{api_url}/api/v1/generate",
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
            content=json.dumps(
                {
                    "image_url": image_url,
                    "prompt": "Generate a smooth video",
                    "duration": 1,
                    "webhook_url": self.webhook_url,
                }
            ),
            timeout=60,
            trust_env=False,
        )
        if not response.is_success:
            return {"status": "failed", "errorMessage": response.text}
        return {"status": "queued", "externalJobId": response.json()["job_id"]}

    def _http_action(self, exchange: Exchange) -> None:
        request = self.receiver.requests[-1]
        if request.headers.get("x-webhook-secret") != SECRET:
            answer(401, b"Unauthorized")(exchange)
            return
        body = json.loads(request.body)
        if body["status"] == "completed":
            self.rows.put({"externalJobId": body["job_id"], "videoUrl": body["video_url"]})
        elif body["status"] == "failed":
            self.rows.put({"externalJobId": body["job_id"], "errorMessage": body["error"]})
        answer(200, b"OK")(exchange)


@contextmanager
def convex() -> Iterator[ConvexApp]:
    app = ConvexApp()
    with app.receiver:
        yield app


def convex_settings(app: ConvexApp, pair: str) -> dict[str, str]:
    return {
        "WEBHOOK_SECRET": SECRET,
        "STILLREEL_WEBHOOK_PLAIN_URLS": app.webhook_url,
        "STILLREEL_ALLOW_ADDRESSES": pair,
    }


def test_the_convex_app_gets_its_video(
    start_api: StartApi,
    source: tuple[str, str],
    inference_server: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, pair = source
    with convex() as app:
        api = start_api(**convex_settings(app, pair))
        row = app.submit_to_api(api.url, url)
        assert row["status"] == "queued", row
        with work_with(monkeypatch, STILLREEL_ALLOW_ADDRESSES=pair, STILLREEL_API_URL=api.url):
            assert api.execute(row["externalJobId"]).is_completed()
        told = app.rows.get(timeout=WAIT_SECONDS)
    assert told["externalJobId"] == row["externalJobId"]
    assert plays(told["videoUrl"], tmp_path / "video.mp4")


def test_the_convex_app_is_told_of_a_failure(
    start_api: StartApi, source: tuple[str, str], inference_server: None
) -> None:
    """A job that is cancelled is one that failed, for the document knows no other word."""
    url, pair = source
    with convex() as app:
        api = start_api(**convex_settings(app, pair))
        row = app.submit_to_api(api.url, url)
        assert api.client.post(f"/api/v1/jobs/{row['externalJobId']}/cancel").is_success
        told = app.rows.get(timeout=WAIT_SECONDS)
    assert told["externalJobId"] == row["externalJobId"]
    assert isinstance(told["errorMessage"], str)
    assert told["errorMessage"]


def test_the_convex_app_keeps_the_text_of_a_refusal(api: Api) -> None:
    with convex() as app:
        row = app.submit_to_api(api.url, "file:///etc/passwd")
    assert row["status"] == "failed"
    assert "http" in json.loads(row["errorMessage"])["error"]
