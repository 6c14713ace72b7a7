"""What costs money unseen: answers that lie, clocks that differ, processes that stand still."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from stillreel.errors import HostFailed, HostUndestroyed, LeaseLost, PrefectUnavailable
from stillreel.fleet.labels import MOST
from stillreel.fleet.leases import LEASE, LONGEST, Asked, Lease, money_of
from stillreel.fleet.report import End
from tests.fleet.drains import (
    HOUR,
    LIFE,
    LIMITS,
    MINUTE,
    MOMENTS,
    RUN,
    Setup,
    check,
    once,
    raise_,
)
from tests.fleet.fake_world import START, Killed, World

OTHER = str(uuid4())


def begin_another(it: Setup) -> None:
    """Another drain of the pool begins, as it may when this one has been silent for too long."""
    it.book.start(OTHER, pool="a100", beat_at=it.world.at)


# --- a process stands still -----------------------------------------------------------------------


def test_one_that_stood_still_while_it_searched_rents_nothing_beside_another() -> None:
    it = Setup(12)
    offers = it.provider.offers

    def slow(*args: Any, **more: Any) -> Any:
        it.world.at += 20 * MINUTE
        begin_another(it)
        return offers(*args, **more)

    it.provider.offers = slow
    with pytest.raises(LeaseLost):
        it.drain().run()
    assert it.provider.creates == []


def test_one_that_stood_still_after_its_promise_rents_nothing_beside_another() -> None:
    it = Setup(12)
    drain = it.drain()
    order = drain._order

    def slow(*_: Any) -> dict[str, str]:
        it.world.at += 20 * MINUTE
        begin_another(it)
        return {}

    drain._order = replace(order, env=slow)
    with pytest.raises(LeaseLost):
        drain.run()
    assert it.provider.creates == []
    assert it.book.leases[RUN].is_settled


def test_a_promise_stands_while_its_create_is_under_way() -> None:
    """A beat in between does not take it back."""
    it = Setup(12)
    drain, create = it.drain(), it.provider.create
    seen: list[float] = []

    def slow(*_: Any) -> dict[str, str]:
        it.world.at += 2 * MINUTE
        return {}

    def look(*args: Any) -> Any:
        seen.append(it.book.leases[RUN].reserved_usd)
        return create(*args)

    drain._order = replace(drain._order, env=slow)
    it.provider.create = look
    drain.run()
    assert seen == [pytest.approx(it.book.leases[RUN].usd_per_hour * 4, rel=0.05)]


def test_a_decision_that_took_longer_than_its_lock_is_made_again() -> None:
    it = Setup(12)
    rule = replace(LIMITS.rule, month_budget_usd=3.0)
    it.book.on_lost = lambda: it.book.start(
        OTHER, pool="g5", number=1, beat_at=it.world.at, reserved_usd=2.5
    )
    report = it.drain(limits=replace(LIMITS, rule=rule)).run()
    assert it.provider.creates == []
    assert report.is_over_budget
    assert it.book.leases[RUN].hosts == ()


def test_a_decision_that_never_keeps_its_lock_rents_nothing() -> None:
    it = Setup(12)
    it.book.on_lost = lambda: None
    it.book.loses = 99
    with pytest.raises(PrefectUnavailable, match="took longer"):
        it.drain().run()
    assert it.provider.creates == []
    assert it.book.leases[RUN].is_settled


def test_what_a_predecessor_asked_for_in_the_last_moment_is_known_to_its_successor() -> None:
    """Between the successor's first look and its claim; else one label would name two machines."""
    it = Setup(12, ends_itself=False)
    drain = it.drain()
    book = drain._book
    claim = book.claim

    def late(*args: Any) -> Any:
        it.book.change(RUN, number=1, asked=(Asked(1, START + LIFE, 0.61, START),))
        return claim(*args)

    book.claim = late
    drain.run()
    assert [label.rpartition("-")[2] for label in it.provider.creates] == ["2"]


# --- the provider lies ----------------------------------------------------------------------------


def test_a_young_host_that_is_given_back_at_once_is_looked_for_until_it_shows() -> None:
    """Right after the create every call may answer that there is no such machine."""
    it = Setup(12, ends_itself=False)
    it.provider.lag = 60.0
    it.provider.is_blind = True
    create = it.provider.create

    def then_cancel(*args: Any) -> Any:
        host = create(*args)
        it.jobs.away = lambda: (_ for _ in ()).throw(ValueError("a bug"))
        return host

    it.provider.create = then_cancel
    with pytest.raises(ValueError, match="a bug"):
        it.drain().run()
    assert it.world.hosts
    assert it.world.living() == []


