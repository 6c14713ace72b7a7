"""When a rented host ends itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.idle import IdleClock, Sight, clock_of
from stillreel.settings import get_settings

READY, NOT_READY = Sight(True, False, 0), Sight(False, False, 0)
BUSY, QUEUED = Sight(True, True, 0), Sight(True, False, 3)
CUT_OFF = Sight(True, False, None)


def clock() -> IdleClock:
    return IdleClock(boot=1200, idle=300, contact=900, left=14400, since=100.0)


def run(*sights: tuple[float, Sight]) -> tuple[float, str]:
    """What a clock says that sees each of these from its time on, every 5 s; when and why."""
    it, last = clock(), 20_000.0
    ends = [start for start, _ in sights[1:]] + [last]
    for (start, sight), end in zip(sights, ends, strict=True):
        at = start
        while at < end:
            if reason := it.see(100.0 + at, sight):
                return at, reason
            at += 5
    return last, ""


@pytest.mark.parametrize(
    ("sights", "at", "reason"),
    [
        pytest.param([(0, READY)], 300, "idle", id="ready and idle"),
        pytest.param([(0, NOT_READY), (600, READY)], 900, "idle", id="boot is not idle time"),
        pytest.param([(0, NOT_READY)], 1200, "not ready", id="never ready"),
        pytest.param([(0, BUSY), (3000, READY)], 3295, "idle", id="work, then idle"),
        pytest.param([(0, READY), (200, BUSY), (205, READY)], 500, "idle", id="a job in between"),
        pytest.param([(0, BUSY)], 14400, "time is over", id="hard lifetime at work"),
        pytest.param([(0, QUEUED)], 14400, "time is over", id="jobs wait for ever"),
        pytest.param([(0, CUT_OFF)], 900, "no contact", id="never any contact"),
        pytest.param([(0, BUSY), (1000, CUT_OFF)], 1895, "no contact", id="contact lost"),
        pytest.param(
            [(0, READY), (100, CUT_OFF), (600, READY)], 895, "idle", id="unknown is not idle"
        ),
    ],
)
def test_why_and_when(sights: list[tuple[float, Sight]], at: float, reason: str) -> None:
    ended, why = run(*sights)
    assert reason in why
    assert ended == at


@given(
    st.lists(
        st.builds(Sight, st.booleans(), st.booleans(), st.none() | st.integers(0, 3)),
        min_size=1,
        max_size=50,
    )
)
def test_it_always_ends_by_its_time(sights: list[Sight]) -> None:
    it = clock()
    for n, sight in enumerate(sights):
        it.see(100.0 + n, sight)
    assert it.see(100.0 + 14400, sights[-1])


def test_the_times_are_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    at = datetime(2026, 11, 28, 12, tzinfo=UTC)
    monkeypatch.setenv("STILLREEL_RENTED_UNTIL", str(at.timestamp() + 3600))
    monkeypatch.setenv("STILLREEL_HOST_HOURS", "2")
    monkeypatch.setenv("STILLREEL_IDLE_MINUTES", "0.5")
    it = clock_of(get_settings().fleet, since=5.0, at=at)
    assert (it.left, it.idle, it.boot, it.contact, it.since) == (3480, 30, 1200, 900, 5.0)
    get_settings.cache_clear()
    monkeypatch.setenv("STILLREEL_RENTED_UNTIL", str(at.timestamp() + 60))
    assert clock_of(get_settings().fleet, since=5.0, at=at).left == 54


def test_a_host_whose_clock_is_a_day_behind_lives_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = datetime(2026, 11, 28, 12, tzinfo=UTC)
    monkeypatch.setenv("STILLREEL_RENTED_UNTIL", str(at.timestamp() + 28 * 3600))
    assert clock_of(get_settings().fleet, since=5.0, at=at).left == 4 * 3600 - 120
