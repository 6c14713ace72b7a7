"""Progress is counted, only grows, and ends at 100."""

from __future__ import annotations

from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.job import Phase, Stage
from stillreel.progress import WEIGHTS, Progress, listening, report

STAGES = list(Stage)
INFER_PHASES = [Phase.QUEUED, Phase.LOAD, Phase.TEXT, Phase.DENOISE]


def whole_job(*, steps: int, frames: int) -> list[Progress]:
    """What a listener hears of a job, in order."""
    return [
        *(Progress(Stage.FETCH, step=n, steps=2) for n in range(3)),
        Progress(Stage.INFER, Phase.QUEUED),
        *(Progress(Stage.INFER, Phase.LOAD, n, 1) for n in range(2)),
        *(Progress(Stage.INFER, Phase.TEXT, n, 1) for n in range(2)),
        *(Progress(Stage.INFER, Phase.DENOISE, n, steps) for n in range(steps + 1)),
        *(Progress(Stage.ENCODE, Phase.DECODE, n, frames) for n in range(frames + 1)),
        *(Progress(Stage.UPLOAD, step=n, steps=4) for n in range(5)),
        *(Progress(Stage.NOTIFY, step=n, steps=1) for n in range(2)),
    ]


def test_the_weights_of_all_stages_make_one_hundred() -> None:
    assert list(WEIGHTS) == STAGES
    assert sum(WEIGHTS.values()) == 100


@given(steps=st.integers(1, 200), frames=st.integers(1, 400))
def test_progress_never_goes_back_and_ends_at_one_hundred(steps: int, frames: int) -> None:
    percents = [progress.percent for progress in whole_job(steps=steps, frames=frames)]
    assert percents[0] == 0
    assert percents[-1] == pytest.approx(100)
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(percents))


@given(
    stage=st.sampled_from(STAGES),
    phase=st.sampled_from([None, *Phase]),
    step=st.integers(0, 10**6),
    steps=st.integers(0, 10**3),
)
def test_every_percentage_is_one_of_its_stage(
    stage: Stage, phase: Phase | None, step: int, steps: int
) -> None:
    before = sum(WEIGHTS[other] for other in STAGES[: STAGES.index(stage)])
    percent = Progress(stage, phase, step, steps).percent
    assert before <= percent <= before + WEIGHTS[stage] + 1e-9


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(Stage.FETCH), "fetch"),
        (Progress(Stage.FETCH, step=1, steps=2), "fetch: 1/2"),
        (Progress(Stage.INFER, Phase.QUEUED), "infer: queued"),
        (Progress(Stage.INFER, Phase.DENOISE, 5, 8), "infer: denoise 5/8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_progress_reads_as_one_line(progress: Progress, text: str) -> None:
    assert progress.text == text


def test_waiting_in_the_queue_is_no_progress() -> None:
    assert Progress(Stage.INFER, Phase.QUEUED).percent == WEIGHTS[Stage.FETCH]
    assert Progress(Stage.INFER, Phase.QUEUED, 5, 8).percent == WEIGHTS[Stage.FETCH]


def test_all_who_listen_hear_each_report_and_nobody_after_it() -> None:
    outer: list[Progress] = []
    inner: list[Progress] = []
    with listening(outer.append):
        with listening(inner.append):
            report(Stage.ENCODE, Phase.DECODE, 1, 2)
        report(Stage.UPLOAD)
    report(Stage.NOTIFY)
    assert inner == [Progress(Stage.ENCODE, Phase.DECODE, 1, 2)]
    assert outer == [*inner, Progress(Stage.UPLOAD)]


def test_a_listener_that_fails_stops_the_work_and_is_not_heard_again() -> None:
    def failing(_: Progress) -> None:
        raise httpx.ConnectError("away")

    with pytest.raises(httpx.ConnectError), listening(failing):
        report(Stage.FETCH)
    report(Stage.FETCH)
