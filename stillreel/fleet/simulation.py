"""A year of renting on a virtual clock: what a rule costs, and how long jobs wait for it.

Orders, prices and interruptions are made up from a seed; the rule and the cost of a batch are the
real ones. It compares policies with each other and foretells no bill.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from statistics import fmean

from stillreel.fleet.decision import Crew, Money, Rule, Waiting, decide
from stillreel.fleet.offers import GB_A_JOB
from stillreel.fleet.provider import Need, Offer
from stillreel.fleet.ranking import Batch, priced

HOURS = 365 * 24
WEEK = 7 * 24.0
DAY_SHARE = 0.8
"""How much more is ordered by day than by night, as a share of the mean."""
SPOT_SHARE = 0.55
"""Of the on-demand price; made up, as all prices here."""
HOURS_TO_INTERRUPTION = 12.0
NEVER_READY = 0.05
"""Share of hosts that do not come to work."""
INET_DOWN = 800.0
LIFE_HOURS = 4.0
IDLE_HOURS = 5 / 60
DUD_HOURS = 20 / 60
"""When a host that does not come to work is given up."""


@dataclass(frozen=True)
class Policy:
    """When the rule is asked, and what is rented then."""

    name: str
    every_hours: float
    rule: Rule
    interruptible: bool = False
    hosts: int = 1
    """Most at once."""
    work_hours: float = 2.0
    """Of what is open, for each host: with more, another is rented."""


@dataclass(frozen=True)
class Year:
    """What happens in a year, the same for every policy. Times are hours since its start."""

    orders: Sequence[float]
    prices: Sequence[float]
    """US$ of an on-demand hour, by hour."""
    seed: int


@dataclass
class Outcome:
    """What a policy came to."""

    policy: Policy
    usd: float = 0.0
    host_hours: float = 0.0
    hosts: int = 0
    interruptions: int = 0
    waits: list[float] = field(default_factory=list)
    """Hours from order to video."""

    @property
    def usd_per_video(self) -> float:
        return self.usd / len(self.waits) if self.waits else math.nan

    @property
    def mean_wait(self) -> float:
        return fmean(self.waits) if self.waits else math.nan

    @property
    def p95_wait(self) -> float:
        return sorted(self.waits)[int(len(self.waits) * 0.95)] if self.waits else math.nan


def make_year(*, orders_a_month: int, usd_per_hour: float, seed: int) -> Year:
    """A year of orders, more by day than by night, and of prices around this one."""
    dice = random.Random(seed)  # noqa: S311 - a simulation
    rate = orders_a_month * 12 / HOURS
    most = rate * (1 + DAY_SHARE)
    orders: list[float] = []
    at = dice.expovariate(most)
    while at < HOURS:
        now = rate * (1 + DAY_SHARE * math.sin(2 * math.pi * (at % 24 - 8) / 24))
        if dice.random() < now / most:
            orders.append(at)
        at += dice.expovariate(most)
    prices, drift = list[float](), 0.0
    for _ in range(HOURS):
        drift = 0.97 * drift + dice.gauss(0, 0.04)
        prices.append(usd_per_hour * math.exp(drift))
    return Year(orders, prices, seed)


def simulate(policy: Policy, year: Year, need: Need, *, seconds_per_job: float) -> Outcome:
    """What this policy comes to in this year."""
    run = _Run(policy, year, need, seconds_per_job / 3600)
    at = 0.0
    while at < HOURS and run.done < len(year.orders):
        at = max(at, run.free_at)
        at = math.ceil(at / policy.every_hours - 1e-9) * policy.every_hours
        run.ask(at)
        at += policy.every_hours
    return run.outcome


def policies(rule: Rule) -> list[Policy]:
    """Those that are compared: the design document's, ours, and what else a schedule allows."""
    never = timedelta(days=10_000)
    first = replace(rule, threshold=10, oldest=never, deadline=timedelta(0))
    return [
        Policy("the design's: weekly from 10 on", WEEK, first),
        Policy("ours: weekly, 10 or a week old", WEEK, rule),
        Policy("ours, interruptible first", WEEK, rule, interruptible=True),
        *(
            Policy(
                f"hourly from {n} on{', interruptible' if spot else ''}",
                1.0,
                replace(rule, threshold=n),
                interruptible=spot,
            )
            for spot in (False, True)
            for n in (10, 50, 200)
        ),
        *(
            Policy(
                f"weekly, {n} hosts from {hours:g} h of work each",
                WEEK,
                rule,
                interruptible=True,
                hosts=n,
                work_hours=hours,
            )
            for n, hours in ((3, 1.0), (10, 0.5))
        ),
    ]


def table(outcomes: Sequence[Outcome]) -> list[dict[str, str | float | int]]:
    """A row per policy."""
    return [
        {
            "policy": one.policy.name,
            "videos": len(one.waits),
            "usd": round(one.usd, 2),
            "usd_per_video": round(one.usd_per_video, 4),
            "mean_wait_h": round(one.mean_wait, 1),
            "p95_wait_h": round(one.p95_wait, 1),
            "hosts": one.hosts,
            "host_hours": round(one.host_hours, 1),
            "interruptions": one.interruptions,
        }
        for one in outcomes
    ]


