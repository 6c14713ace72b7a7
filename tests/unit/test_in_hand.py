"""What one server leaves for the next: told once, counted three times, never for who waited."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillreel.inference.entry import Kind, Problem
from stillreel.inference.in_hand import LIMIT, InHandNote, forget_deaths, note_path
from stillreel.job import Phase

STALLED = Problem(code="inference_stalled", message="no progress")


def note_of(
    folder: Path,
    *,
    server: str,
    kind: Kind = Kind.INFERENCE,
    job_round: int = 1,
    execution: int = 1,
) -> InHandNote:
    path = note_path(folder, "run")
    return InHandNote(path, kind, job_round=job_round, execution=execution, server=server)


def test_what_nobody_has_begun_may_begin(tmp_path: Path) -> None:
    assert note_of(tmp_path, server="a").take_failure() is None
    assert list(tmp_path.iterdir()) == []


def test_what_another_server_had_begun_has_failed_and_is_told_once(tmp_path: Path) -> None:
    first = note_of(tmp_path, server="a")
    first.begin(Phase.LOAD)
    first.begin(Phase.DENOISE)
    assert first.take_failure() is None  # it lives: the work goes on, or is replaced
    second = note_of(tmp_path, server="b")
    problem = second.take_failure()
    assert problem
    assert problem.code == "inference_server_died"
    assert "died under this job, in phase denoise;" in problem.message
    assert problem.message.endswith("(attempt 1 of 3)")
    assert second.take_failure() is None


def test_an_execution_that_came_later_is_not_told_and_may_begin(tmp_path: Path) -> None:
    """Its whole host lost power: the keeper has counted that already."""
    note_of(tmp_path, server="a").begin(Phase.DENOISE)
    assert note_of(tmp_path, server="b", execution=2).take_failure() is None
    note_of(tmp_path, server="b", execution=2).begin(Phase.DENOISE)
    problem = note_of(tmp_path, server="c", execution=2).take_failure()
    assert problem
    assert problem.message.endswith("(attempt 2 of 3)")


def test_a_round_that_had_all_its_servers_may_be_retried_by_a_person(tmp_path: Path) -> None:
    die(tmp_path, Kind.INFERENCE, Kind.INFERENCE)
    forget_deaths(tmp_path, "run")
    assert note_path(tmp_path, "run").exists()
    die(tmp_path, Kind.INFERENCE)
    forget_deaths(tmp_path, "run")
    assert note_of(tmp_path, server="z").take_failure() is None


def test_a_server_that_knew_why_it_ended_is_believed(tmp_path: Path) -> None:
    note_of(tmp_path, server="a").begin(Phase.DENOISE, STALLED)
    problem = note_of(tmp_path, server="b").take_failure()
    assert problem == Problem(code="inference_stalled", message="no progress (attempt 1 of 3)")


def test_what_has_ended_leaves_nothing(tmp_path: Path) -> None:
    note = note_of(tmp_path, server="a")
    note.begin(Phase.DENOISE)
    note.clear()
    assert list(tmp_path.iterdir()) == []
    assert note_of(tmp_path, server="b").take_failure() is None


def test_the_third_failure_is_the_last_and_stays_so_in_this_round(tmp_path: Path) -> None:
    die(tmp_path, Kind.INFERENCE, Kind.INFERENCE, Kind.DECODE)
    for kind in (Kind.INFERENCE, Kind.DECODE):
        problem = note_of(tmp_path, server="z", kind=kind).take_failure()
        assert problem
        assert problem.message.endswith("(attempt 3 of 3)")
    assert note_of(tmp_path, server="z", job_round=2).take_failure() is None


def test_a_new_round_begins_with_no_attempt(tmp_path: Path) -> None:
    die(tmp_path, Kind.INFERENCE, Kind.INFERENCE)
    note = note_of(tmp_path, server="y", job_round=2)
    note.begin(Phase.DENOISE)
    problem = note_of(tmp_path, server="z", job_round=2).take_failure()
    assert problem
    assert problem.message.endswith("(attempt 1 of 3)")


@pytest.mark.parametrize("content", [b"", b"{", b'{"round": "x"}', b"[]"])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    note_path(tmp_path, "run").write_bytes(content)
    note = note_of(tmp_path, server="a")
    assert note.take_failure() is None
    note.begin(Phase.LOAD)
    assert note_of(tmp_path, server="b").take_failure()


def test_a_note_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    note = note_of(tmp_path / "file", server="a")
    note.begin(Phase.LOAD)
    note.clear()
    assert "what is in hand cannot be noted: File exists" in caplog.text


@settings(max_examples=50, deadline=None)  # it writes files
@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.sampled_from(["dies", "ends", "fails"]))))
def test_whatever_a_job_does_three_servers_at_most_die_under_one_round(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[Kind, str]]
) -> None:
    folder, deaths, told = tmp_path_factory.mktemp("job"), 0, 0
    for kind, how in story:
        note = note_of(folder, server=f"server-{deaths}", kind=kind)
        if note.take_failure():
            told += 1
            continue
        note.begin(Phase.DENOISE)
        if how == "dies":
            deaths += 1
        else:
            note.clear()
    assert deaths <= LIMIT
    assert told <= len(story) - deaths


def die(folder: Path, *kinds: Kind) -> None:
    """One server after the other dies under this kind of work, and the next is asked for it."""
    for number, kind in enumerate(kinds):
        note_of(folder, server=f"dead-{number}", kind=kind).begin(Phase.DENOISE)
        assert note_of(folder, server=f"next-{number}", kind=kind).take_failure()
