"""US$ per video by month and model add up from drains and receipts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from stillreel.fleet.costs import PRICES, costs_of, plot
from stillreel.fleet.leases import Lease
from stillreel.job import JobStatus
from stillreel.usage import Ended

AT = datetime(2026, 11, 2, 3, tzinfo=UTC)
NOW = AT + timedelta(days=40)
HOUR = timedelta(hours=1)
MODELS = {"a100": "ltx-2", "g5": "wan-2.2"}
DRAIN = Lease(
    "r1",
    "a100",
    True,
    False,
    1,
    None,
    AT + 4 * HOUR,
    0.66,
    0.0,
    0.66,
    (),
    started_at=AT,
    ended_at=AT + HOUR,
    videos=20,
)


def job(number: int, at: datetime, **more: object) -> Ended:
    made = Ended(f"job_{number}", "", "ltx-2", "", at, JobStatus.COMPLETED, 60.0, 45.0, 0.00825)
    return replace(made, **more)


def test_a_video_costs_its_share_of_all_that_was_paid() -> None:
    jobs = [job(n, AT + HOUR / 2) for n in range(20)]
    others = [
        job(90, AT + 3 * HOUR),  # on a host of ours
        job(91, AT + HOUR / 2, model="wan-2.2"),
        job(92, AT + HOUR / 2, status=JobStatus.FAILED),
    ]
    (row,) = costs_of([DRAIN], [*jobs, *others], MODELS, now=NOW)
    assert (row.month, row.model, row.drains, row.videos) == ("2026-11", "ltx-2", 1, 20)
    assert row.usd_per_video == pytest.approx(0.033)
    assert row.to_json()["gpu_seconds_per_video"] == 45.0
    assert row.to_json()["gpu_usd_per_video"] == 0.0083
    assert row.waiting_share == pytest.approx(1 - 20 * 0.00825 / 0.66)


def test_months_and_models_are_apart_and_drains_that_rented_nothing_left_out() -> None:
    rows = costs_of(
        [
            replace(DRAIN, run_id="r4", started_at=AT + timedelta(days=30)),
            DRAIN,
            replace(DRAIN, run_id="r2", pool="g5"),
            replace(DRAIN, run_id="r3", number=0, usd=0.0),
            replace(DRAIN, run_id="r5", pool="control"),
        ],
        [],
        MODELS,
        now=NOW,
    )
    names = [("2026-11", "ltx-2"), ("2026-11", "wan-2.2"), ("2026-12", "ltx-2")]
    assert [(row.month, row.model) for row in rows] == names


def test_a_drain_of_the_version_before_counts_what_ended_under_it() -> None:
    jobs = [job(n, AT + HOUR / 2) for n in range(3)]
    (row,) = costs_of([replace(DRAIN, videos=None)], jobs, MODELS, now=NOW)
    assert row.videos == 3


def test_a_drain_that_died_shows_what_is_not_known() -> None:
    (row,) = costs_of([replace(DRAIN, reserved_usd=2.64)], [], MODELS, now=NOW)
    assert row.unknown_usd == pytest.approx(1.98)


def test_without_a_video_there_is_no_price_of_one() -> None:
    (row,) = costs_of([replace(DRAIN, videos=0)], [], MODELS, now=NOW)
    assert row.to_json()["usd_per_video"] is None
    assert len(plot([row]).splitlines()) == 1 + len(PRICES)


def test_the_plot_has_a_bar_for_each_row_and_each_price() -> None:
    (row,) = costs_of([DRAIN], [], MODELS, now=NOW)
    head, ours, *others = plot([row]).splitlines()
    assert head == "US$ per video"
    assert ours.startswith("2026-11 ltx-2")
    assert ours.endswith("0.0330")
    assert [line.count("█") for line in (ours, *others)] == [6, 7, 5, 13, 15, 26]
    assert others[-1].startswith("Replicate")
    assert "░" in others[-1]
    assert others[-1].endswith("0.1500 to 0.2500")
    assert all(price.source and price.date for price in PRICES)
