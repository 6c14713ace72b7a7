"""The month's budget is running out: said once for each level, in the log and to Prefect."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Final, Protocol
from uuid import uuid4

from stillreel.audit import Event, event_of
from stillreel.errors import PrefectRefused, PrefectUnavailable
from stillreel.fleet.calls import PrefectCalls
from stillreel.fleet.decision import Money

LEVELS: Final = (50, 80, 100)
"""Percent of the month's budget."""
EVENT: Final = "fleet.budget"

log = logging.getLogger("stillreel.fleet")


class Bell(Protocol):
    """What remembers that something was said, and says it. See `PrefectBell`."""

    def is_first(self, name: str) -> bool: ...
    def ring(self, event: Event) -> None: ...


class PrefectBell:
    """Remembers in Prefect's variables, and rings as a Prefect event.

    Raises PrefectUnavailable, PrefectRefused.
    """

    def __init__(self, calls: PrefectCalls) -> None:
        self._calls = calls

    def is_first(self, name: str) -> bool:
        """Whether nobody has asked so before, on any machine."""
        return self._calls.make_variable(name, uuid4().hex)

    def ring(self, event: Event) -> None:
        """Give the event to Prefect, where an automation can send it on."""
        self._calls.ask("/events", [event])


def tell_budget(
    bell: Bell,
    money: Money,
    *,
    budget_usd: float,
    installation: str,
    now: datetime,
    is_used_up: bool = False,
) -> list[int]:
    """Say which levels the money that is spent has reached; gives those that are said now.

    `is_used_up`: what is left was not enough for another host. Raises PrefectUnavailable,
    PrefectRefused.
    """
    said: list[int] = []
    for level in LEVELS:
        is_reached = money.spent_usd * 100 >= budget_usd * level > 0
        if not (is_reached or (is_used_up and level == LEVELS[-1])):
            continue
        cents = round(budget_usd * 100)  # of another budget it is said again
        if not bell.is_first(f"stillreel_budget_{installation}_{now:%Y_%m}_{cents}_{level}"):
            continue
        words = _words(level, money, budget_usd)
        log.warning("%s", words)
        facts = {
            "level": level,
            "message": words,
            "spent_usd": round(money.spent_usd, 4),
            "promised_usd": round(money.reserved_usd, 4),
            "budget_usd": budget_usd,
            "month": f"{now:%Y-%m}",
        }
        resource = f"stillreel.fleet.{installation}"
        event = event_of(EVENT, facts, at=now)
        event["resource"] = {"prefect.resource.id": resource, "prefect.resource.name": installation}
        try:
            bell.ring(event)
        except (PrefectUnavailable, PrefectRefused) as exc:  # the log has it, and it is said once
            log.warning("Prefect was not told about the budget: %s", exc.message)
        said.append(level)
    return said


def _words(level: int, money: Money, budget_usd: float) -> str:
    spent = f"US$ {money.spent_usd:.2f} spent, {money.reserved_usd:.2f} promised"
    if level >= LEVELS[-1]:
        return (
            f"the month's budget of US$ {budget_usd:.2f} for rented hosts is used up ({spent}): no "
            "host is rented until the next month, unless STILLREEL_MONTH_BUDGET_USD is raised"
        )
    return f"{level} % of the month's budget of US$ {budget_usd:.2f} is used ({spent})"
