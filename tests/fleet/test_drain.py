"""A whole drain on a virtual clock: what is rented, watched, and gone, whatever fails."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from stillreel.errors import (
    CreateUnknown,
    FleetError,
    HostFailed,
    HostUndestroyed,
    LeaseLost,
    OfferGone,
    ProviderRefused,
    ProviderUnavailable,
    SettingsInvalid,
)
from stillreel.fleet.decision import Money
from stillreel.fleet.leases import money_of
from stillreel.fleet.provider import HostState
from stillreel.fleet.report import End
from tests.fleet.drains import (
    HOUR,
    LIMITS,
    OFFERS,
    RUN,
    Setup,
    check,
)
from tests.fleet.fake_world import (
    START,
    FakeBook,
    World,
    unavailable,
)
from tests.fleet.test_ranking import GOOD

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


SPOT = replace(GOOD, id="spot", machine="", is_interruptible=True, usd_per_hour=0.3)
INTERRUPTIBLE = replace(LIMITS, interruptible=True)


def test_on_demand_where_no_interruptible_machine_is_to_be_had() -> None:
    it = Setup(12)
    it.provider.on_offer = [*OFFERS, SPOT]
    it.provider.faults["create"].append(OfferGone())
    report = it.drain(limits=INTERRUPTIBLE).run()
    check(it, report)
    assert [stay.machine for stay in report.stays] == ["m1"]


def test_an_interruptible_host_that_is_taken_back_has_not_failed() -> None:
    it = Setup(12)
    it.provider.on_offer = [*OFFERS, SPOT]
    it.provider.boots = {"1": 1e9, "2": 1e9}  # two more that fail do not make three

    def take_back(world: World) -> None:
        if world.videos == 4 and len(world.hosts) == 1 and world.hosts[0].lives:
            world.end(world.hosts[0])

    it.world.on_step = take_back
    report = it.drain(limits=INTERRUPTIBLE).run()
    check(it, report, hosts=4)
    assert [stay.machine for stay in report.stays] == ["", "m1", "m2", "m3"]


def test_a_host_whose_price_moves_is_promised_at_the_most_that_it_may_cost() -> None:
    it = Setup(12)
    it.provider.on_offer = [replace(SPOT, usd_per_hour_at_most=1.2)]
    seen: list[float] = []
    it.world.on_step = lambda _: seen.append(it.book.leases[RUN].reserved_usd)
    check(it, it.drain(limits=INTERRUPTIBLE).run())
    assert seen[0] == pytest.approx(4 * 1.2)
    assert min(seen[:100]) == pytest.approx(4 * 1.2)
    rule = replace(LIMITS.rule, month_budget_usd=4.7)
    it = Setup(12)
    it.provider.on_offer = [replace(SPOT, usd_per_hour_at_most=1.2)]
    assert it.drain(limits=replace(INTERRUPTIBLE, rule=rule)).run().outcome == "not rented"


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


def test_hosts_that_hand_their_jobs_back_at_the_end_of_their_time_are_good_machines() -> None:
    it = Setup(10_000)
    check(it, it.drain().run(), end=End.DEADLINE)
    assert it.world.hosts[0].gone_at
    assert it.world.hosts[0].gone_at < it.world.hosts[0].boot.deadline
    assert it.book.leases[RUN].bad_machines == ()


# --- the provider fails -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param({"create": [OfferGone(), OfferGone()]}, id="two offers are gone"),
        pytest.param({"create": [ProviderUnavailable()]}, id="429 on create"),
        pytest.param({"create": ["nothing made"]}, id="500, nothing made"),
        pytest.param({"destroy": [*unavailable(10)]}, id="429 ten times on destroy"),
        pytest.param({"destroy": ["lost", "lost"]}, id="destroy lost twice"),
        pytest.param({"list": [None, *unavailable(6)]}, id="looks fail"),
        pytest.param({"list": 8 * ["absent"]}, id="the list lags"),
        pytest.param({"list": 6 * ["absent"], "get": unavailable(6)}, id="looks by name fail"),
        pytest.param(
            {"list": 4 * ["absent"], "get": ["absent", "absent", None, "absent"]},
            id="looks find nothing yet",
        ),
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


def test_a_create_of_which_nothing_is_known_is_not_followed_by_another() -> None:
    it = Setup(12, ends_itself=False)
    it.provider.faults["create"].append("lost answer")
    it.provider.faults["list"].extend(unavailable(60))
    with pytest.raises(FleetError):
        it.drain().run()
    assert len(it.provider.creates) == len(it.world.hosts) == 1
    lease = it.book.leases[RUN]
    assert [asked.number for asked in lease.hosts] == [1]
    assert not lease.is_settled
    it.provider.faults["list"].clear()
    it.book.change(RUN, is_over=True, is_running=False)
    assert it.reap() == ["its drain is over"]


def test_what_may_have_been_made_is_cleared_up_when_the_provider_is_back() -> None:
    it = Setup(12, ends_itself=False)
    it.provider.faults["create"].append("lost answer")
    it.provider.faults["list"].extend(unavailable(10))  # as often as it is looked for
    with pytest.raises(CreateUnknown):
        it.drain().run()
    assert it.world.living() == []
    lease = it.book.leases[RUN]
    assert lease.is_settled
    assert it.world.usd() <= lease.usd <= 4 * 0.61


def test_a_host_that_cannot_be_told_where_to_go_is_not_asked_for() -> None:
    setup = Setup()

    def no_env(*_: object) -> dict[str, str]:
        raise SettingsInvalid("no address")

    with pytest.raises(SettingsInvalid):
        setup.drain(env=no_env).run()
    assert setup.world.hosts == []
    assert setup.book.leases[RUN].hosts == ()


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


def test_errors_of_the_fleet_are_one_family() -> None:
    for error in (HostFailed, HostUndestroyed, LeaseLost, OfferGone, ProviderUnavailable):
        assert issubclass(error, FleetError)
