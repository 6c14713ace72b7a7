"""What a drain tells of itself adds up, in JSON and in an artifact."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from stillreel.fleet.labels import Label
from stillreel.fleet.report import End, Report, Stay

AT = datetime(2026, 11, 2, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)


def stay(number: int, hours: float, end: End) -> Stay:
    label = Label("main", str(UUID(int=3)), number)
    return Stay(
        label,
        "vast",
        f"vast/{number}",
        0.6,
        AT,
        AT + 4 * HOUR,
        0.1,
        AT + 0.25 * HOUR,
        AT + hours * HOUR,
        end,
    )


def report() -> Report:
    made = Report("a100", AT, "drained", None, [stay(1, 0.5, End.LOST), stay(2, 2.0, End.DRAINED)])
    made.videos, made.failed = 20, 1
    made.waiting = [(AT + n * HOUR / 100, 100 - n) for n in range(101)]
    return made


def test_all_hosts_are_paid_and_shared_by_the_videos() -> None:
    facts = report().to_json(AT + 5 * HOUR)
    assert facts["hours"] == 2.5
    assert facts["usd"] == pytest.approx(2.5 * 0.6 + 0.2)
    assert facts["usd_per_video"] == pytest.approx(facts["usd"] / 20, abs=1e-4)
    assert [(host["end"], host["boot_minutes"]) for host in facts["hosts"]] == [
        ("lost", 15.0),
        ("drained", 15.0),
    ]


def test_a_host_that_is_still_there_costs_until_now() -> None:
    made = Report("a100", AT, stays=[stay(1, 0.5, End.LOST)])
    made.stays[0].until = None
    assert made.usd(AT + 2 * HOUR) == pytest.approx(1.3)


def test_without_a_video_there_is_no_price_of_one() -> None:
    facts = Report("a100", AT, "not rented").to_json(AT)
    assert (facts["usd_per_video"], facts["rented"], facts["hosts"]) == (None, False, [])
    assert "| usd_per_video | - |" in Report("a100", AT).to_markdown(AT)


def test_a_person_sees_a_row_per_host_and_the_backlog_go_down() -> None:
    text = report().to_markdown(AT + 5 * HOUR)
    assert "| videos | 20 |" in text
    assert sum("stillreel-main-" in line for line in text.splitlines()) == 2
    (bars,) = [line for line in text.splitlines() if line.startswith("█")]
    assert len(bars) == 60
    assert bars.endswith("▁")
    assert [ord(c) for c in bars] == sorted(map(ord, bars), reverse=True)
    assert "03:00 to 04:00 UTC, at most 100" in text
