"""Who decides about renting, in a real Prefect: one drain at a time, and none that was too slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from threading import Barrier, BrokenBarrierError, Thread
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Completed, Running

from stillreel.errors import PrefectUnavailable
from stillreel.fleet import leases as leases_module
from stillreel.fleet.calls import PrefectCalls, prefect_calls
from stillreel.fleet.drain import Drain
from stillreel.fleet.leases import FLOW, LOOK_BACK, RESERVED, Lease, Leases, money_of
from stillreel.fleet.limits import Order
from stillreel.fleet.needs import NEEDS
from tests.fleet.drains import LIMITS, OFFERS
from tests.fleet.fake_world import FakeJobs, FakeProvider, Killed, World

LOCK = "stillreel_budget"


@flow(name=FLOW)
def drain_flow() -> None:
    """Stands for the drain: only its name counts here."""


class Decider(Leases):
    """Leases, with something that happens while the decision is made."""

    def __init__(self, calls: PrefectCalls, meanwhile: Callable[[], Any]) -> None:
        super().__init__(calls)
        self._meanwhile, self._decides, self.decisions = meanwhile, False, 0

    @contextmanager
    def deciding(self) -> Iterator[Callable[[], bool]]:
        with super().deciding() as is_alone:
            self._decides = True
            self.decisions += 1
            try:
                yield is_alone
            finally:
                self._decides = False

    def since(self, at: datetime) -> list[Lease]:
        found = super().since(at)
        if self._decides:
            self._meanwhile()
        return found


class Drained:
    """A drain of a pool of its own that is killed once it has asked for a machine."""

    def __init__(self, client: SyncPrefectClient, budget: float) -> None:
        self._client = client
        self.run = client.create_flow_run(drain_flow, state=Running())
        self._limits = replace(LIMITS, rule=replace(LIMITS.rule, month_budget_usd=budget))
        world = World(waiting_jobs=12, at=datetime.now(UTC))
        self.provider = FakeProvider(world, OFFERS)
        self.provider.faults["create"].append("killed before")
        self._world = world

    def go(self, meanwhile: Callable[[], Any] = lambda: None) -> int:
        """How many decisions it took."""
        pool = f"pool-{uuid4().hex[:8]}"
        order = Order(str(self.run.id), "main", pool, NEEDS["ltx-2"], 60.0, lambda *_: {})
        with prefect_calls() as calls:
            book = Decider(calls, meanwhile)
            drain = Drain(
                order,
                self._limits,
                provider=self.provider,
                jobs=FakeJobs(self._world),
                book=book,
                clock=self._world,
                is_handed_over=lambda exc: isinstance(exc, Killed),
            )
            with suppress(Killed):
                drain.run()
            return book.decisions

    def over(self) -> None:
        """It is over, and nothing of it is to be paid."""
        self._client.set_flow_run_state(self.run.id, Completed(), force=True)
        with prefect_calls() as calls:
            calls.patch(f"/flow_runs/{self.run.id}/labels", {RESERVED: 0.0})


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def two(client: SyncPrefectClient) -> Iterator[tuple[Drained, Drained]]:
    """Two drains, with money for one host of four hours."""
    now = datetime.now(UTC)
    with prefect_calls() as calls:
        money = money_of(Leases(calls).since(now - LOOK_BACK), but="", now=now)
    budget = money.spent_usd + money.reserved_usd + 4.0
    both = (Drained(client, budget), Drained(client, budget))
    yield both
    for one in both:
        one.over()


def rented(*drains: Drained) -> list[int]:
    return [len(one.provider.creates) for one in drains]


def test_of_two_that_decide_at_once_one_rents(two: tuple[Drained, Drained]) -> None:
    together = Barrier(2)

    def wait_for_the_other() -> None:
        with suppress(BrokenBarrierError):  # it cannot come while this one has the lock
            together.wait(3)

    threads = [Thread(target=one.go, args=(wait_for_the_other,)) for one in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert together.broken
    assert sorted(rented(*two)) == [0, 1]


def test_one_that_died_deciding_holds_up_the_next_for_a_while_only(
    two: tuple[Drained, Drained], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "DECIDE_SECONDS", 1.0)
    with prefect_calls() as calls:
        assert calls.make_variable(LOCK, "of a process that was killed")
        two[0].go()
        assert calls.read_variable(LOCK) is None
    assert rented(two[0]) == [1]


def test_one_that_is_slower_than_its_lock_decides_again(
    two: tuple[Drained, Drained], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other takes the lock that it was too slow for, and promises what is left."""
    monkeypatch.setattr(leases_module, "DECIDE_SECONDS", 1.0)
    slow, quick = two
    waits = [quick.go]

    def meanwhile() -> None:
        if waits:
            waits.pop()()

    assert slow.go(meanwhile) == 2
    assert rented(slow, quick) == [0, 1]


def test_one_whose_lock_is_taken_each_time_gives_up(two: tuple[Drained, Drained]) -> None:
    def lose() -> None:
        with prefect_calls() as calls:
            there = calls.get(f"/variables/name/{LOCK}")
            calls._portal.call(calls._api.delete, f"/variables/{there['id']}")

    with pytest.raises(PrefectUnavailable, match="took longer"):
        two[0].go(lose)
    assert rented(two[0]) == [0]
    with prefect_calls() as calls:
        assert Leases(calls).read([str(two[0].run.id)])[str(two[0].run.id)].hosts == ()


def test_a_lock_is_known_to_be_held_and_to_be_lost(prefect_api: str) -> None:
    name = f"stillreel_test_{uuid4().hex}"
    with prefect_calls() as calls, calls.lock(name) as is_held:
        assert is_held()
        there = calls.get(f"/variables/name/{name}")
        calls._portal.call(calls._api.delete, f"/variables/{there['id']}")
        assert not is_held()
        assert calls.make_variable(name, "of the next")
        assert not is_held()
    with prefect_calls() as calls:
        assert calls.read_variable(name) == "of the next"  # only our own is given back
