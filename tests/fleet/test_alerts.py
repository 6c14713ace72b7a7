"""What is said when the month's budget runs out, and that it is said once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from stillreel.audit import Event
from stillreel.errors import PrefectUnavailable
from stillreel.fleet.alerts import tell_budget
from stillreel.fleet.decision import Money

NOW = datetime(2026, 11, 20, tzinfo=UTC)


@dataclass
class FakeBell:
    """Remembers names, and keeps events."""

    names: set[str] = field(default_factory=set[str])
    events: list[Event] = field(default_factory=list[Event])
    is_away: bool = False

    def is_first(self, name: str) -> bool:
        is_new = name not in self.names
        self.names.add(name)
        return is_new

    def ring(self, event: Event) -> None:
        if self.is_away:
            raise PrefectUnavailable
        self.events.append(event)


def tell(bell: FakeBell, spent: float, *, now: datetime = NOW, **more: bool) -> list[int]:
    return tell_budget(
        bell, Money(spent, 1.0), budget_usd=50.0, installation="main", now=now, **more
    )


@pytest.mark.parametrize(
    ("spent", "levels"),
    [(0.0, []), (24.9, []), (25.0, [50]), (41.0, [50, 80]), (50.0, [50, 80, 100])],
)
def test_each_level_is_said_once_a_month(spent: float, levels: list[int]) -> None:
    bell = FakeBell()
    assert tell(bell, spent) == levels
    assert tell(bell, spent) == []
    assert [event["payload"]["level"] for event in bell.events] == levels
    assert tell(bell, spent, now=NOW.replace(month=12)) == levels


def test_a_budget_that_is_not_enough_for_another_host_is_used_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bell = FakeBell()
    with caplog.at_level(logging.WARNING):
        assert tell(bell, 48.0, is_used_up=True) == [50, 80, 100]
    assert "US$ 48.00 spent, 1.00 promised" in caplog.text
    assert "STILLREEL_MONTH_BUDGET_USD" in caplog.text
    assert bell.events[0]["event"] == "stillreel.fleet.budget"
    assert bell.events[0]["resource"]["prefect.resource.id"] == "stillreel.fleet.main"


def test_what_prefect_does_not_hear_is_in_the_log_and_not_said_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bell = FakeBell(is_away=True)
    with caplog.at_level(logging.WARNING):
        assert tell(bell, 30.0) == [50]
    assert "50 % of the month's budget" in caplog.text
    assert tell(bell, 30.0) == []


def test_levels_of_a_budget_that_was_raised_are_said_again() -> None:
    bell = FakeBell()
    for budget in (50.0, 62.5, 62.5):
        tell_budget(bell, Money(55.0), budget_usd=budget, installation="main", now=NOW)
    assert [event["payload"]["level"] for event in bell.events] == [50, 80, 100, 50, 80]


def test_no_budget_at_all_says_nothing_by_itself() -> None:
    bell = FakeBell()
    assert tell_budget(bell, Money(0.0), budget_usd=0.0, installation="main", now=NOW) == []
