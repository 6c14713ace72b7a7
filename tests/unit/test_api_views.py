"""Views of jobs: what is told where all or only some is known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stillreel.api.views import job_view, status_for_now, status_view
from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.record import Record, record_of
from stillreel.settings import get_settings


def record(state_type: str = "COMPLETED", **labels: Any) -> Record:
    run: dict[str, Any] = {
        "id": "6d1e3a52-8c1f-4a0e-9d53-2a1c5f1f8f11",
        "flow_id": "0f7c1a7e-55c9-4e59-8a64-0a7b6c1f2d33",
        "created": "2026-11-20T10:00:00+00:00",
        "state_type": state_type,
        "labels": labels,
    }
    return record_of(run)


@pytest.mark.parametrize(("age", "days", "is_there"), [(1, 2, True), (3, 2, False), (999, 0, True)])
def test_a_video_that_has_expired_has_no_url(age: int, days: int, is_there: bool) -> None:
    at = datetime.now(UTC) - timedelta(days=age)
    receipt = {"completed_at": at.isoformat()}
    snapshot = Snapshot(record(), JobStatus.COMPLETED, read_at=0.0, receipt=receipt)
    storage = get_settings().storage.model_copy(update={"output_days": days})
    view = status_view(snapshot, storage, url=lambda key, _: f"https://x/{key}")
    assert view["status"] == "completed"
    assert bool(view["video_url"]) is is_there


def test_a_job_that_has_outlived_its_receipt_has_completed_without_files() -> None:
    ended_at = "2026-11-20T10:05:00+00:00"
    settled = record(**{marks.SETTLED: 1, marks.END: "completed", marks.END_AT: ended_at})
    snapshot = Snapshot(settled, settled.status(has_receipt=False), read_at=0.0)
    storage = get_settings().storage
    view = job_view(snapshot, storage, url=lambda key, _: key, eta=lambda _: None)
    assert (view["status"], view["video"], view["cost"]) == ("completed", None, None)
    assert view["completed_at"] == view["ended_at"] == "2026-11-20T10:05:00.000Z"
    assert view["result_url"] is None
    assert status_view(snapshot, storage, url=lambda key, _: key)["video_url"] is None


@pytest.mark.parametrize(
    ("state_type", "status"),
    [
        ("SCHEDULED", "queued"),
        ("RUNNING", "processing"),
        ("COMPLETED", "processing"),
        ("FAILED", "processing"),  # it may have a receipt, which completes it
    ],
)
def test_an_end_is_told_by_nobody_who_could_not_look_for_a_receipt(
    state_type: str, status: str
) -> None:
    assert status_for_now(record(state_type)) == status
