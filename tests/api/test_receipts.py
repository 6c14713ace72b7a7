"""A receipt is signed once its video was looked at, and never for another video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from stillreel.cli import app
from stillreel.keys import SIGNED_RECEIPT, output_key
from stillreel.signed_receipt import open_envelope, read_public_key
from stillreel.storage import LocalStorage
from tests.api.conftest import KEY, Api


def storage_of(api: Api) -> LocalStorage:
    storage = api.app.state.services.storage
    assert isinstance(storage, LocalStorage)
    return storage


def signed(api: Api, job_id: str) -> dict[str, Any]:
    """What the API's key has signed."""
    key = read_public_key(httpx.get(f"{api.url}/api/v1/receipt-key", trust_env=False).text)
    answer = api.client.get(f"/api/v1/jobs/{job_id}/receipt")
    assert answer.status_code == 200, answer.text
    return open_envelope(answer.json(), key)


def test_a_receipt_is_signed_and_verifies_and_a_changed_video_gets_none(
    api: Api, inference_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = api.submit()["job_id"]
    assert api.client.get(f"/api/v1/jobs/{job_id}/receipt").status_code == 409, "it has not ended"
    assert api.execute(job_id).is_completed()
    storage = storage_of(api)

    said = signed(api, job_id)
    assert said["receipt"] == json.loads(storage.get_bytes(output_key(job_id, "receipt.json")))
    assert signed(api, job_id) == said, "it is signed once"

    path = tmp_path / "video.mp4"
    storage.get_file(output_key(job_id, "output.mp4"), path)
    monkeypatch.setenv("STILLREEL_API_URL", api.url)
    monkeypatch.setenv("STILLREEL_API_KEY", KEY)
    done = CliRunner().invoke(app, ["verify", str(path), "--json"])
    assert json.loads(done.stdout)["verified"] == {"signature": True, "video": True}

    kept = output_key(job_id, SIGNED_RECEIPT)
    storage.put_bytes(kept, b'{"payload": "forged"}', content_type="application/json")
    assert signed(api, job_id)["receipt"] == said["receipt"], "what a host wrote there is replaced"

    storage.delete(kept)
    storage.put_bytes(output_key(job_id, "output.mp4"), b"another", content_type="video/mp4")
    answer = api.client.get(f"/api/v1/jobs/{job_id}/receipt")
    assert (answer.status_code, answer.json()["code"]) == (409, "video_changed")
    assert storage.head(kept) is None


def test_receipts_of_others_are_not_there(api: Api) -> None:
    missing = "/api/v1/jobs/job_00000000000000000000000000000000/receipt"
    assert api.client.get(missing).status_code == 404
    assert httpx.get(f"{api.url}/api/v1/jobs/job_1/receipt", trust_env=False).status_code == 401
