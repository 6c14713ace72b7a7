"""Usage: true after deletion, and after Prefect has forgotten the runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from stillreel import usage
from stillreel.job import JobStatus
from stillreel.usage import Ended, add_up, roll_up, roll_up_key, to_text
from tests.api.background import keep
from tests.api.conftest import Api

TODAY = datetime.now(UTC).date()


def read(api: Api, **query: str) -> dict[str, Any]:
    answer = api.client.get("/api/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def made(api: Api, inference_server: None) -> str:
    job_id = api.submit()["job_id"]
    assert api.execute(job_id).is_completed()
    return job_id


def test_a_video_is_counted_by_day_model_and_key(api: Api, made: str) -> None:
    found = read(api, group_by="day,model,key")
    (row,) = [row for row in found["rows"] if row["day"] == TODAY.isoformat()]
    assert (row["model"], row["videos"] > 0) == ("preview", True)
    assert row["key"], "the key that ordered is known"
    assert found["group_by"] == ["day", "model", "key"]
    assert found["total"]["gpu_seconds"] == pytest.approx(
        sum(row["gpu_seconds"] for row in found["rows"])
    )


def test_a_job_that_waits_is_not_counted_and_a_cancelled_one_is(api: Api) -> None:
    before = read(api)["total"]
    job_id = api.submit()["job_id"]
    assert read(api)["total"] == before
    api.client.post(f"/api/v1/jobs/{job_id}/cancel")
    assert read(api)["total"]["cancelled"] == before["cancelled"] + 1


def test_a_deleted_job_stays_counted(api: Api, inference_server: None) -> None:
    job_id = api.submit()["job_id"]
    assert api.execute(job_id).is_completed()
    before = read(api)["total"]
    assert api.client.delete(f"/api/v1/jobs/{job_id}").status_code == 204
    assert read(api)["total"] == pytest.approx(before)


def test_days_that_prefect_has_forgotten_come_from_roll_ups(api: Api) -> None:
    day = TODAY - timedelta(40)
    job = Ended("a", "default", "ltx-2", "k1", datetime.combine(day, datetime.min.time(), UTC),
                JobStatus.COMPLETED, gpu_seconds=40.0, usd=0.01)  # fmt: skip
    text = to_text("default", day, add_up([job]))
    key = roll_up_key("default", day)
    put(api, key, text)
    asked = {"from": day.isoformat(), "to": day.isoformat()}
    assert read(api, group_by="model", **asked)["rows"] == [
        {"day": None, "key": None, "model": "ltx-2", "videos": 1, "failed": 0, "cancelled": 0,
         "gpu_seconds": 40.0, "usd": 0.01}
    ]  # fmt: skip
    api.storage.delete(key)


def test_a_roll_up_says_what_prefect_says(api: Api, made: str) -> None:
    live = read(api, group_by="day,model,key")
    tomorrow = datetime.now(UTC) + timedelta(1)
    keep(api, lambda services: roll_up(services, now=tomorrow))
    stored = usage.from_text(api.storage.get_bytes(roll_up_key("default", TODAY)))
    today = [row for row in live["rows"] if row["day"] == TODAY.isoformat()]
    assert usage.group(stored, ["day", "model", "key"]) == today
    forget_roll_ups(api)


def test_an_open_day_is_written_again_and_a_closed_one_is_not(
    api: Api, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(api, roll_up)
    first = written(api)
    assert len(first) == usage.CATCH_UP_DAYS
    keep(api, roll_up)
    assert written(api) == first, "hourly at most"
    monkeypatch.setattr(usage, "ROLL_UP_EVERY", timedelta(0))
    keep(api, roll_up)
    changed = {key for key, etag in written(api).items() if etag != first[key]}
    open_days = [TODAY - timedelta(age) for age in range(1, usage.OPEN_DAYS + 1)]
    assert changed == {roll_up_key(usage.DAYS, day) for day in open_days}
    forget_roll_ups(api)


def test_a_job_that_was_tried_again_leaves_the_roll_up_of_its_first_end(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    yesterday = TODAY - timedelta(1)
    job = Ended("a", "acme", "preview", "k1", datetime.now(UTC) - timedelta(1), JobStatus.FAILED)
    text = to_text("acme", yesterday, add_up([job]))
    put(api, roll_up_key("acme", yesterday), text)
    put(api, roll_up_key(usage.DAYS, yesterday), '{"owners": ["acme"]}')
    monkeypatch.setattr(usage, "ROLL_UP_EVERY", timedelta(0))
    keep(api, roll_up)
    assert usage.from_text(api.storage.get_bytes(roll_up_key("acme", yesterday))) == {}
    forget_roll_ups(api)


@pytest.mark.parametrize(
    "query",
    [
        {"group_by": "prompt"},
        {"from": "2026-11-20", "to": "2026-11-19"},
        {"from": "2020-01-01", "to": "2026-11-19"},
        {"from": "yesterday"},
        {"to": "9999-99-99"},
        {"to": "0001-01-01"},
        {"from": "0001-01-01", "to": "0001-01-02"},
        {"from": "9999-12-30", "to": "9999-12-31"},
        {"from": "1999-12-31", "to": "2000-01-01"},
        {"to": "2101-01-01"},
    ],
)
def test_questions_that_make_no_sense_are_refused(api: Api, query: dict[str, str]) -> None:
    assert api.client.get("/api/v1/usage", params=query).status_code == 422


def test_days_to_come_and_days_long_past_are_empty(api: Api) -> None:
    assert read(api, to="2000-01-01")["rows"] == []
    asked = {"from": "2000-01-01", "to": "2000-12-31"}
    assert read(api, **asked)["rows"] == []
    asked = {"from": "2100-01-01", "to": "2100-12-31"}
    assert read(api, **asked)["rows"] == []


def test_usage_needs_a_key(api: Api) -> None:
    assert httpx.get(f"{api.url}/api/v1/usage", trust_env=False).status_code == 401


def test_an_owner_has_its_own_usage(api: Api, made: str) -> None:
    assert read(api, owner=f"nobody-{uuid4().hex}")["rows"] == []


def written(api: Api) -> dict[str, str]:
    return {info.key: info.etag for info in api.storage.list(f"usage/{usage.DAYS}/")}


def put(api: Api, key: str, text: str) -> None:
    api.storage.put_bytes(key, text.encode(), content_type="application/json")


def forget_roll_ups(api: Api) -> None:
    for info in list(api.storage.list("usage/")):
        api.storage.delete(info.key)
