"""Receipts that are signed once their video was looked at, and the key to verify them with."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import APIRouter, Request, Response

from stillreel import keys
from stillreel.api.auth import Reader
from stillreel.api.jobs import json_response, own_job
from stillreel.api.problems import PROBLEMS
from stillreel.api.services import services_of
from stillreel.errors import (
    JobConflict,
    NotVerified,
    ObjectMissing,
    RequestRejected,
    VideoChanged,
)
from stillreel.job import JobStatus
from stillreel.jobs.reader import Receipt
from stillreel.signed_receipt import MEDIA_TYPE, SigningKey, open_envelope
from stillreel.storage import LocalStorage, Storage

router = APIRouter(tags=["files"], responses=PROBLEMS)

AT_ONCE = 2
"""Videos that are read at once, to see whether they are what their receipts say."""
_KEY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The key.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
_ENVELOPE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A DSSE envelope.",
        "content": {MEDIA_TYPE: {"schema": {"type": "object"}}},
    }
}


@router.get("/api/v1/receipt-key", response_class=Response, responses=_KEY)
async def receipt_key(request: Request) -> Response:
    """The public key that signed receipts are verified with; needs no API key."""
    return json_response(SigningKey(services_of(request).secret).public.to_json())


@router.get("/api/v1/jobs/{job_id}/receipt", response_class=Response, responses=_ENVELOPE)
async def signed_receipt(job_id: str, request: Request, caller: Reader) -> Response:
    """The signed receipt of a completed job, as a DSSE envelope.

    It is signed when it is first asked for, after the stored video was found to have the SHA-256
    that the receipt says, and kept beside it.
    """
    services = services_of(request)
    snapshot = await own_job(services, caller, job_id)
    if snapshot.status is not JobStatus.COMPLETED:
        raise JobConflict(f"The job is {snapshot.status}; only a completed one has a receipt.")
    receipt = await services.reader.receipt(job_id)
    if receipt is None:
        raise ObjectMissing("The receipt is not there any more.")
    key = SigningKey(services.secret)
    name = keys.output_key(job_id, keys.SIGNED_RECEIPT)
    kept = await asyncio.to_thread(_kept, services.storage, name, key)
    if kept and kept[0]["receipt"] == receipt:
        return json_response(kept[1], media_type=MEDIA_TYPE)
    async with request.app.state.receipt_turns:
        envelope = await asyncio.to_thread(_sign, services.storage, job_id, receipt, key)
    return json_response(envelope, media_type=MEDIA_TYPE)


def _sign(storage: Storage, job_id: str, receipt: Receipt, key: SigningKey) -> Any:
    _check(storage, job_id, receipt["video"])
    envelope = key.sign(receipt, at=datetime.now(UTC))
    name = keys.output_key(job_id, keys.SIGNED_RECEIPT)
    storage.put_bytes(name, json.dumps(envelope).encode(), content_type="application/json")
    return envelope


def _kept(storage: Storage, name: str, key: SigningKey) -> tuple[dict[str, Any], Any] | None:
    """What was signed before by this key, and its envelope; hosts can write there too."""
    try:
        envelope = json.loads(storage.get_bytes(name))
        return open_envelope(envelope, key.public), envelope
    except (ObjectMissing, ValueError, NotVerified, RequestRejected):
        return None


def _check(storage: Storage, job_id: str, video: dict[str, Any]) -> None:
    """Raises VideoChanged where the stored video is another, ObjectMissing where it is gone."""
    name = keys.output_key(job_id, "output.mp4")
    stored = storage.head(name)
    if stored is None:
        raise ObjectMissing("The video is not there any more, so nothing can be signed.")
    if stored.size != video.get("size"):  # whoever can write there could fill our disk
        raise VideoChanged
    with TemporaryDirectory(prefix="stillreel-receipt-") as folder:
        if isinstance(storage, LocalStorage):
            path = storage.path(name)
        else:
            path = Path(folder, "video.mp4")
            storage.get_file(name, path)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != video.get("sha256"):
        raise VideoChanged
