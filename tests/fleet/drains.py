"""Drains in a world of their own, for tests: what they are made of, and how they are killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from stillreel.fleet.decision import Rule
from stillreel.fleet.drain import Drain
from stillreel.fleet.limits import Limits, Order
from stillreel.fleet.needs import NEEDS
from stillreel.fleet.reaper import reap
from stillreel.fleet.report import End, Report
from tests.fleet.fake_world import (
    START,
    FakeBook,
    FakeJobs,
    FakeProvider,
    Killed,
    World,
)
from tests.fleet.test_ranking import GOOD

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)

LIFE = 4 * HOUR


LIMITS = Limits(
    rule=Rule(threshold=10, oldest=168 * HOUR, deadline=24 * HOUR, month_budget_usd=50.0),
    usd_per_hour_max=1.2,
    interruptible=False,
    boot=20 * MINUTE,
    life=LIFE,
    idle=5 * MINUTE,
    contact=15 * MINUTE,
    progress=45 * MINUTE,
)


OFFERS = [
    replace(GOOD, id=str(n), machine=f"m{n}", usd_per_hour=0.6 + n / 100, provider="fake")
    for n in range(1, 9)
]


RUN = str(UUID(int=7))


class Setup:
    """A world with a provider, jobs and a book, and drains in it."""

    def __init__(self, jobs: int = 12, **world: Any) -> None:
        self.world = World(waiting_jobs=jobs, **world)
        self.provider = FakeProvider(self.world, OFFERS)
        self.jobs = FakeJobs(self.world)
        self.book = FakeBook()
        self.total = jobs

    def drain(
        self,
        run_id: str = RUN,
        *,
        now: bool = False,
        limits: Limits = LIMITS,
        env: Callable[..., dict[str, str]] = lambda *_: {},
        is_handed_over: Callable[[BaseException], bool] = lambda exc: isinstance(exc, Killed),
    ) -> Drain:
        """A drain; one that is killed cleans nothing up, as a dead process does not."""
        if run_id not in self.book.leases:
            self.book.start(run_id)
        order = Order(run_id, "main", "a100", NEEDS["ltx-2"], 60.0, env, now=now)
        return Drain(
            order,
            limits,
            provider=self.provider,
            jobs=self.jobs,
            book=self.book.again(),
            clock=self.world,
            is_handed_over=is_handed_over,
        )

    def reap(self) -> list[str]:
        """What a round of the reaper destroys."""
        found = reap(self.provider, self.book, installation="main", life=LIFE, clock=self.world)
        return [one.reason for one in found if one.done]

    def live_on(self, span: timedelta) -> None:
        """Let the time pass, with the reaper at work every five minutes."""
        until = self.world.at + span
        while self.world.at < until:
            self.world.sleep(300)
            if self.book.leases and not self.book.is_away:
                self.reap()


def check(it: Setup, report: Report, *, end: End = End.DRAINED, hosts: int = 1) -> None:
    assert report.outcome == end
    assert len(report.stays) == hosts
    assert it.world.living() == []
    assert it.book.leases[RUN].reserved_usd == 0
    assert it.book.leases[RUN].usd == pytest.approx(report.usd(it.world.at))


MOMENTS: dict[str, Callable[[Setup], None]] = {
    "before the create": lambda it: it.provider.faults["create"].append("killed before"),
    "after the create": lambda it: it.provider.faults["create"].append("killed after"),
    "while it boots": lambda it: die_when(it, lambda w: w.at > w.hosts[0].born + MINUTE),
    "while it works": lambda it: die_when(it, lambda w: w.videos == 5),
    "while it is idle": lambda it: die_when(it, lambda w: w.videos == it.total and w.living()),
    "before the destroy": lambda it: it.provider.faults["destroy"].append(Killed()),
}


def die_when(it: Setup, moment: Callable[[World], Any]) -> None:
    dead: list[bool] = []

    def step(world: World) -> None:
        if not dead and world.hosts and moment(world):
            dead.append(True)
            raise Killed

    it.world.on_step = step


def once(it: Setup, moment: Callable[[World], Any], act: Callable[[], Any]) -> None:
    """Do this at the first step at which the moment has come."""
    done: list[bool] = []

    def step(world: World) -> None:
        if not done and world.hosts and moment(world):
            done.append(True)
            act()

    it.world.on_step = step


def raise_(error: BaseException) -> None:
    raise error


def next_drain(it: Setup) -> Drain:
    """The drain of an hour later; that before is over."""
    for run_id in it.book.leases:
        it.book.change(run_id, is_over=True, is_running=False)
    it.world.at += HOUR
    run_id = str(uuid4())
    it.book.start(run_id, started_at=it.world.at)
    return it.drain(run_id)


def count(it: Setup) -> tuple[int, int, int]:
    """Hosts that outlived their deadline or live, that lived at once, and jobs that are nowhere."""
    spans = [(host.born, host.gone_at or it.world.at) for host in it.world.hosts]
    double = sum(
        one[0] < other[1] and other[0] < one[1]
        for n, one in enumerate(spans)
        for other in spans[n + 1 :]
    )
    kept = it.world.videos + it.world.waiting_jobs + it.world.working_jobs
    late = sum(
        host.lives or (host.gone_at or START) > host.boot.deadline for host in it.world.hosts
    )
    return late, double, it.total - kept
