"""Which offer is taken: every bound on its own, and the cost of the whole batch, not the hour."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.fleet.needs import NEEDS
from stillreel.fleet.provider import Offer
from stillreel.fleet.ranking import Batch, misfit, priced, rank

NEED = NEEDS["ltx-2"]
GOOD = Offer(
    id="1",
    provider="vast",
    usd_per_hour=0.66,
    machine="vast/77",
    gpu_name="A100 PCIE",
    gpu_gb=40.0,
    ram_gb=64.0,
    disk_gb=500.0,
    cuda=12.8,
    inet_down=800.0,
    reliability=0.99,
)


def test_a_good_offer_fits() -> None:
    assert misfit(GOOD, NEED, usd_per_hour_max=1.2) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"usd_per_hour": 1.21}, "US$ 1.21", id="dear"),
        pytest.param({"usd_per_hour": 0.0}, "US$ 0", id="free is a mistake"),
        pytest.param({"gpu_name": "A100"}, "GPU A100", id="name that Vast does not use"),
        pytest.param({"gpu_count": 8}, "8 GPUs", id="eight GPUs"),
        pytest.param({"gpu_gb": 24.0}, "GPU memory of 24", id="GPU too small"),
        pytest.param({"gpu_gb": 80.0}, "GPU memory of 80", id="GPU larger than paid for"),
        pytest.param({"ram_gb": 16.0}, "memory of 16", id="little memory"),
        pytest.param({"ram_gb": 3000.0}, "memory of 3000", id="memory that cannot be"),
        pytest.param({"disk_gb": 149.0}, "disk in GB: 149", id="small disk"),
        pytest.param({"cuda": 12.4}, "CUDA: 12.4", id="old driver"),
        pytest.param({"inet_down": 199.0}, "download in Mb/s: 199", id="slow network"),
        pytest.param({"reliability": 0.97}, "reliability: 0.97", id="unreliable"),
        pytest.param({"machine": "vast/13"}, "quarantine", id="bad machine"),
    ],
)
def test_each_bound_refuses_by_itself(change: dict[str, Any], words: str) -> None:
    offer = replace(GOOD, **change)
    assert words in misfit(offer, NEED, usd_per_hour_max=1.2, quarantined={"vast/13"})
    assert rank([offer], NEED, Batch(1), usd_per_hour_max=1.2, quarantined={"vast/13"}) == []


def test_the_cost_is_hours_and_bytes() -> None:
    offer = replace(GOOD, usd_per_hour=0.6, usd_per_gb_down=0.01, usd_per_gb_up=0.02)
    batch = Batch(2.0, down_gb=45, up_gb=3, boot_hours=0.1, idle_hours=0.1)
    found = priced(offer, batch)
    assert found.hours == pytest.approx(2.2 + 45 * 8000 / 800 / 3600)
    assert found.usd == pytest.approx(found.hours * 0.6 + 0.45 + 0.06)


def test_a_cheap_hour_with_dear_or_slow_bytes_comes_second() -> None:
    batch = Batch(0.5, down_gb=45)
    fast = replace(GOOD, id="fast", usd_per_hour=0.70)
    dear = replace(GOOD, id="dear bytes", usd_per_hour=0.60, usd_per_gb_down=0.02)
    slow = replace(GOOD, id="slow", usd_per_hour=0.60, inet_down=200.0)
    ranked = rank([dear, slow, fast], NEED, batch, usd_per_hour_max=1.2)
    assert [found.offer.id for found in ranked] == ["fast", "slow", "dear bytes"]
    long = rank([dear, slow, fast], NEED, replace(batch, work_hours=20), usd_per_hour_max=1.2)
    assert [found.offer.id for found in long] == ["slow", "dear bytes", "fast"]


def test_a_machine_that_leaves_before_the_batch_is_done_is_not_taken() -> None:
    assert rank([replace(GOOD, hours_left=1.0)], NEED, Batch(1.0), usd_per_hour_max=1.2) == []
    assert rank([replace(GOOD, hours_left=2.0)], NEED, Batch(1.0), usd_per_hour_max=1.2)


OFFERS = st.lists(
    st.builds(
        Offer,
        id=st.integers(0, 99).map(str),
        provider=st.just("vast"),
        usd_per_hour=st.floats(0, 3),
        machine=st.sampled_from(["", "vast/1", "vast/2"]),
        gpu_name=st.sampled_from(["A100 PCIE", "A100 SXM4", "A100", "H100"]),
        gpu_gb=st.sampled_from([24.0, 40.0, 80.0]),
        ram_gb=st.floats(0, 200),
        disk_gb=st.floats(0, 500),
        cuda=st.sampled_from([12.1, 12.8, 13.0]),
        inet_down=st.floats(0, 2000),
        reliability=st.floats(0, 1),
        usd_per_gb_down=st.floats(0, 0.1),
    ),
    max_size=20,
)


@given(OFFERS, st.floats(0, 50), st.floats(0, 100))
def test_the_first_one_fits_and_none_that_fits_is_cheaper(
    offers: list[Offer], hours: float, gb: float
) -> None:
    batch = Batch(hours, down_gb=gb)
    ranked = rank(offers, NEED, batch, usd_per_hour_max=1.2, quarantined={"vast/2"})
    costs = [found.usd for found in ranked]
    assert costs == sorted(costs)
    for found in ranked:
        assert found.offer in offers
        assert found.offer.machine != "vast/2"
        assert 0 < found.offer.usd_per_hour <= 1.2
        assert found.usd >= hours * found.offer.usd_per_hour
    fitting = [o for o in offers if not misfit(o, NEED, usd_per_hour_max=1.2)]
    assert len(ranked) <= len(fitting)


@given(OFFERS, st.floats(0, 50))
def test_the_order_of_the_offers_does_not_matter(offers: list[Offer], hours: float) -> None:
    one, other = (
        [(found.usd, found.offer.id) for found in rank(o, NEED, Batch(hours), usd_per_hour_max=3)]
        for o in (offers, offers[::-1])
    )
    assert one == other