def test_a_host_that_is_listed_is_not_gone_whatever_a_look_at_it_says() -> None:
    """A path that has moved answers 404 to everything; the list is another path."""
    it = Setup(12, ends_itself=False)
    it.provider.faults["destroy"].extend(["lost"] * 1000)
    it.provider.faults["get"].extend(["absent"] * 1000)
    with pytest.raises(HostUndestroyed):
        it.drain().run()
    assert not it.book.leases[RUN].is_settled


def test_a_machine_that_appears_after_it_was_given_up_is_given_back_at_once() -> None:
    """Without any reaper."""
    it = Setup(100, ends_itself=False)
    it.provider.faults["create"].append("lost answer")
    it.provider.lag = 300.0
    check(it, it.drain().run())
    first, second = it.world.hosts
    assert first.gone_at
    assert first.gone_at - first.born < 7 * MINUTE
    assert second.gone_at
    assert second.gone_at - second.born > HOUR


def test_one_that_cannot_be_destroyed_keeps_no_other_waiting() -> None:
    it = Setup(400, ends_itself=False)
    destroy = it.provider.destroy
    stuck: list[str] = []

    def refuse(host_id: str) -> None:
        if host_id != "h1":
            destroy(host_id)

    def bug(world: World) -> None:
        if len(world.living()) == 3 and world.videos > 150 and not stuck:
            stuck.append("now")
            it.provider.destroy = refuse
            raise ValueError("a bug")

    it.world.on_step = bug
    began: list[datetime] = []
    drain = it.drain(limits=replace(LIMITS, hosts=3))
    clear_up = drain._clear_up

    def noted() -> None:
        began.append(it.world.at)
        clear_up()

    drain._clear_up = noted
    with pytest.raises(HostUndestroyed, match="h1"):
        drain.run()
    for host in it.world.hosts[1:]:
        assert host.gone_at
        assert host.gone_at - began[0] < MINUTE


# --- how long, how many ---------------------------------------------------------------------------


def test_a_drain_with_several_hosts_ends_as_well() -> None:
    """What is remembered of a drain that began long ago would else not hold."""
    it = Setup(100_000)
    once(it, lambda w: w.at > START + LONGEST, lambda: raise_(Killed()))
    report = it.drain(
        limits=replace(LIMITS, hosts=2, rule=replace(LIMITS.rule, month_budget_usd=1000.0))
    ).run()
    assert report.outcome == End.DEADLINE
    assert it.world.at - START < 2 * LIFE + HOUR
    assert it.world.living() == []


def test_a_drain_asks_for_no_machine_that_its_label_cannot_name() -> None:
    it = Setup(12)
    it.book.start(RUN, number=MOST, asked=())
    with pytest.raises(HostFailed, match=str(MOST)):
        it.drain().run()
    assert it.provider.creates == []


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [11 * MINUTE, HOUR, -11 * MINUTE, -HOUR])
def test_a_drain_whose_clock_is_wrong_leaves_a_living_one_its_pool(behind: timedelta) -> None:
    it = Setup(12)

    def beat(world: World) -> None:
        it.book.change(OTHER, beat_at=world.at - behind)

    it.book.start(OTHER, pool="a100", beat_at=it.world.at - behind)
    it.world.on_step = beat
    assert it.drain().run().outcome == "already draining"
    assert it.provider.creates == []


@pytest.mark.parametrize("ahead", [HOUR, 24 * HOUR])
def test_a_dead_drain_whose_clock_was_ahead_keeps_no_host_and_no_pool(ahead: timedelta) -> None:
    it = Setup(12, ends_itself=False)
    MOMENTS["while it works"](it)
    with pytest.raises(Killed):
        it.drain().run()
    it.book.change(RUN, beat_at=it.world.at + ahead)
    it.world.at += LEASE
    assert it.reap() == ["its drain has not been heard of"]
    assert it.drain(OTHER, now=True).run().outcome == End.DRAINED


# --- the month ------------------------------------------------------------------------------------

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)


def lease(**values: Any) -> Lease:
    base = Lease("r", "a100", False, True, 1, None, None, 0.6, 0.0, 0.0, ())
    return replace(base, **values)


def test_what_a_dead_drain_of_last_month_may_still_cost_counts_in_this() -> None:
    began = NEW_YEAR - MINUTE
    dead = lease(started_at=began, until=began + LIFE, reserved_usd=2.4, usd=0.1, is_over=True)
    assert money_of([dead], but="", now=NEW_YEAR + MINUTE).reserved_usd == pytest.approx(2.3)
    over = replace(dead, reserved_usd=0.0)
    assert money_of([over], but="", now=NEW_YEAR + MINUTE).reserved_usd == 0
    old = replace(dead, started_at=began - 24 * HOUR, until=began - 20 * HOUR)
    assert money_of([old], but="", now=NEW_YEAR + MINUTE).reserved_usd == 0