def plot(outcomes: Sequence[Outcome], *, width: int = 60, height: int = 12) -> str:
    """US$ per video over the mean waiting time (its logarithm), a letter per policy."""
    points = [(math.log10(max(one.mean_wait, 0.1)), one.usd_per_video) for one in outcomes]
    (left, right), (low, high) = (_range([p[axis] for p in points]) for axis in (0, 1))
    grid = [[" "] * width for _ in range(height)]
    for letter, (x, y) in zip("abcdefghijklmnopqrstuvwxyz", points, strict=False):
        column = round((x - left) / (right - left) * (width - 1))
        row = round((high - y) / (high - low) * (height - 1))
        grid[row][column] = letter if grid[row][column] == " " else "*"
    lines = [f"{high:7.4f} |", *[" " * 7 + " |"] * (height - 2), f"{low:7.4f} |"]
    rows = [head + "".join(cells).rstrip() for head, cells in zip(lines, grid, strict=True)]
    axis = f"{'':8}+{'-' * width}\n{'':9}{10**left:<{width - 8}.1f}{10**right:8.1f}"
    names = [f"  {c}  {one.policy.name}" for c, one in zip("abcdefghijkl", outcomes, strict=False)]
    return "\n".join(["US$ per video", *rows, axis, "mean wait in hours", *names])


@dataclass
class _Host:
    """A rented host; times are hours since the start of the year."""

    offer: Offer
    since: float
    free: float
    """When it can take a job; never, of one that does not come to work."""
    ends: float
    cut: float
    """When it is interrupted."""

    @property
    def last(self) -> float:
        return min(self.ends, self.cut)


class _Run:
    """One policy on its way through the year."""

    def __init__(self, policy: Policy, year: Year, need: Need, job_hours: float) -> None:
        self.policy, self.year, self.need, self.job_hours = policy, year, need, job_hours
        self.outcome = Outcome(policy)
        self.done = 0
        self.free_at = 0.0
        self._dice = random.Random(year.seed + 1)  # noqa: S311 - a simulation
        self._month, self._spent = 0, 0.0
        self._interruptible = policy.interruptible
        self._crew: list[_Host] = []

    def ask(self, at: float) -> None:
        """Ask the rule at this time, and do what it says until the last host is gone."""
        if (month := int(at / (HOURS / 12))) != self._month:
            self._month, self._spent = month, 0.0
        self._interruptible, started = self.policy.interruptible, False
        while (host := self._rent(at, now=started)) is not None:
            started = True
            at, goes_on = self._drain(host)
            self.free_at = at
            if not goes_on:
                return

    def _rent(self, at: float, *, now: bool = False, crew: Crew | None = None) -> _Host | None:
        """Another host, if the rule says so."""
        count = bisect_right(self.year.orders, at) - self.done
        if count <= 0:
            return None
        offer = self._offer(at, interruptible=self._interruptible)
        best = priced(
            offer, Batch(count * self.job_hours, down_gb=self.need.weights_gb + count * GB_A_JOB)
        )
        decision = decide(
            Waiting(count, timedelta(hours=at - self.year.orders[self.done])),
            self.policy.rule,
            best=best,
            reserve_usd=LIFE_HOURS * offer.usd_per_hour,
            money=Money(
                self._spent, sum(LIFE_HOURS * one.offer.usd_per_hour for one in self._crew)
            ),
            now=now,
            crew=crew,
        )
        return self._boot(at, offer) if decision.rent else None

    def _boot(self, at: float, offer: Offer) -> _Host:
        self.outcome.hosts += 1
        boot = priced(offer, Batch(0.0, down_gb=self.need.weights_gb, idle_hours=0.0)).hours
        is_dud = self._dice.random() < NEVER_READY
        ends = at + (DUD_HOURS if is_dud else LIFE_HOURS)
        cut = math.inf
        if offer.is_interruptible and not is_dud:
            cut = at + self._dice.expovariate(1 / HOURS_TO_INTERRUPTION)
        return _Host(offer, at, math.inf if is_dud else at + boot, ends, cut)

    def _drain(self, first: _Host) -> tuple[float, bool]:
        """When the last host is gone, and whether it left work behind."""
        at, goes_on, crew = 0.0, False, self._crew
        crew.append(first)
        while crew:
            host = min(crew, key=lambda one: min(one.free, one.last))
            now = min(host.free, host.last)
            if len(crew) < self.policy.hosts and self.done < len(self.year.orders):
                open_now = bisect_right(self.year.orders, now) - self.done
                work = Crew(len(crew), open_now * self.job_hours, self.policy.work_hours)
                if more := self._rent(now, crew=work):
                    crew.append(more)
                    continue
            arrived = bisect_right(self.year.orders, now + IDLE_HOURS)
            if self.done < arrived and now < host.last:
                start = max(now, self.year.orders[self.done])
                if start + self.job_hours <= host.last:
                    host.free = start + self.job_hours
                    self.outcome.waits.append(host.free - self.year.orders[self.done])
                    self.done += 1
                    continue
                end, goes_on = host.last, True
            else:
                end = min(now + IDLE_HOURS, host.last)
                goes_on = math.isinf(host.free) or host.cut <= end
            crew.remove(host)
            at = max(at, self._pay(host, end))
        return at, goes_on

    def _pay(self, host: _Host, end: float) -> float:
        if host.cut <= end:
            self.outcome.interruptions += 1
            self._interruptible = False
        usd = (end - host.since) * host.offer.usd_per_hour
        self.outcome.usd += usd
        self._spent += usd
        self.outcome.host_hours += end - host.since
        return end

    def _offer(self, at: float, *, interruptible: bool) -> Offer:
        price = self.year.prices[min(int(at), HOURS - 1)]
        return Offer(
            "simulated",
            self.need.provider,
            price * (SPOT_SHARE if interruptible else 1.0),
            inet_down=INET_DOWN,
            is_interruptible=interruptible,
        )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1.0, high + 1.0)
