"""Several hosts of one drain: when another is rented, and that all of them go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from stillreel.errors import ProviderRefused
from stillreel.fleet.provider import HostState
from stillreel.fleet.report import End
from tests.fleet.drains import (
    HOUR,
    LIMITS,
    MINUTE,
    OFFERS,
    RUN,
    Setup,
    check,
    once,
    raise_,
)
from tests.fleet.fake_world import (
    START,
    Killed,
    World,
    unavailable,
)

MANY = replace(LIMITS, hosts=3, work_hours=2.0)


def most_at_once(it: Setup) -> int:
    """Hosts that lived at the same time, at most."""
    births = [host.born for host in it.world.hosts]
    ends = [host.gone_at or it.world.at for host in it.world.hosts]
    spans = list(zip(births, ends, strict=True))
    return max(sum(born <= at < end for born, end in spans) for at in births)


def test_more_hosts_work_on_much_and_all_are_given_back() -> None:
    it = Setup(400)
    reaped: list[str] = []
    it.world.on_step = lambda _: reaped.extend(it.reap())
    report = it.drain(limits=MANY).run()
    check(it, report, hosts=3)
    assert most_at_once(it) == 3
    assert it.world.videos == 400
    assert {stay.end for stay in report.stays} == {End.DRAINED}
    assert it.world.at - START < 3.5 * HOUR  # one alone would need 7
    assert report.usd(it.world.at) == pytest.approx(it.world.usd(), rel=0.02)
    assert reaped == []


def test_one_host_is_enough_where_no_more_are_allowed_or_the_work_is_short() -> None:
    for jobs, limits in ((400, LIMITS), (100, MANY)):
        it = Setup(jobs)
        it.drain(limits=limits).run()
        assert most_at_once(it) == 1


def test_the_budget_counts_every_host_of_a_drain() -> None:
    it = Setup(400)
    rule = replace(LIMITS.rule, month_budget_usd=5.0)  # two hosts of four hours, and not three
    it.drain(limits=replace(MANY, rule=rule)).run()
    assert most_at_once(it) == 2


def test_a_host_that_is_idle_while_another_works_ends_and_has_not_failed() -> None:
    it = Setup(400)

    def long_last_job(world: World) -> None:
        if world.waiting_jobs and len(world.hosts) == 3:
            world.hosts[0].job_seconds = 60.0 if world.waiting_jobs > 10 else 1200.0

    it.world.on_step = long_last_job
    report = it.drain(limits=MANY).run()
    check(it, report, hosts=3)
    assert {stay.end for stay in report.stays} == {End.DRAINED}
    assert it.book.leases[RUN].bad_machines == ()
    ends = sorted(host.gone_at or START for host in it.world.hosts)
    assert ends[-1] - ends[0] > 10 * MINUTE


def test_where_no_other_host_is_to_be_had_those_that_there_are_go_on() -> None:
    it = Setup(400)
    it.provider.on_offer = OFFERS[:1]
    report = it.drain(limits=MANY).run()
    assert len(it.world.hosts) == 1
    assert report.outcome == End.DEADLINE
    it = Setup(400)
    it.provider.faults["offers"].extend([None, *unavailable(3)])
    check(it, it.drain(limits=MANY).run(), hosts=3)


def test_a_quota_keeps_those_that_there_are_at_work() -> None:
    it = Setup(150)
    refusals = [ProviderRefused("raise the account's quota") for _ in range(60)]
    it.provider.faults["create"].extend([None, *refusals])
    check(it, it.drain(limits=MANY).run())
    assert len(it.provider.creates) > 1
    assert it.book.leases[RUN].hosts == ()


def test_a_drain_with_several_hosts_goes_on_with_all_of_them() -> None:
    it = Setup(400, ends_itself=False)
    once(it, lambda w: w.videos == 150 and len(w.living()) == 3, lambda: raise_(Killed()))
    with pytest.raises(Killed):
        it.drain(limits=MANY).run()
    assert it.reap() == []
    report = it.drain(limits=MANY).run()
    check(it, report, hosts=3)
    assert len(it.world.hosts) == 3
    assert report.usd(it.world.at) == pytest.approx(it.world.usd(), rel=0.05)


def test_a_create_of_which_nothing_is_known_ends_the_growth_and_no_host_at_work() -> None:
    it = Setup(400)
    it.provider.faults["create"].extend([None, "lost answer"])
    create, reserved = it.provider.create, list[float]()

    def away(*asked: Any) -> Any:
        if it.provider.creates:
            it.provider.faults["list"].extend(unavailable(10))
        return create(*asked)

    it.provider.create = away
    it.world.on_step = lambda _: reserved.append(it.book.leases[RUN].reserved_usd)
    report = it.drain(limits=MANY).run()
    assert len(it.world.hosts) == 2
    assert it.world.videos == 400
    assert it.world.living() == []
    assert it.book.leases[RUN].is_settled
    assert max(reserved) > 3.9 * (0.61 + 0.61)
    assert report.usd(it.world.at) >= it.world.usd()


def test_a_drain_of_the_version_before_keeps_its_host_and_gets_no_other_beside_it() -> None:
    it = Setup(200, ends_itself=False)
    once(it, lambda w: w.videos == 2, lambda: raise_(Killed()))
    with pytest.raises(Killed):
        it.drain().run()
    it.book.change(RUN, asked=None, execution="", started_at=None, videos=None)
    reaped: list[str] = []
    it.world.on_step = lambda _: reaped.extend(it.reap())
    check(it, it.drain(limits=MANY).run())
    assert reaped == []
    assert len(it.world.hosts) == 1


def test_a_lost_one_of_several_is_dismissed_and_the_others_go_on() -> None:
    it = Setup(400)
    once(
        it,
        lambda w: w.videos == 150 and len(w.living()) == 3,
        lambda: setattr(
            it.world.hosts[1], "host", replace(it.world.hosts[1].host, state=HostState.LOST)
        ),
    )
    report = it.drain(limits=MANY).run()
    assert [stay.end for stay in report.stays].count(End.LOST) == 1
    assert it.world.videos == 400
    assert it.world.living() == []


def test_providers_are_searched_only_when_there_is_a_reason() -> None:
    it, searches = Setup(9), list[str]()
    offers = it.provider.offers

    def count_search(*args: Any, **more: Any) -> Any:
        searches.append("one")
        return offers(*args, **more)

    it.provider.offers = count_search
    assert it.drain().run().outcome == "not rented"
    assert searches == []
    it.drain(str(uuid4()), now=True).run()
    assert searches == ["one"]


def test_one_look_asks_the_provider_once_however_many_hosts_there_are() -> None:
    it = Setup(400)
    it.drain(limits=MANY).run()
    assert it.provider.calls["get"] < 3 * 10  # of those that are gone
    assert it.provider.calls["list"] > 3 * 100


@pytest.mark.parametrize("method", ["list", "get"])
def test_a_provider_that_is_slow_to_fail_silences_no_drain(method: str) -> None:
    it, silent = Setup(400), list[object]()
    many = replace(LIMITS, hosts=6, work_hours=0.2)

    def look(world: World) -> None:
        if not all(lease.lives(world.at) for lease in it.book.leases.values() if lease.number):
            silent.append(world.at)

    def fail() -> None:
        it.provider.seconds = 120.0
        it.provider.faults[method].extend(unavailable(12))
        if method == "get":
            it.provider.faults["list"].extend(2 * ["absent"])

    once(it, lambda w: len(w.living()) == 6, fail)
    act = it.world.on_step
    assert act

    def step(world: World) -> None:
        if world.living():
            look(world)
        act(world)

    it.world.on_step = step
    it.drain(limits=many).run()
    assert len(it.world.hosts) >= 6
    assert silent == []
