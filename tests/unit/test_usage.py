"""Sums of usage: nothing is counted twice, and nothing is lost."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.job import JobStatus
from stillreel.jobs import marks
from stillreel.jobs.record import record_of
from stillreel.usage import (
    OPEN_DAYS,
    Ended,
    Line,
    Used,
    add_up,
    ended_job,
    from_text,
    group,
    merge,
    spans,
    to_text,
)

TODAY = date(2026, 11, 20)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def job(name: str = "a", *, age: int = 0, **values: Any) -> Ended:
    given = {"owner": "acme", "model": "preview", "key_id": "k1", "status": JobStatus.COMPLETED}
    return Ended(name, at=NOON - timedelta(days=age), **(given | values))


jobs = st.builds(
    job,
    name=st.text("abcdef", min_size=1, max_size=4),
    age=st.integers(0, 6),
    model=st.sampled_from(["preview", "ltx-2"]),
    key_id=st.sampled_from(["k1", "k2", ""]),
    status=st.sampled_from([s for s in JobStatus if s not in ("queued", "processing")]),
    gpu_seconds=st.integers(0, 1000).map(float),
    usd=st.integers(0, 1000).map(float),
)


@pytest.mark.parametrize(
    ("status", "counted"),
    [
        (JobStatus.COMPLETED, (1, 0, 0)),
        (JobStatus.FAILED, (0, 1, 0)),
        (JobStatus.CANCELLED, (0, 0, 1)),
        (JobStatus.EXPIRED, (0, 0, 1)),
    ],
)
def test_each_end_is_counted_once(status: JobStatus, counted: tuple[int, int, int]) -> None:
    (used,) = add_up([job(status=status)]).values()
    assert (used.videos, used.failed, used.cancelled) == counted


def test_a_job_counts_on_the_utc_day_of_its_end() -> None:
    late = job().at.replace(hour=1).astimezone(UTC)
    elsewhere = datetime.fromisoformat("2026-11-20T23:30:00-05:00")
    assert Ended("a", "", "m", "", late, JobStatus.FAILED).line.day == TODAY
    assert Ended("a", "", "m", "", elsewhere, JobStatus.FAILED).line.day == date(2026, 11, 21)


@given(st.lists(jobs, unique_by=lambda j: j.job_id))
def test_sums_lose_nothing_and_count_nothing_twice(found: list[Ended]) -> None:
    once, twice = add_up(found), add_up([*found, *found])
    assert once == twice
    total = sum(once.values(), Used())
    assert total.videos + total.failed + total.cancelled == len(found)
    assert total.usd == sum(j.usd for j in found)


@given(
    st.lists(jobs, unique_by=lambda j: j.job_id),
    st.lists(st.sampled_from([[], ["day"], ["model", "key"], ["day", "model", "key"]])),
)
def test_grouping_keeps_the_total(found: list[Ended], ways: list[list[str]]) -> None:
    for by in ways:
        rows = group(add_up(found), by)
        assert sum(row["gpu_seconds"] for row in rows) == sum(j.gpu_seconds for j in found)
        names = [tuple(row[field] for field in by) for row in rows]
        assert names == sorted(set(names))


@given(st.lists(jobs, unique_by=lambda j: j.job_id), st.sets(st.integers(0, 6)))
def test_merging_stored_days_changes_nothing_while_the_runs_are_there(
    found: list[Ended], ages: set[int]
) -> None:
    sums = add_up(found)
    days = [TODAY - timedelta(age) for age in ages]
    stored = {day: {line: u for line, u in sums.items() if line.day == day} for day in days}
    assert merge(sums, stored, today=TODAY) == sums


@given(st.lists(jobs, unique_by=lambda j: j.job_id))
def test_closed_days_survive_the_vacuum(found: list[Ended]) -> None:
    sums = add_up(found)
    stored = {
        day: {line: used for line, used in sums.items() if line.day == day}
        for day in {line.day for line in sums}
    }
    left = add_up(j for j in found if (TODAY - j.line.day).days <= OPEN_DAYS)
    assert merge(left, stored, today=TODAY) == sums


def test_an_open_day_is_counted_live() -> None:
    day = TODAY - timedelta(OPEN_DAYS)
    line = Line(day, "preview", "k1")
    stored = {day: {line: Used(failed=1)}}
    assert merge({line: Used(videos=1)}, stored, today=TODAY) == {line: Used(videos=1)}


@given(st.lists(jobs, unique_by=lambda j: j.job_id))
def test_a_roll_up_reads_as_it_was_written(found: list[Ended]) -> None:
    sums = {line: used for line, used in add_up(found).items() if line.day == TODAY}
    assert from_text(to_text("acme", TODAY, sums)) == sums


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([], [(1, 5)]),
        ([3], [(1, 2), (4, 5)]),
        ([1, 5], [(2, 4)]),
        ([1, 2, 3, 4, 5], []),
    ],
)
def test_only_days_that_are_not_stored_are_read(
    stored: list[int], expected: list[tuple[int, int]]
) -> None:
    def day(n: int) -> date:
        return date(2026, 11, n)

    found = spans(day(1), day(5), [day(n) for n in stored])
    assert found == [(day(a), day(b)) for a, b in expected]


def run(**values: Any) -> dict[str, Any]:
    return {
        "id": "0d1f5a52-0c1c-4d35-9f0c-5d6f4a4a8d00",
        "flow_id": "0d1f5a52-0c1c-4d35-9f0c-5d6f4a4a8d01",
        "created": "2026-11-20T11:00:00Z",
        "start_time": "2026-11-20T11:59:00Z",
        "end_time": "2026-11-20T12:00:00Z",
        "state_type": "COMPLETED",
        "parameters": {"model": "ltx-2", "owner": "acme"},
        "labels": {},
        "tags": ["owner:acme", "model:ltx-2"],
    } | values


RECEIPT = {"took": {"gpu_seconds": 40.0}, "cost": {"usd": 0.01, "usd_per_hour": 0.9}}


def test_what_settle_wrote_counts_before_the_receipt() -> None:
    labels = {marks.SETTLED: 1, marks.USD: 0.5, marks.GPU_SECONDS: 7.0, marks.KEY_ID: "k1"}
    labels |= {marks.OWNER: "acme"}
    found = ended_job(record_of(run(labels=labels)), None)
    assert found
    assert (found.status, found.usd, found.gpu_seconds) == (JobStatus.COMPLETED, 0.5, 7.0)
    assert (found.owner, found.line) == ("acme", Line(TODAY, "ltx-2", "k1"))


def test_without_settling_the_receipt_counts() -> None:
    found = ended_job(record_of(run(labels={marks.SETTLED: 1, marks.ROUND: 2})), RECEIPT)
    assert found
    assert (found.usd, found.gpu_seconds, found.took_seconds) == (0.01, 40.0, 60.0)


def test_an_owner_that_somebody_typed_in_prefects_form_is_charged_nothing() -> None:
    found = ended_job(record_of(run(tags=[])), RECEIPT)
    assert found
    assert found.owner == ""


def test_a_run_that_broke_off_is_counted_once_its_round_is_settled() -> None:
    broken = run(state_type="CRASHED", tags=[marks.UNDELIVERED])
    assert ended_job(record_of(broken), None) is None
    settled = broken | {"labels": broken["labels"] | {marks.SETTLED: 1, marks.END: "failed"}}
    found = ended_job(record_of(settled), None)
    assert found
    assert found.status is JobStatus.FAILED


@pytest.mark.parametrize("state", ["FAILED", "COMPLETED"])
def test_a_run_without_a_video_is_a_failure(state: str) -> None:
    found = ended_job(record_of(run(state_type=state)), None)
    assert found
    assert (found.status, found.usd) == (JobStatus.FAILED, 0.0)


def test_a_run_that_goes_on_is_not_counted() -> None:
    assert ended_job(record_of(run(state_type="RUNNING", end_time=None)), None) is None


def test_a_tombstone_counts_on_the_day_of_the_jobs_end() -> None:
    labels = {
        marks.DELETED: "2026-11-20T12:00:00Z",
        marks.STATUS: "completed",
        marks.ENDED: "2026-11-02T01:00:00+00:00",
        marks.USD: 0.25,
    }
    found = ended_job(record_of(run(labels=labels)), None)
    assert found
    assert (found.line.day, found.usd) == (date(2026, 11, 2), 0.25)
