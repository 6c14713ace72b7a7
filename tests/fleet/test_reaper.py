"""What the reaper destroys, and what it never touches."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from stillreel.errors import (
    FleetError,
    HostUndestroyed,
    PrefectUnavailable,
    ProviderRefused,
)
from stillreel.fleet.labels import Label
from stillreel.fleet.leases import Lease
from stillreel.fleet.provider import Boot, Host, HostState, Leftover
from stillreel.fleet.reaper import Found, reap, verdict
from tests.fleet.fake_world import START, FakeBook, FakeProvider, World, unavailable
from tests.fleet.test_ranking import GOOD

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
LIFE = 4 * HOUR
RUN, OTHER = str(UUID(int=1)), str(UUID(int=2))
HOST = Host("h1", "fake", Label("main", RUN, 1), HostState.RUNNING, 0.6, "m1", START)
LIVING = Lease(RUN, "a100", False, True, 1, START, START + LIFE, 0.6, 3.0, 0.1, ())


@pytest.mark.parametrize(
    ("host", "lease", "after", "reason"),
    [
        pytest.param({}, {}, MINUTE, "", id="a living drain"),
        pytest.param({}, {"is_over": True}, MINUTE, "its drain is over", id="over"),
        pytest.param({}, {}, 11 * MINUTE, "not been heard of", id="no beat"),
        pytest.param({}, {"beat_at": None}, MINUTE, "not been heard of", id="never claimed"),
        pytest.param({}, {"until": START}, MINUTE, "past its deadline", id="deadline"),
        pytest.param({}, {"number": 2}, MINUTE, "given it up", id="an older machine"),
        pytest.param({"state": HostState.STOPPED}, {}, MINUTE, "it is stopped", id="outbid"),
        pytest.param({"state": HostState.LOST}, {}, MINUTE, "it is lost", id="exited"),
        pytest.param({"state": HostState.BOOTING}, {}, MINUTE, "", id="booting"),
        pytest.param({}, None, 4.2 * HOUR, "", id="lease not found, young enough"),
        pytest.param({}, None, 4.3 * HOUR, "longest life", id="lease not found, too old"),
        pytest.param({"created_at": None}, None, 99 * HOUR, "", id="nothing known"),
        pytest.param(
            {}, {"beat_at": START + 5 * HOUR}, 5 * HOUR, "longest life", id="a drain that forgot"
        ),
    ],
)
def test_why_a_host_has_to_go(
    host: dict[str, Any], lease: dict[str, Any] | None, after: timedelta, reason: str
) -> None:
    leases = {} if lease is None else {RUN: replace(LIVING, **lease)}
    found = verdict(replace(HOST, **host), leases, now=START + after, life=LIFE)
    assert (reason in found) if reason else found == ""


class Place:
    """A provider with machines of several people."""

    def __init__(self) -> None:
        self.world = World(ends_itself=False, boots_in=1.0)
        self.provider = FakeProvider(self.world)
        self.book = FakeBook()

    def rent(self, run_id: str, *, installation: str = "main", number: int = 1) -> str:
        label = Label(installation, run_id, number)
        offer = replace(GOOD, machine=f"m{len(self.world.hosts)}")
        boot = Boot(label, "a100", "ltx-2", self.world.at + LIFE, {}, 150)
        return self.provider.create(offer, boot).id

    def reap(self, **how: bool) -> list[Found]:
        return reap(
            self.provider,
            self.book,
            installation="main",
            life=LIFE,
            clock=self.world,
            **how,
        )

    def living(self) -> set[str]:
        return {it.host.id for it in self.world.living()}


def test_only_hosts_of_this_installation_without_a_drain_go() -> None:
    it = Place()
    orphan = it.rent(RUN)
    kept = it.rent(OTHER)
    foreign = it.rent(RUN, installation="main2")
    it.book.start(RUN, is_over=True)
    it.book.start(OTHER, pool="g5", number=1, beat_at=it.world.at)
    assert {one.what.id: one.done for one in it.reap()} == {orphan: True, kept: False}
    assert it.living() == {kept, foreign}
    assert it.reap()[0].reason == ""


def test_a_dry_run_tells_and_touches_nothing() -> None:
    it = Place()
    it.rent(RUN)
    it.book.start(RUN, is_over=True)
    (found,) = it.reap(dry_run=True)
    assert (found.reason, found.done) == ("its drain is over", False)
    assert found.to_json()["destroyed"] is False
    assert len(it.living()) == 1


def test_without_a_single_lease_nothing_is_touched() -> None:
    it = Place()
    it.rent(RUN)
    it.world.sleep(24 * 3600)
    with pytest.raises(FleetError, match="nothing is touched"):
        it.reap()
    assert len(it.living()) == 1


def test_with_prefect_away_nothing_is_touched() -> None:
    it = Place()
    it.rent(RUN)
    it.book.start(RUN, is_over=True)
    it.book.away = lambda: True
    with pytest.raises(PrefectUnavailable):
        it.reap()
    assert len(it.living()) == 1


def test_one_that_cannot_be_destroyed_keeps_no_other_alive() -> None:
    it = Place()
    first, second = it.rent(RUN), it.rent(RUN, number=2)
    it.book.start(RUN, is_over=True)
    it.provider.faults["destroy"].extend(unavailable(7))
    with pytest.raises(HostUndestroyed, match="the next round"):
        it.reap()
    assert it.living() == {first}
    assert [one.done for one in it.reap()] == [True]
    assert it.living() == set()
    assert second


def test_what_hosts_left_behind_goes_with_their_drain() -> None:
    it = Place()
    it.provider.left = [
        Leftover("vol-1", "volume", Label("main", RUN, 1)),
        Leftover("vol-2", "volume", Label("main", OTHER, 1)),
        Leftover("vol-3", "volume", Label("other", RUN, 1)),
    ]
    it.book.start(RUN, is_over=True)
    it.book.start(OTHER, pool="g5", beat_at=it.world.at)
    it.reap()
    assert [one.id for one in it.provider.left] == ["vol-2", "vol-3"]


def test_nothing_there_needs_no_lease() -> None:
    assert Place().reap() == []


def test_two_reapers_at_once_do_no_harm() -> None:
    it = Place()
    it.rent(RUN)
    it.book.start(RUN, is_over=True)
    destroy = it.provider.destroy
    inner: list[list[Found]] = []

    def meanwhile(host_id: str) -> None:
        it.provider.destroy = destroy
        inner.append(it.reap())
        destroy(host_id)

    it.provider.destroy = meanwhile
    assert [one.done for one in it.reap()] == [True]
    assert [one.done for one in inner[0]] == [True]
    assert it.living() == set()


def test_leftovers_that_cannot_be_listed_keep_no_host_alive() -> None:
    it = Place()
    it.rent(RUN)
    it.book.start(RUN, is_over=True)
    it.provider.faults["leftovers"].extend([ProviderRefused("not allowed")] * 2)
    assert [one.reason for one in it.reap(dry_run=True)] == ["its drain is over"]
    with pytest.raises(ProviderRefused, match="not allowed"):
        it.reap()
    assert it.living() == set()


@pytest.mark.parametrize("ahead", [11 * MINUTE, HOUR])
def test_a_reaper_whose_clock_is_ahead_leaves_a_living_drain_its_host(ahead: timedelta) -> None:
    it = Place()
    it.rent(RUN)
    it.book.start(RUN, number=1, beat_at=it.world.at - ahead)
    assert it.reap(dry_run=True)[0].reason == "its drain has not been heard of"

    def beat(world: World) -> None:
        it.book.change(RUN, beat_at=world.at - ahead)

    it.world.on_step = beat
    assert [one.reason for one in it.reap()] == [""]
    it.world.on_step = None
    assert [one.done for one in it.reap()] == [True]
