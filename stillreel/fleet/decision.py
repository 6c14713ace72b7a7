"""Whether to rent now: a rule that a person can read, and its reasons in plain lines."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from stillreel.fleet.ranking import Ranked

BUDGET = "the month's budget allows it"
CIRCUIT = "hosts come to work"
BREAKS_AT = 3
"""Hosts in a row that did not come to work: then none is rented until a person has looked."""


@dataclass(frozen=True)
class Waiting:
    """The jobs that wait for a pool."""

    count: int
    oldest: timedelta = timedelta(0)
    """How long the first of them has waited."""
    soonest_deadline: timedelta | None = None
    """Until the first deadline of a waiting job; None without any."""


@dataclass(frozen=True)
class Rule:
    """When renting pays; see the settings of the fleet."""

    threshold: int
    oldest: timedelta
    deadline: timedelta
    month_budget_usd: float


@dataclass(frozen=True)
class Money:
    """What this month has cost so far and what is promised to hosts that live."""

    spent_usd: float
    reserved_usd: float = 0.0


@dataclass(frozen=True)
class Line:
    """One part of the rule, applied."""

    name: str
    fact: str
    limit: str
    holds: bool


@dataclass(frozen=True)
class Decision:
    """What the rule says, and every line of it."""

    rent: bool
    reason: str
    lines: tuple[Line, ...]

    @property
    def is_circuit_open(self) -> bool:
        """Whether nothing is rented until a person has looked."""
        return any(line.name == CIRCUIT and not line.holds for line in self.lines)

    @property
    def is_over_budget(self) -> bool:
        """Whether a host would be rented if the month's budget allowed it."""
        return not self.rent and self.reason == _not(BUDGET)

    def explain(self) -> str:
        """The rule as a table, and what follows from it."""
        width = max(len(line.name) for line in self.lines)
        rows = [
            f"{'yes' if line.holds else 'no ':<3}  {line.name:<{width}}  "
            f"{line.fact} (limit: {line.limit})"
            for line in self.lines
        ]
        return "\n".join([*rows, f"=> {'rent' if self.rent else 'do not rent'}: {self.reason}"])


@dataclass(frozen=True)
class Crew:
    """The hosts that a drain has, and the work that is open for them."""

    hosts: int
    work_hours: float
    """Of all that is open."""
    hours_each: float
    """With more than this for each, another host is rented."""


def decide(
    waiting: Waiting,
    rule: Rule,
    *,
    best: Ranked | None,
    reserve_usd: float,
    money: Money,
    now: bool = False,
    failed_boots: int = 0,
    pool: str = "",
    crew: Crew | None = None,
) -> Decision:
    """Whether to rent the best offer.

    One of the triggers must hold, and everything after them. `now`: a person asks, so one waiting
    job is enough. `failed_boots` hosts of `pool` in a row did not come to work, see `circuit`.
    `reserve_usd` is what the drain costs if its hosts live to their deadlines. `crew`: the drain
    has hosts, and asks for another.
    """
    triggers = _triggers(waiting, rule, now=now, crew=crew)
    total = money.spent_usd + money.reserved_usd + reserve_usd
    needed = (
        Line(
            CIRCUIT,
            f"{failed_boots} in a row did not",
            f"fewer than {BREAKS_AT}",
            failed_boots < BREAKS_AT,
        ),
        Line(
            "an offer fits",
            "none" if best is None else _offer(best),
            "price cap and the model's need",
            best is not None,
        ),
        Line(
            BUDGET,
            f"US$ {money.spent_usd:.2f} spent + {money.reserved_usd:.2f} promised "
            f"+ {reserve_usd:.2f} at most for this host",
            f"US$ {rule.month_budget_usd:.2f}",
            total <= rule.month_budget_usd,
        ),
    )
    lines = (*triggers, *needed)
    if not waiting.count:
        return Decision(False, "nothing waits", lines)
    if not any(line.holds for line in triggers):
        return Decision(False, "it does not pay yet", lines)
    for line in needed:
        if not line.holds:
            is_circuit = line.name == CIRCUIT
            reason = words(pool, failed_boots) if is_circuit else _not(line.name)
            return Decision(False, reason, lines)
    return Decision(True, next(line.name for line in triggers if line.holds), lines)


def is_triggered(
    waiting: Waiting, rule: Rule, *, now: bool = False, crew: Crew | None = None
) -> bool:
    """Whether an offer is to be looked for at all; providers count searches."""
    return waiting.count > 0 and any(x.holds for x in _triggers(waiting, rule, now=now, crew=crew))


def _triggers(waiting: Waiting, rule: Rule, *, now: bool, crew: Crew | None) -> tuple[Line, ...]:
    if crew:
        each = crew.work_hours / crew.hosts
        return (
            Line(
                "the hosts need long",
                f"{each:.1f} h of work for each of {crew.hosts}",
                f"more than {crew.hours_each:.1f} h",
                each > crew.hours_each,
            ),
        )
    soonest = waiting.soonest_deadline
    return (
        Line(
            "enough jobs wait",
            str(waiting.count),
            "1, asked for by a person" if now else f"{rule.threshold} or more",
            waiting.count >= (1 if now else rule.threshold),
        ),
        Line(
            "the oldest waits long",
            _hours(waiting.oldest) if waiting.count else "none waits",
            f"{_hours(rule.oldest)} or more",
            waiting.count > 0 and waiting.oldest >= rule.oldest,
        ),
        Line(
            "a deadline is near",
            "none" if soonest is None else f"in {_hours(soonest)}",
            f"{_hours(rule.deadline)} or less",
            waiting.count > 0 and soonest is not None and soonest <= rule.deadline,
        ),
    )


def words(pool: str, failed: int) -> str:
    """What is wrong with a pool whose hosts do not come to work, and how it is rented for again."""
    return (
        f"{failed} hosts in a row did not come to work; look at the image, at the log of the last "
        f"one and at what the provider says, then `stillreel fleet resume {pool}`"
    )


def _not(name: str) -> str:
    return f"not so: {name}"


def _offer(best: Ranked) -> str:
    return (
        f"{best.offer.provider} {best.offer.id}, {best.offer.gpu_name or 'no GPU'}, "
        f"US$ {best.offer.usd_per_hour:.3f}/h, {best.hours:.2f} h, US$ {best.usd:.2f} in all"
    )


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:.1f} h"
