"""A whole drain on a virtual clock: what is rented, watched, and gone, whatever fails or dies."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from stillreel.errors import (
    FleetError,
    HostFailed,
    HostUndestroyed,
    LeaseLost,
    LeaseTaken,
    OfferGone,
    ProviderRefused,
    ProviderUnavailable,
)
from stillreel.fleet.decision import Money, Rule
from stillreel.fleet.drain import Drain
from stillreel.fleet.leases import money_of
from stillreel.fleet.limits import Limits, Order
from stillreel.fleet.needs import NEEDS
from stillreel.fleet.provider import HostState
from stillreel.fleet.reaper import reap
from stillreel.fleet.report import End, Report
from tests.fleet.fake_world import (
    START,
    FakeBook,
    FakeJobs,
    FakeProvider,
    Killed,
    World,
    unavailable,
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
        is_handed_over: Callable[[BaseException], bool] = lambda exc: isinstance(exc, Killed),
    ) -> Drain:
        """A drain; one that is killed cleans nothing up, as a dead process does not."""
        if run_id not in self.book.leases:
            self.book.start(run_id)
        order = Order(run_id, "main", "a100", NEEDS["ltx-2"], 60.0, lambda *_: {}, now=now)
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
            if self.book.leases:
                self.reap()


def check(it: Setup, report: Report, *, end: End = End.DRAINED, hosts: int = 1) -> None:
    assert report.outcome == end
    assert len(report.stays) == hosts
    assert it.world.living() == []
    assert it.book.leases[RUN].reserved_usd == 0
    assert it.book.leases[RUN].usd == pytest.approx(report.usd(it.world.at))


# --- good times -------------------------------------------------------------------------------


def test_a_backlog_is_drained_by_the_cheapest_host_which_is_gone_afterwards() -> None:
    it = Setup(12)
    report = it.drain().run()
    check(it, report)
    assert it.world.videos == report.videos == 12
    (stay,) = report.stays
    assert (stay.machine, stay.end) == ("m1", End.DRAINED)
    assert it.provider.creates == [str(stay.label)]
    # boot 5 min + 12 jobs of 1 min + 5 idle minutes, and the looks that notice it is gone
    assert 22 / 60 <= stay.hours(it.world.at) <= 24.5 / 60
    assert report.usd(it.world.at) == pytest.approx(it.world.usd(), rel=0.1)
    assert report.usd(it.world.at) >= it.world.usd()


def test_nothing_is_rented_before_it_pays() -> None:
    it = Setup(9)
    report = it.drain().run()
    assert (report.outcome, report.stays, it.provider.creates) == ("not rented", [], [])
    assert it.drain(str(uuid4()), now=True).run().videos == 9


def test_nothing_is_rented_for_nothing_even_when_a_person_asks() -> None:
    it = Setup(0)
    assert it.drain(now=True).run().outcome == "not rented"
    assert it.provider.creates == []


def test_the_label_and_the_deadline_are_written_down_before_the_create() -> None:
    it = Setup(12)
    seen: list[tuple[int, float]] = []
    create = it.provider.create

    def look(offer: Any, boot: Any) -> Any:
        lease = it.book.leases[RUN]
        assert lease.until == boot.deadline
        seen.append((lease.number, lease.reserved_usd))
        return create(offer, boot)

    it.provider.create = look
    it.drain().run()
    assert [number for number, _ in seen] == [1]
    assert seen[0][1] == pytest.approx(4 * 0.61)


def test_a_second_drain_of_a_pool_leaves_at_once() -> None:
    it = Setup(12)
    others: list[str] = []

    def second(world: World) -> None:
        if not others:
            others.append(it.drain(str(uuid4()), now=True).run().outcome)

    it.world.on_step = second
    check(it, it.drain().run())
    assert others == ["already draining"]
    assert len(it.provider.creates) == 1


def test_the_budget_counts_what_others_spend_and_may_still_spend() -> None:
    it = Setup(12)
    it.book.start(str(uuid4()), pool="a100", usd=30.0, is_over=True)
    it.book.start(
        str(uuid4()), pool="g5", usd=5.0, reserved_usd=18.0, beat_at=it.world.at
    )  # lives: 13 more
    report = it.drain().run()
    assert report.outcome == "not rented"
    assert report.decision
    assert "budget" in report.decision.reason
    assert it.provider.creates == []


def test_what_a_dead_drain_may_have_cost_counts_until_the_month_is_over() -> None:
    it = Setup(12)
    it.book.start(
        str(uuid4()), pool="a100", usd=1.0, reserved_usd=48.5, is_over=True, started_at=START
    )
    assert it.drain().run().outcome == "not rented"
    it.world.at += timedelta(days=31)
    assert it.drain(str(uuid4())).run().outcome == End.DRAINED


def test_a_drain_of_the_month_before_counts_there_and_what_it_may_cost_here() -> None:
    first = datetime(2026, 12, 1, 0, 30, tzinfo=UTC)
    began = first - HOUR
    lease = FakeBook().start("x", pool="a100", usd=2.0, reserved_usd=5.0, started_at=began)
    alive = replace(lease, beat_at=first)
    assert money_of([alive], but="", now=first) == Money(0.0, 3.0)
    assert money_of([lease], but="", now=first) == Money(0.0, 0.0)  # dead, and its month is over
    assert money_of([lease], but="", now=began) == Money(2.0, 3.0)


def test_the_budget_holds_for_the_offer_that_is_taken_in_the_end() -> None:
    it = Setup(12)
    it.provider.on_offer = [OFFERS[0], replace(OFFERS[1], usd_per_hour=1.1)]
    it.provider.faults["create"].append(OfferGone())
    rule = replace(LIMITS.rule, month_budget_usd=3.0)
    report = it.drain(limits=replace(LIMITS, rule=rule)).run()
    assert report.outcome == "not rented"
    assert report.decision
    assert "budget" in report.decision.reason
    assert len(it.provider.creates) == 1


def test_interruptible_first_and_on_demand_after_an_interruption() -> None:
    it = Setup(12)
    spot = replace(GOOD, id="spot", machine="s1", is_interruptible=True, usd_per_hour=0.3)
    it.provider.on_offer = [*OFFERS, spot]

    def outbid(world: World) -> None:
        for host in world.living():
            if host.host.machine == "s1" and world.videos == 3:
                host.host = replace(host.host, state=HostState.STOPPED)

    it.world.on_step = outbid
    report = it.drain(limits=replace(LIMITS, interruptible=True)).run()
    check(it, report, hosts=2)
    assert [stay.end for stay in report.stays] == [End.OUTBID, End.DRAINED]
    assert [stay.machine for stay in report.stays] == ["s1", "m1"]
    assert it.world.videos == 12


# --- a host fails -----------------------------------------------------------------------------


def test_a_host_that_never_works_is_given_back_and_its_machine_left_out_for_a_week() -> None:
    it = Setup(12)
    it.provider.boots = {"1": 1e9}
    report = it.drain().run()
    check(it, report, hosts=2)
    assert [stay.end for stay in report.stays] == [End.NEVER_READY, End.DRAINED]
    assert report.stays[0].hours(it.world.at) < 21 / 60
    assert it.book.leases[RUN].bad_machines == ("m1",)
    it.world.waiting_jobs = 12
    it.book.change(RUN, is_over=True, is_running=False)
    again = it.drain(str(uuid4())).run()
    assert [stay.machine for stay in again.stays] == ["m2"]


def test_three_hosts_that_never_work_are_enough() -> None:
    it = Setup(12, boots_in=1e9)
    with pytest.raises(HostFailed, match="3 rented hosts"):
        it.drain().run()
    assert len(it.provider.creates) == 3
    assert it.world.living() == []
    assert it.book.leases[RUN].bad_machines == ("m1", "m2", "m3")


def next_drain(it: Setup) -> Drain:
    """The drain of an hour later; that before is over."""
    for run_id in it.book.leases:
        it.book.change(run_id, is_over=True, is_running=False)
    it.world.at += HOUR
    run_id = str(uuid4())
    it.book.start(run_id, started_at=it.world.at)
    return it.drain(run_id)


def test_the_circuit_stays_open_until_a_person_closes_it() -> None:
    it = Setup(12, boots_in=1e9)
    with pytest.raises(HostFailed, match="stillreel fleet resume a100"):
        next_drain(it).run()
    it.world.boots_in = 300.0
    for _ in range(3):
        report = next_drain(it).run()
        assert report.outcome == "not rented"
        assert report.decision
        assert "stillreel fleet resume a100" in report.decision.reason
        assert "no   hosts come to work" in report.decision.explain()
    assert len(it.provider.creates) == 3
    it.book.close_circuit("a100", it.world.at)
    assert next_drain(it).run().outcome == End.DRAINED


def test_failed_boots_are_counted_across_drains_and_a_host_that_works_ends_the_row() -> None:
    it = Setup(12)
    it.provider.boots = {"1": 1e9, "2": 1e9, "4": 1e9, "5": 1e9}
    assert next_drain(it).run().outcome == End.DRAINED  # the third machine works
    assert [lease.boots for lease in it.book.leases.values()] == ["--+"]
    it.provider.on_offer = [OFFERS[3]]  # 4
    it.world.waiting_jobs = 12
    assert next_drain(it).run().outcome == End.NEVER_READY
    it.provider.on_offer = [OFFERS[4]]  # 5
    assert next_drain(it).run().outcome == End.NEVER_READY
    it.provider.on_offer, it.world.boots_in = [OFFERS[5]], 1e9
    with pytest.raises(HostFailed, match="3 hosts in a row"):
        next_drain(it).run()
    assert it.world.living() == []


def test_other_pools_rent_while_one_does_not() -> None:
    it = Setup(12)
    it.book.start(str(uuid4()), pool="g5", boots="---", is_over=True, started_at=START)
    assert next_drain(it).run().outcome == End.DRAINED


def test_an_owner_of_two_bad_machines_is_left_out_with_the_rest() -> None:
    it = Setup(12)
    owners = ["o1", "o1", "o2", "o1"]
    it.provider.on_offer = [
        replace(offer, owner=f"vast/owner/{owner}")
        for offer, owner in zip(OFFERS, owners, strict=False)
    ]
    it.provider.boots = {"1": 1e9, "2": 1e9}
    assert [stay.machine for stay in next_drain(it).run().stays] == ["m1", "m2", "m3"]
    it.provider.on_offer = it.provider.on_offer[3:]
    it.world.waiting_jobs = 12
    assert next_drain(it).run().outcome == "not rented"
    it.world.at += timedelta(days=8)
    assert next_drain(it).run().outcome == End.DRAINED


@pytest.mark.parametrize("state", [HostState.LOST, HostState.STOPPED])
def test_a_host_that_is_lost_at_work_is_replaced_and_no_job_with_it(state: HostState) -> None:
    it = Setup(12)

    def lose(world: World) -> None:
        if world.videos == 4 and len(world.hosts) == 1:
            world.hosts[0].host = replace(world.hosts[0].host, state=state)

    it.world.on_step = lose
    report = it.drain().run()
    check(it, report, hosts=2)
    assert it.world.videos == 12
    assert it.world.waiting_jobs == it.world.working_jobs == 0


def test_a_host_that_vanishes_is_noticed_and_replaced() -> None:
    it = Setup(12)

    def vanish(world: World) -> None:
        if world.videos == 4 and len(world.hosts) == 1 and world.hosts[0].lives:
            world.end(world.hosts[0])

    it.world.on_step = vanish
    report = it.drain().run()
    check(it, report, hosts=2)
    assert [stay.end for stay in report.stays] == [End.LOST, End.DRAINED]


def test_a_host_that_does_not_end_itself_is_ended() -> None:
    it = Setup(12, ends_itself=False)
    report = it.drain().run()
    check(it, report)
    assert report.stays[0].hours(it.world.at) < 25.5 / 60


def test_a_stuck_job_does_not_bill_for_ever() -> None:
    it = Setup(12, job_seconds=1e9, ends_itself=False)
    report = it.drain().run()
    check(it, report, end=End.STALLED)
    assert report.stays[0].hours(it.world.at) < 52 / 60


def test_a_backlog_without_end_stops_at_the_deadline() -> None:
    it = Setup(10_000, ends_itself=False)
    report = it.drain().run()
    check(it, report, end=End.DEADLINE)
    assert report.stays[0].hours(it.world.at) == pytest.approx(4.0, abs=0.01)
    assert report.usd(it.world.at) <= 4.01 * 0.61


# --- the provider fails -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"create": [OfferGone(), OfferGone()]}, id="two offers are gone"),
        pytest.param({"create": [ProviderUnavailable()]}, id="429 on create"),
        pytest.param({"create": ["nothing made"]}, id="500, nothing made"),
        pytest.param({"destroy": [*unavailable(10)]}, id="429 ten times on destroy"),
        pytest.param({"destroy": ["lost", "lost"]}, id="destroy lost twice"),
        pytest.param({"get": [None, *unavailable(6)]}, id="looks fail"),
        pytest.param({"get": ["absent", "absent", None, "absent"]}, id="looks find nothing yet"),
        pytest.param({"list": unavailable(3), "create": ["lost answer"]}, id="list fails too"),
    ],
)
def test_a_provider_with_faults_costs_a_try_and_no_more(faults: dict[str, list[Any]]) -> None:
    it = Setup(12, ends_itself="destroy" not in faults)
    for name, values in faults.items():
        it.provider.faults[name].extend(values)
    check(it, it.drain().run())
    assert it.world.videos == 12
    assert len(it.provider.creates) == len(set(it.provider.creates))


@pytest.mark.parametrize("lag", [0.0, 30.0, 80.0])
def test_a_create_without_an_answer_is_adopted_and_never_repeated(lag: float) -> None:
    it = Setup(12)
    it.provider.lag = lag
    it.provider.faults["create"].append("lost answer")
    check(it, it.drain().run())
    assert len(it.provider.creates) == len(it.world.hosts) == 1


def test_a_machine_that_appears_too_late_is_given_back_as_well() -> None:
    it = Setup(12, ends_itself=False)
    it.provider.lag = 200.0
    it.provider.faults["create"].append("lost answer")
    report = it.drain().run()
    check(it, report)
    assert len(it.world.hosts) == 2
    assert it.world.living() == []


def test_a_refusal_ends_the_drain() -> None:
    it = Setup(12)
    it.provider.faults["create"].append(ProviderRefused("no credit"))
    with pytest.raises(ProviderRefused, match="no credit"):
        it.drain().run()
    assert len(it.provider.creates) == 1


def test_a_host_that_cannot_be_destroyed_is_told_loudly_and_reaped_later() -> None:
    it = Setup(12, ends_itself=False)
    it.provider.faults["destroy"].extend(unavailable(200))
    with pytest.raises(HostUndestroyed, match="may still cost money"):
        it.drain().run()
    assert len(it.world.living()) == 1
    it.provider.faults["destroy"].clear()
    it.book.change(RUN, is_over=True, is_running=False)
    assert it.reap() == ["its drain is over"]
    assert it.world.living() == []


# --- Prefect or the drain itself fails ----------------------------------------------------------


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


def once(it: Setup, moment: Callable[[World], Any], act: Callable[[], Any]) -> None:
    """Do this at the first step at which the moment has come."""
    done: list[bool] = []

    def step(world: World) -> None:
        if not done and world.hosts and moment(world):
            done.append(True)
            act()

    it.world.on_step = step


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


def test_a_drain_of_the_version_before_is_gone_on_with() -> None:
    it = Setup(12, ends_itself=False)
    MOMENTS["while it works"](it)
    with pytest.raises(Killed):
        it.drain().run()
    it.book.change(RUN, asked=None, execution="", started_at=None, videos=None)
    assert it.reap() == []
    check(it, it.drain().run())
    assert len(it.provider.creates) == 1


def raise_(error: BaseException) -> None:
    raise error


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


def test_errors_of_the_fleet_are_one_family() -> None:
    for error in (HostFailed, HostUndestroyed, LeaseLost, OfferGone, ProviderUnavailable):
        assert issubclass(error, FleetError)


ANSWERS: dict[str, tuple[str, Any]] = {
    "create: made, answer lost": ("create", "lost answer"),
    "create: nothing made, no answer": ("create", "nothing made"),
    "create: offer gone": ("create", OfferGone()),
    "create: 429": ("create", ProviderUnavailable()),
    "destroy: lost": ("destroy", "lost"),
    "destroy: 429": ("destroy", ProviderUnavailable()),
    "look: 503": ("get", ProviderUnavailable()),
}


def test_the_whole_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever dies at whatever step: who is still alive, what was rented twice, what was lost."""
    rows: list[tuple[str, str, str, int, int, int]] = []
    for moment, kill in MOMENTS.items():
        for agent in (True, False):
            for again in (True, False):
                it = Setup(12, ends_itself=agent)
                kill(it)
                if moment == "before the destroy":
                    it.world.ends_itself = False
                with pytest.raises(Killed):
                    it.drain().run()
                if again:
                    it.drain().run()
                it.live_on(LIFE + 30 * MINUTE)
                who = "drain" if agent else "drain, host agent"
                rows.append((who, moment, "starts again" if again else "stays dead", *count(it)))
    for name, (call, fault) in ANSWERS.items():
        for lag in (0.0, 30.0):
            it = Setup(12, ends_itself=call != "destroy")
            it.provider.lag = lag
            it.provider.faults[call].append(fault)
            it.drain().run()
            rows.append(("provider's answer", name, f"list lags {lag:.0f} s", *count(it)))
    with capsys.disabled():
        if "-s" in sys.argv:
            for row in (("dies", "when", "then", "alive", "double", "lost"), *rows):
                sys.stdout.write("{:<18} {:<32} {:<15} {:>5} {:>6} {:>4}\n".format(*row))
    assert {row[3:] for row in rows} == {(0, 0, 0)}
    assert len(rows) == len(MOMENTS) * 4 + len(ANSWERS) * 2


def count(it: Setup) -> tuple[int, int, int]:
    """Hosts that live, hosts that lived at the same time, jobs that are nowhere."""
    spans = [(host.born, host.gone_at or it.world.at) for host in it.world.hosts]
    double = sum(
        one[0] < other[1] and other[0] < one[1]
        for n, one in enumerate(spans)
        for other in spans[n + 1 :]
    )
    kept = it.world.videos + it.world.waiting_jobs + it.world.working_jobs
    return len(it.world.living()), double, it.total - kept
