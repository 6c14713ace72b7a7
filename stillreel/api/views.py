"""From what is known about a job to what a caller is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from stillreel.api.schemas import iso
from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.record import Record, error_of_record
from stillreel.keys import output_key
from stillreel.settings import StorageSettings

UrlMaker = Callable[[str, int], str]
"""Gives a URL for a key and a number of seconds."""
EtaMaker = Callable[[Snapshot], int | None]

_FILES = {"result_url": "output.mp4", "poster_url": "poster.jpg", "teaser_url": "teaser.mp4"}


def job_view(
    snapshot: Snapshot, storage: StorageSettings, *, url: UrlMaker, eta: EtaMaker
) -> dict[str, Any]:
    """The whole job; URLs are signed now."""
    view = facts(snapshot, storage, eta)
    if _has_files(snapshot, storage):
        seconds = storage.download_url_seconds
        job_id = snapshot.record.job_id
        view |= {name: url(output_key(job_id, file), seconds) for name, file in _FILES.items()}
        view["url_expires_at"] = iso(datetime.now(UTC) + timedelta(seconds=seconds))
    return view


def status_view(snapshot: Snapshot, storage: StorageSettings, *, url: UrlMaker) -> dict[str, Any]:
    """The second document's view: four words, and no URL but the video's."""
    is_there = _has_files(snapshot, storage)
    key = output_key(snapshot.record.job_id, "output.mp4")
    return {
        "job_id": snapshot.record.job_id,
        "status": four_words(snapshot.status),
        "video_url": url(key, storage.status_url_seconds) if is_there else None,
        "error": error_of_record(snapshot.record, snapshot.status)[1] or None,
        "position": snapshot.place,
        "progress": int(snapshot.percent),
    }


def four_words(status: JobStatus) -> str:
    """The status for clients that know queued, processing, completed and failed only."""
    ended = (JobStatus.CANCELLED, JobStatus.EXPIRED)
    return str(JobStatus.FAILED if status in ended else status)


def status_for_now(record: Record) -> JobStatus:
    """The status of a job whose receipt could not be looked for: how it ended is open then."""
    return JobStatus.PROCESSING if record.is_final else record.status(has_receipt=False)


def facts(snapshot: Snapshot, storage: StorageSettings, eta: EtaMaker) -> dict[str, Any]:
    """The job without URLs, so the same for everybody and for as long as the snapshot is new."""
    record, progress, receipt = snapshot.record, snapshot.progress, snapshot.receipt or {}
    processing = snapshot.status is JobStatus.PROCESSING
    code, error = error_of_record(record, snapshot.status)
    model = receipt.get("model") or {}
    # A job that is settled as completed has completed; its receipt may be gone with its video.
    done = snapshot.status is JobStatus.COMPLETED and bool(receipt)
    completed_at = _completed_at(snapshot)
    ended_at = (completed_at or record.ended_at) if snapshot.has_ended else None
    seed = int(record.parameters.get("seed", -1))
    return {
        "job_id": record.job_id,
        "status": str(snapshot.status),
        "progress": int(snapshot.percent),
        "stage": snapshot.stage,
        "phase": progress.phase if processing and progress else None,
        "step": progress.step if processing and progress and progress.steps else None,
        "steps": progress.steps if processing and progress and progress.steps else None,
        "eta_seconds": None if snapshot.has_ended else eta(snapshot),
        "position": snapshot.place,
        "model": record.model,
        "prompt": record.text("prompt"),
        "style": record.text("style") or None,
        "camera": record.text("camera") or None,
        "duration": float(record.parameters.get("duration", 5.0)),
        "seed": model.get("seed", seed if seed >= 0 else None),
        "preset": model.get("preset") or record.text("preset") or None,
        "priority": record.queue or None,
        "batch_id": record.batch or None,
        "owner": record.owner or None,
        "round": record.round,
        "attempt": record.attempt,
        "result_url": None,
        "poster_url": None,
        "teaser_url": None,
        "url_expires_at": None,
        "error": error or None,
        "error_code": code or None,
        "warnings": list(receipt.get("warnings") or ()),
        "video": _video(receipt) if done else None,
        "cost": _cost(receipt) if done else None,
        "delivery": _delivery(snapshot),
        "created_at": iso(record.created_at),
        "started_at": iso(record.started_at),
        "completed_at": iso(completed_at),
        "ended_at": iso(ended_at),
        "deadline": iso(record.deadline),
        "expires_at": _after(completed_at, storage.output_days),
        "input_expires_at": _after(record.created_at, storage.input_days),
        "latents_expires_at": _after(completed_at, storage.latents_days),
        "heartbeat_age_seconds": _age(snapshot) if processing else None,
        "run_id": record.run_id,
    }


def to_bytes(view: dict[str, Any]) -> bytes:
    """A view as JSON."""
    return json.dumps(view, separators=(",", ":"), ensure_ascii=False).encode()


def _video(receipt: Any) -> dict[str, Any]:
    names = ("width", "height", "fps", "frames", "seconds", "size", "codec", "audio", "sha256")
    return {name: receipt["video"][name] for name in names}


def _cost(receipt: Any) -> dict[str, Any]:
    cost = receipt["cost"]
    return {
        "usd": cost["usd"],
        "gpu_seconds": receipt["took"]["gpu_seconds"],
        "usd_per_hour": cost["usd_per_hour"],
        "host": cost["host"],
    }


def _delivery(snapshot: Snapshot) -> dict[str, Any] | None:
    """How the notification of this round fares; null before the end."""
    record = snapshot.record
    if not snapshot.has_ended:
        return None
    labels = record.labels
    error = str(labels.get(marks.DELIVERY_ERROR) or "")
    if labels.get(marks.DELIVERED) == record.round:
        status = "delivered" if record.text("webhook_url") or labels.get(marks.ATTEMPTS) else "none"
    elif marks.UNDELIVERED in record.tags:
        status = "waiting"
    else:
        status = "failing" if error else "none"
    return {
        "status": status,
        "attempts": int(labels.get(marks.ATTEMPTS) or 0),
        "next_attempt_at": labels.get(marks.NEXT_ATTEMPT) or None,
        "error": error or None,
        "history": [asdict(attempt) | {"at": iso(attempt.at)} for attempt in snapshot.attempts],
    }


def _completed_at(snapshot: Snapshot) -> datetime | None:
    if snapshot.status is not JobStatus.COMPLETED:
        return None
    text = (snapshot.receipt or {}).get("completed_at")
    return datetime.fromisoformat(text) if text else snapshot.record.ended_at


def _has_files(snapshot: Snapshot, storage: StorageSettings) -> bool:
    done = snapshot.status is JobStatus.COMPLETED and snapshot.receipt is not None
    return done and not _is_past(_after(_completed_at(snapshot), storage.output_days))


def _after(at: datetime | None, days: int) -> str | None:
    return iso(at + timedelta(days=days)) if at and days else None


def _is_past(at: str | None) -> bool:
    return at is not None and datetime.fromisoformat(at) < datetime.now(UTC)


def _age(snapshot: Snapshot) -> int | None:
    signs = [at for at in (snapshot.heartbeat_at, snapshot.progress_at) if at]
    return max(0, int((datetime.now(UTC) - max(signs)).total_seconds())) if signs else None
