"""Estimates: learned from what is most alike, honest about where they come from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.errors import RequestRejected
from stillreel.estimates import (
    FLOORS,
    Sample,
    Work,
    guess,
    left_seconds,
    sample_of,
    wait_seconds,
    work_of,
)
from stillreel.job import JobSpec
from stillreel.jobs.record import record_of
from stillreel.models.registry import MODELS

NOW = datetime(2026, 11, 20, tzinfo=UTC)
LTX = work_of(JobSpec(model="ltx-2", image_key="inputs/x"))[0]


def sample(
    seconds: float, *, work: Work = LTX, price: float = 0.0, age: int = 0, gpu: float | None = None
) -> Sample:
    spent = seconds if gpu is None else gpu
    return Sample(f"job_{age}", work, seconds, spent, price, NOW - timedelta(hours=age))


@pytest.mark.parametrize(
    ("model", "preset"),
    [(m, p) for m, s in MODELS.items() if not s.elsewhere for p in s.presets],
)
def test_every_preset_of_our_own_gpus_has_a_floor(model: str, preset: str) -> None:
    assert (model, preset) in FLOORS


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({"model": "ltx-2"}, 25.0),
        ({"model": "wan-2.2", "preset": "fast"}, 51.0),
        ({"model": "wan-2.2", "preset": "standard"}, 772.7),
        ({"model": "wan-2.2", "preset": "standard", "steps": 25}, 400.7),
        ({"model": "ltx-2", "duration": 10.0}, 49.8),
        ({"model": "ltx-2", "width": 960, "height": 540}, 6.25),
    ],
)
def test_without_jobs_the_floor_of_the_spec_is_the_least(
    values: dict[str, Any], seconds: float
) -> None:
    found = guess(work_of(JobSpec(image_key="inputs/x", **values))[0], [])
    assert found
    assert (found.source, found.samples, found.usd) == ("spec", 0, None)
    assert found.seconds.low == pytest.approx(seconds, rel=0.01)
    assert found.seconds.low < found.seconds.likely < found.seconds.high


def test_a_remote_model_is_learned_and_has_no_price_of_this_host() -> None:
    work = work_of(JobSpec(model="remote", prompt="a lake"))[0]
    assert guess(work, [], usd_per_hour=0.66) is None
    found = guess(work, [sample(90.0, work=work, price=0.66, gpu=0.0)], usd_per_hour=0.66)
    assert found
    assert (found.seconds.likely, found.usd) == (90.0, None)


def test_one_job_teaches_more_than_the_spec() -> None:
    found = guess(LTX, [sample(60.0, price=0.66)])
    assert found
    assert (found.source, found.samples) == ("learned", 1)
    assert found.seconds.likely == 60.0
    assert found.usd
    assert found.usd.likely == pytest.approx(60 * 0.66 / 3600)


def test_jobs_of_the_same_size_count_before_others() -> None:
    small = Work(LTX.model, LTX.preset, LTX.steps, LTX.volume // 4)
    found = guess(LTX, [sample(60.0), sample(1000.0, work=small)])
    assert found
    assert (found.seconds.likely, found.samples) == (60.0, 1)


def test_another_size_is_scaled_and_the_range_is_wider() -> None:
    small = Work(LTX.model, LTX.preset, LTX.steps, LTX.volume // 4)
    same, scaled = guess(LTX, [sample(60.0)]), guess(LTX, [sample(15.0, work=small)])
    assert same
    assert scaled
    assert scaled.seconds.likely == pytest.approx(60.0, rel=0.001)
    assert scaled.seconds.low < same.seconds.low < same.seconds.high < scaled.seconds.high


def test_other_presets_and_models_teach_nothing_but_the_price() -> None:
    fast = work_of(JobSpec(model="wan-2.2", preset="fast", image_key="inputs/x"))[0]
    slow = work_of(JobSpec(model="wan-2.2", image_key="inputs/x"))[0]
    found = guess(slow, [sample(80.0, work=fast, price=1.0), sample(5.0, price=9.0)])
    assert found
    assert (found.source, found.usd_per_hour) == ("spec", 1.0)


def test_the_newest_price_counts_and_else_the_setting() -> None:
    both = [sample(60.0, price=0.5, age=5), sample(60.0, price=0.7, age=1), sample(60.0)]
    first, second = guess(LTX, both), guess(LTX, [sample(60.0)], usd_per_hour=0.4)
    assert first
    assert second
    assert (first.usd_per_hour, second.usd_per_hour) == (0.7, 0.4)


@given(
    st.lists(st.floats(0, 1e5), min_size=1, max_size=60),
    st.lists(st.integers(1, 10**9), min_size=1, max_size=60),
    st.integers(1, 10**9),
)
def test_a_range_is_ordered_and_never_negative(
    seconds: list[float], volumes: list[int], volume: int
) -> None:
    work = Work("ltx-2", "standard", 11, volume)
    samples = [
        sample(s, work=Work("ltx-2", "standard", 11, v))
        for s, v in zip(seconds, volumes, strict=False)
    ]
    found = guess(work, samples)
    assert found
    assert 0 <= found.seconds.low <= found.seconds.likely <= found.seconds.high


@given(st.floats(0, 1e6), st.floats(-10, 200))
def test_what_is_left_is_never_negative(total: float, percent: float) -> None:
    assert 0 <= left_seconds(total, percent) <= round(total) + 1


@pytest.mark.parametrize(
    ("ahead", "hosts", "seconds"), [(0, 1, 0.0), (4, 1, 40.0), (4, 2, 20.0), (4, 0, None)]
)
def test_the_wait_is_shared_by_the_hosts(ahead: int, hosts: int, seconds: float | None) -> None:
    assert wait_seconds(ahead, 10.0, hosts) == seconds


def test_an_order_that_cannot_be_made_has_no_work() -> None:
    with pytest.raises(RequestRejected):
        work_of(JobSpec(model="wan-2.2", prompt="x", duration=30.0))


RUN = {
    "id": "0d1f5a52-0c1c-4d35-9f0c-5d6f4a4a8d00",
    "flow_id": "0d1f5a52-0c1c-4d35-9f0c-5d6f4a4a8d01",
    "created": "2026-11-20T11:00:00Z",
    "start_time": "2026-11-20T11:59:00Z",
    "run_count": 1,
}
RECEIPT: dict[str, Any] = {
    "completed_at": "2026-11-20T12:00:00.000+00:00",
    "model": {"name": "ltx-2", "preset": "standard", "steps": 11},
    "video": {"width": 1920, "height": 1080, "frames": 121},
    "took": {"gpu_seconds": 40.0},
    "cost": {"usd_per_hour": 0.66, "reused_from": ""},
}


def test_a_receipt_teaches_what_the_job_took() -> None:
    found = sample_of(record_of(RUN), RECEIPT)
    assert found
    assert (found.seconds, found.gpu_seconds, found.usd_per_hour) == (60.0, 40.0, 0.66)
    assert found.work == LTX


@pytest.mark.parametrize(
    ("run", "receipt"),
    [
        (RUN | {"run_count": 2}, RECEIPT),
        (RUN | {"start_time": None}, RECEIPT),
        (RUN, RECEIPT | {"cost": {"usd_per_hour": 1.0, "reused_from": "job_other"}}),
    ],
)
def test_what_was_interrupted_or_reused_teaches_nothing(run: Any, receipt: Any) -> None:
    assert sample_of(record_of(run), receipt) is None
