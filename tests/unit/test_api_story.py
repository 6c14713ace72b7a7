"""What the reader of an event stream is told, from snapshots and states that are made here."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.api.story import Story, end_id, missed, since, time_of
from stillreel.job import Phase, Stage
from stillreel.jobs.reader import Snapshot
from stillreel.jobs.record import record_of, status_of
from stillreel.progress import Progress

START = datetime(2026, 11, 20, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def snapshot(state: str = "RUNNING", seconds: float = 0.0, name: str = "", **more: Any) -> Snapshot:
    """A job that came into this state of Prefect's so long after the start."""
    run = {
        "id": "0" * 32,
        "flow_id": "f",
        "idempotency_key": "job_abcdefgh",
        "created": at(0),
        "state": {"type": state, "name": name or state.title(), "timestamp": at(seconds)},
    }
    receipt = more.get("receipt")
    status = status_of(state, name, has_receipt=receipt is not None)
    return Snapshot(record_of(run), status, 0.0, **more)


def view(snapshot: Snapshot) -> dict[str, Any]:
    progress = snapshot.progress
    return {
        "status": str(snapshot.status),
        "stage": snapshot.stage,
        "phase": progress.phase if progress else None,
        "step": progress.step if progress else None,
        "steps": progress.steps if progress else None,
        "progress": int(snapshot.percent),
        "position": snapshot.place,
        "eta_seconds": None,
        "heartbeat_age_seconds": None,
    }


def told(story: Story, *snapshots: Snapshot) -> list[tuple[str, str]]:
    """Kind and status or stage of all that is told."""
    events = [event for each in snapshots for event in story.tell(each)]
    return [(e.event, e.data.get("status") or str(e.data.get("stage"))) for e in events]


def test_a_story_begins_with_the_whole_job_and_tells_only_what_changes() -> None:
    fetching = snapshot(progress=Progress(Stage.FETCH))
    waiting = snapshot("SCHEDULED", place=3)
    next_one = replace(waiting, place=2)
    done = snapshot("COMPLETED", 9, receipt={"completed_at": at(8)})
    story = Story(view)
    assert told(story, waiting, waiting, replace(waiting, read_at=1.0)) == [("status", "queued")]
    assert told(story, next_one, fetching, replace(fetching, read_at=2.0)) == [
        ("progress", "None"),
        ("status", "processing"),
    ]
    step = replace(fetching, progress=Progress(Stage.INFER, Phase.DENOISE, 3, 8))
    assert told(story, step, done) == [
        ("progress", "infer"),
        ("status", "completed"),
        ("end", "completed"),
    ]


@pytest.mark.parametrize(
    "ended",
    [
        snapshot("COMPLETED", 9, receipt={"completed_at": at(8)}),
        snapshot("FAILED", 9),
        snapshot("CANCELLED", 9),
        snapshot("CANCELLED", 9, "Expired"),
    ],
    ids=lambda s: str(s.status),
)
def test_an_ended_job_is_told_in_one_event(ended: Snapshot) -> None:
    (event,) = Story(view).tell(ended)
    assert (event.event, event.id) == ("end", end_id(ended))
    assert event.data == view(ended)


def test_a_reader_that_knows_the_newest_is_told_nothing_until_something_changes() -> None:
    running = snapshot(progress=Progress(Stage.INFER, Phase.DENOISE, 3, 8))
    (event,) = Story(view).tell(running)
    story = Story(view, event.id)
    assert told(story, running, replace(running, read_at=1.0)) == []
    later = replace(running, progress=Progress(Stage.INFER, Phase.DENOISE, 4, 8))
    assert told(story, later) == [("progress", "infer")]
    assert told(Story(view, event.id), later) == [("status", "processing")]


def test_what_a_job_has_reached_has_the_same_id_in_every_process() -> None:
    running = snapshot(progress=Progress(Stage.ENCODE, None, 3, 8))
    ids = {event.id for _ in range(2) for event in Story(view).tell(replace(running))}
    assert len(ids) == 1


def _states(*names: str) -> list[dict[str, str]]:
    types = {"AwaitingRetry": "SCHEDULED", "Expired": "CANCELLED"}
    return [
        {"type": types.get(name, name.upper()), "name": name, "timestamp": at(n)}
        for n, name in enumerate(names)
    ]


MISSED = {
    "nothing": (("Scheduled", "Pending"), []),
    "it began": (("Scheduled", "Pending", "Running", "Completed"), ["processing"]),
    "a crash that went on": (("Scheduled", "Running", "Crashed", "AwaitingRetry", "Running"),
                             ["queued"]),
    "another round": (("Scheduled", "Running", "Failed", "AwaitingRetry", "Running", "Cancelled"),
                      ["processing", "failed", "queued", "processing"]),
    "expired, then again": (("Scheduled", "Expired", "AwaitingRetry"), ["expired"]),
}  # fmt: skip


@pytest.mark.parametrize(("names", "statuses"), MISSED.values(), ids=MISSED)
def test_the_statuses_between_are_told_once_each(
    names: tuple[str, ...], statuses: list[str]
) -> None:
    states = _states(*names)
    last = states[-1]
    receipt = {"completed_at": at(20)} if names[-1] == "Completed" else None
    now = snapshot(last["type"], len(names) - 1, last["name"], receipt=receipt)
    known = int(START.timestamp() * 1000)
    if names[0:3] == ("Scheduled", "Running", "Crashed"):
        known += 1000  # the reader knows that it ran
    assert [event.data["status"] for event in missed(states, known, now)] == statuses


def test_a_missed_status_names_where_to_go_on() -> None:
    states = _states("Scheduled", "Running", "Failed", "AwaitingRetry", "Running", "Cancelled")
    now = snapshot("CANCELLED", 5)
    events = missed(states, 0, now)
    for n, event in enumerate(events):
        known = time_of(event.id)
        assert known is not None
        assert missed(states, known, now) == events[n + 1 :]
    assert missed(states, since(now), now) == []


@given(st.text(max_size=40))
def test_any_text_may_come_as_the_last_id(text: str) -> None:
    known = time_of(text)
    assert known is None or known >= 0
    assert list(Story(view, text).tell(snapshot()))


@pytest.mark.parametrize("text", ["", "end", "-end", "x-end", "12", "²-end", "9" * 400 + "-end"])
def test_what_is_no_id_of_ours_has_no_time(text: str) -> None:
    assert time_of(text) is None
