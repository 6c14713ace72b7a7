"""What a drain remembers of hosts that did not come to work: quarantine and circuit breaker."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from stillreel.errors import (
    HostFailed,
)
from stillreel.fleet.report import End
from tests.fleet.drains import (
    OFFERS,
    Setup,
    next_drain,
)
from tests.fleet.fake_world import (
    START,
)


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
