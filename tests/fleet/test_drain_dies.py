"""Prefect or the drain itself fails: it stands still, is killed, starts again, or is taken over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from stillreel.errors import (
    LeaseLost,
    LeaseTaken,
    ProviderUnavailable,
)
from stillreel.fleet.report import End
from tests.fleet.drains import (
    HOUR,
    LIFE,
    MINUTE,
    MOMENTS,
    RUN,
    Setup,
    check,
    count,
    once,
    raise_,
)
from tests.fleet.fake_world import (
    START,
    Killed,
    World,
    unavailable,
)


def test_a_cancelled_drain_gives_its_host_back() -> None:
    it = Setup(100)

    def cancel(world: World) -> None:
        if world.videos == 5:
            it.book.change(RUN, is_running=False)

    it.world.on_step = cancel
    with pytest.raises(LeaseLost):
        it.drain().run()
    assert it.world.living() == []


def test_prefect_may_be_away_for_a_while() -> None:
    it = Setup(30)
    away = (it.world.at + 10 * MINUTE, it.world.at + 18 * MINUTE)
    it.jobs.away = it.book.away = lambda: away[0] < it.world.at < away[1]
    check(it, it.drain().run())
    assert it.world.videos == 30


def test_a_drain_that_is_cut_off_for_longer_gives_its_host_back() -> None:
    it = Setup(100)
    since = it.world.at + 10 * MINUTE
    it.jobs.away = it.book.away = lambda: it.world.at > since
    with pytest.raises(LeaseLost):
        it.drain().run()
    assert it.world.living() == []


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("hosts_end_themselves", [True, False], ids=["agent lives", "agent dead"])
def test_a_killed_drain_that_starts_again_goes_on_with_its_host(
    moment: str, hosts_end_themselves: bool
) -> None:
    it = Setup(12, ends_itself=hosts_end_themselves)
    MOMENTS[moment](it)
    if moment == "before the destroy":
        it.world.ends_itself = False
    with pytest.raises(Killed):
        it.drain().run()

    report = it.drain().run()

    assert it.book.leases[RUN].usd == pytest.approx(it.world.usd(), rel=0.15)
    assert it.world.living() == []
    assert it.world.videos == 12
    assert it.world.waiting_jobs == it.world.working_jobs == 0
    assert len(it.world.hosts) == 1  # no second rental
    assert len(it.provider.creates) == len(set(it.provider.creates))
    assert report.outcome in (End.DRAINED, "not rented")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("hosts_end_themselves", [True, False], ids=["agent lives", "agent dead"])
@pytest.mark.parametrize("lag", [0.0, 30.0], ids=["", "list lags"])
def test_a_killed_drain_that_never_starts_again_leaves_nothing_to_bill(
    moment: str, hosts_end_themselves: bool, lag: float
) -> None:
    it = Setup(12, ends_itself=hosts_end_themselves)
    it.provider.lag = lag
    MOMENTS[moment](it)
    with pytest.raises(Killed):
        it.drain().run()
    died = it.world.at

    it.live_on(30 * MINUTE)

    assert it.world.living() == []
    for host in it.world.hosts:
        assert host.gone_at
        assert host.gone_at <= died + 20 * MINUTE
    it.book.change(RUN, is_over=True, is_running=False)
    left = it.world.waiting_jobs + it.world.working_jobs
    assert left + it.world.videos == 12  # no job is lost
    it.drain(str(uuid4()), now=True).run()
    assert it.world.videos == 12
    assert it.world.living() == []


def test_a_drain_that_stood_still_while_another_began_goes_no_further() -> None:
    it = Setup(100, ends_itself=False)

    def pause() -> None:
        it.world.at += 20 * MINUTE
        it.book.start(str(uuid4()), pool="a100", beat_at=it.world.at)

    once(it, lambda w: w.videos == 5, pause)
    with pytest.raises(LeaseLost):
        it.drain().run()
    assert it.world.living() == []
    assert len(it.provider.creates) == 1


def test_a_drain_that_stood_still_alone_goes_on() -> None:
    it = Setup(30, ends_itself=False)

    def pause() -> None:
        it.world.at += 20 * MINUTE

    once(it, lambda w: w.videos == 5, pause)
    check(it, it.drain().run())


def test_a_process_whose_drain_has_gone_on_elsewhere_rents_nothing() -> None:
    it = Setup(12)

    def another_process() -> None:
        assert it.drain().run().outcome == End.DRAINED
        it.world.waiting_jobs = it.total = 12
        it.world.videos = 0

    once(it, lambda w: w.videos == 5, another_process)
    with pytest.raises(LeaseTaken):
        it.drain().run()
    assert len(it.provider.creates) == 1
    assert it.world.living() == []


def test_a_silent_drain_whose_pool_is_taken_gives_its_host_back() -> None:
    it = Setup(12, ends_itself=False)
    MOMENTS["while it works"](it)
    with pytest.raises(Killed):
        it.drain().run()
    it.world.sleep(660)
    it.book.start(str(uuid4()), pool="a100", beat_at=it.world.at)
    assert it.drain().run().outcome == "already draining"
    assert it.world.living() == []
    assert it.book.leases[RUN].is_settled


def test_a_drain_gives_back_what_a_dead_one_of_its_pool_has_before_it_rents() -> None:
    it = Setup(12, ends_itself=False)
    MOMENTS["while it boots"](it)
    with pytest.raises(Killed):
        it.drain().run()
    it.world.sleep(660)  # and no reaper is there
    it.drain(str(uuid4()), now=True).run()
    assert len(it.world.hosts) == 2
    assert count(it) == (0, 0, 0)


def test_what_was_being_made_when_we_were_told_to_stop_is_waited_for() -> None:
    it = Setup(12, ends_itself=False)
    it.provider.lag = 30.0
    it.provider.faults["create"].append("killed after")
    with pytest.raises(Killed):
        it.drain(is_handed_over=lambda _: False).run()
    assert it.world.hosts
    assert it.world.living() == []


def test_a_drain_that_was_cancelled_while_it_looked_for_offers_rents_nothing() -> None:
    it = Setup(12)
    offers = it.provider.offers

    def cancelled(*args: Any, **more: Any) -> Any:
        it.book.change(RUN, is_running=False)
        return offers(*args, **more)

    it.provider.offers = cancelled
    with pytest.raises(LeaseLost):
        it.drain().run()
    assert it.provider.creates == []


def test_a_drain_that_starts_again_counts_the_time_between_and_its_own_videos() -> None:
    it = Setup(12)
    it.book.start(RUN, started_at=START)
    it.provider.boots = {"1": 1e9}  # the first host is given back before
    MOMENTS["while it works"](it)
    with pytest.raises(Killed):
        it.drain().run()
    it.world.sleep(480)
    report = it.drain().run()
    assert report.usd(it.world.at) == pytest.approx(it.world.usd(), rel=0.04)
    assert report.started_at == START


def test_a_host_that_ended_while_nobody_watched_costs_until_then_at_most() -> None:
    it = Setup(12)
    MOMENTS["while it works"](it)
    with pytest.raises(Killed):
        it.drain().run()
    it.world.sleep(3600)
    report = it.drain().run()
    assert [stay.end for stay in report.stays] == [End.UNSEEN]
    assert it.world.usd() < report.usd(it.world.at) < 4 * 0.61
    assert it.book.leases[RUN].usd == pytest.approx(report.usd(it.world.at))


def test_a_host_gets_no_second_life_from_a_drain_that_starts_again() -> None:
    it = Setup(10_000, ends_itself=False)
    once(it, lambda w: w.at > w.hosts[0].born + HOUR, lambda: raise_(Killed()))
    with pytest.raises(Killed):
        it.drain().run()
    it.world.hosts[0].host = replace(it.world.hosts[0].host, created_at=None)
    check(it, it.drain().run(), end=End.DEADLINE)
    assert it.world.hosts[0].gone_at
    assert it.world.hosts[0].gone_at - it.world.hosts[0].born < LIFE + MINUTE


def test_a_worker_that_is_away_at_the_first_look_after_a_hand_over_has_its_time() -> None:
    it = Setup(60)
    once(it, lambda w: w.at > w.hosts[0].born + 30 * MINUTE, lambda: raise_(Killed()))
    with pytest.raises(Killed):
        it.drain().run()
    back = it.world.at + 3 * MINUTE
    is_online = it.jobs.is_online
    it.jobs.is_online = lambda worker: it.world.at > back and is_online(worker)
    check(it, it.drain().run())
    assert it.book.leases[RUN].bad_machines == ()


def test_a_drain_of_the_version_before_is_gone_on_with() -> None:
    it = Setup(12, ends_itself=False)
    MOMENTS["while it works"](it)
    with pytest.raises(Killed):
        it.drain().run()
    it.book.change(RUN, asked=None, execution="", started_at=None, videos=None)
    assert it.reap() == []
    check(it, it.drain().run())
    assert len(it.provider.creates) == 1


def test_hosts_that_cannot_be_looked_for_are_not_replaced() -> None:
    it = Setup(100, ends_itself=False)
    MOMENTS["while it works"](it)
    with pytest.raises(Killed):
        it.drain().run()
    it.provider.faults["list"].extend(unavailable(60))
    with pytest.raises(ProviderUnavailable):
        it.drain().run()
    assert len(it.world.hosts) == 1
    assert not it.book.leases[RUN].is_settled


def test_two_drains_at_once_and_a_reaper_rent_once() -> None:
    it = Setup(40)
    reaped: list[str] = []
    it.world.on_step = lambda _: reaped.extend(it.reap())
    check(it, it.drain().run())
    assert reaped == []  # a living drain's host is left alone
    assert it.world.videos == 40


def test_a_failure_of_ours_gives_the_host_back() -> None:
    it = Setup(12)

    def broken(world: World) -> None:
        if world.videos == 2:
            raise ValueError("a bug")

    it.world.on_step = broken
    with pytest.raises(ValueError, match="a bug"):
        it.drain().run()
    assert it.world.living() == []
