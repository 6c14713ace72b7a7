"""Our driver of Vast.ai against a loopback Vast.ai, in good times and bad."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from stillreel.errors import (
    CreateUnknown,
    OfferGone,
    ProviderRefused,
    ProviderUnavailable,
)
from stillreel.fleet.labels import Label, installation_prefix
from stillreel.fleet.needs import NEEDS
from stillreel.fleet.provider import Boot, HostState, Offer
from stillreel.fleet.vast import Vast, search_body, state_of
from tests.fleet.fake_vast import KEY, SECRET, FakeVast

NEED = NEEDS["ltx-2"]
MAIN = installation_prefix("main")


@pytest.fixture
def fake() -> Iterator[FakeVast]:
    with FakeVast() as running:
        running.offer(1)
        yield running


@pytest.fixture
def vast(fake: FakeVast) -> Iterator[Vast]:
    driver = driver_of(fake)
    yield driver
    driver.close()


def driver_of(fake: FakeVast, key: str = KEY) -> Vast:
    return Vast(
        key, image="worker@sha256:1", url=fake.url, call_seconds=0.5, patience=2.0, first_wait=0.01
    )


def boot_of(number: int = 1, *, installation: str = "main", run_id: str = "") -> Boot:
    return Boot(
        label=Label(installation, run_id or str(uuid4()), number),
        pool="a100",
        model="ltx-2",
        deadline=datetime(2030, 1, 1, tzinfo=UTC),
        env={"STILLREEL_HOST_NAME": "h"},
        disk_gb=150,
    )


def offer_from(vast: Vast) -> Offer:
    return vast.offers(NEED)[0]


def test_the_search_counts_memory_in_megabytes_and_prices_with_our_disk() -> None:
    body = search_body(NEED, interruptible=False)
    assert body["gpu_ram"] == {"gte": 39000, "lte": 48000}
    assert body["cpu_ram"] == {"gte": 32000}
    assert body["gpu_name"] == {"in": ["A100 PCIE", "A100 SXM4"]}
    assert body["num_gpus"] == {"eq": 1}
    assert body["allocated_storage"] == 150
    assert body["type"] == "on-demand"
    assert search_body(NEED, interruptible=True)["type"] == "bid"


def test_an_offer_is_read_in_our_units(vast: Vast) -> None:
    offer = offer_from(vast)
    assert (offer.id, offer.machine, offer.usd_per_hour) == ("1", "vast/7001", 0.66)
    assert (offer.gpu_gb, offer.ram_gb, offer.hours_left) == (40.96, 64.0, 240.0)


def test_a_host_is_rented_seen_and_given_back(fake: FakeVast, vast: Vast) -> None:
    boot = boot_of()
    made = vast.create(offer_from(vast), boot)

    assert fake.living() == [str(boot.label)]
    (sent,) = fake.calls("create")
    assert sent.method == "PUT"
    assert sent.path == "/api/v0/asks/1/"
    assert sent.body == {
        "client_id": "me",
        "image": "worker@sha256:1",
        "env": {"STILLREEL_HOST_NAME": "h"},
        "disk": 150,
        "label": str(boot.label),
        "runtype": "args",
        "args": ["--pool", "a100", "--model", "ltx-2"],
        "cancel_unavail": True,
    }
    (listed,) = vast.list(MAIN)
    assert listed == vast.get(made.id)
    assert (listed.id, listed.label, listed.state) == (made.id, boot.label, HostState.BOOTING)
    assert listed.created_at
    vast.destroy(made.id)
    assert vast.get(made.id) is None
    vast.destroy(made.id)  # again: fine
    assert fake.living() == []


def test_an_interruptible_host_is_a_bid_above_the_least(fake: FakeVast, vast: Vast) -> None:
    (offer,) = vast.offers(NEED, interruptible=True)
    assert offer.bid == pytest.approx(0.33)
    assert offer.usd_per_hour == pytest.approx(0.33 + 0.1 * 150 / 730)
    vast.create(offer, boot_of())
    assert fake.calls("create")[0].body["price"] == offer.bid


def test_other_peoples_machines_are_not_seen_and_all_pages_are_read(
    fake: FakeVast, vast: Vast
) -> None:
    for number in range(60):
        fake.offer(100 + number)
    mine = [vast.create(Offer(str(100 + n), "vast", 0.66), boot_of(n + 1)) for n in range(55)]
    vast.create(Offer("155", "vast", 0.66), boot_of(installation="other"))
    foreign = vast.create(Offer("156", "vast", 0.66), boot_of())
    fake.machines[int(foreign.id)]["label"] = "my own machine"
    assert {host.id for host in vast.list(MAIN)} == {host.id for host in mine}
    assert len(fake.calls("list")) == 3


@pytest.mark.parametrize("fault", ["hang", "error", "low bid"])
def test_a_create_that_may_have_worked_is_not_known_and_sent_once(
    fake: FakeVast, vast: Vast, fault: str
) -> None:
    offer, boot = offer_from(vast), boot_of()
    fake.faults["create"].append(fault)
    with pytest.raises(CreateUnknown):
        vast.create(offer, boot)
    assert len(fake.calls("create")) == 1
    (found,) = vast.list(str(boot.label))
    assert found.label == boot.label
    assert (found.state is HostState.STOPPED) == (fault == "low bid")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param("gone", OfferGone, id="taken by another"),
        pytest.param(404, OfferGone, id="404"),
        pytest.param(429, ProviderUnavailable, id="too often"),
        pytest.param(401, ProviderRefused, id="wrong key"),
        pytest.param(400, ProviderRefused, id="refused"),
        pytest.param(502, CreateUnknown, id="gateway"),
        pytest.param(408, CreateUnknown, id="a proxy did not wait"),
    ],
)
def test_a_create_that_fails_says_how(
    fake: FakeVast, vast: Vast, fault: Any, error: type[Exception]
) -> None:
    offer = offer_from(vast)
    fake.faults["create"].append(fault)
    with pytest.raises(error):
        vast.create(offer, boot_of())
    assert len(fake.calls("create")) == 1
    assert fake.living() == []


def test_a_provider_that_is_not_there_has_made_nothing(fake: FakeVast) -> None:
    away = Vast(KEY, image="i", url="http://127.0.0.1:9", patience=0.1, first_wait=0.01)
    with pytest.raises(ProviderUnavailable):
        away.create(Offer("1", "vast", 0.66), boot_of())
    with pytest.raises(ProviderUnavailable):
        away.list(MAIN)
    away.close()


@pytest.mark.parametrize("fault", [429, 500, 503])
def test_reads_and_destroys_are_tried_again(fake: FakeVast, vast: Vast, fault: int) -> None:
    made = vast.create(offer_from(vast), boot_of())
    for kind in ("offers", "get", "list", "destroy"):
        fake.faults[kind].extend([fault] * 3)
    vast.offers(NEED)
    assert vast.get(made.id)
    assert len(vast.list(MAIN)) == 1
    vast.destroy(made.id)
    assert fake.living() == []


def test_a_destroy_that_is_refused_for_too_long_says_so(fake: FakeVast, vast: Vast) -> None:
    made = vast.create(offer_from(vast), boot_of())
    fake.faults["destroy"].extend([429] * 1000)
    with pytest.raises(ProviderUnavailable, match="429"):
        vast.destroy(made.id)
    assert fake.living()


def test_a_used_up_search_is_not_tried_again(fake: FakeVast, vast: Vast) -> None:
    fake.faults["offers"].append(400)
    with pytest.raises(ProviderRefused):
        vast.offers(NEED)
    assert len(fake.calls("offers")) == 1


def test_no_secret_is_told(fake: FakeVast, vast: Vast, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fake.offer(2)
    told = [repr(vast.create(offer_from(vast), boot_of())), repr(vast.list(MAIN)), repr(vast)]
    for fault in ("error", "low bid"):
        fake.faults["create"].append(fault)
        fake.offer(50 + len(told))
        with pytest.raises(CreateUnknown) as raised:
            vast.create(offer_from(vast), boot_of())
        told.append(repr(raised.value) + str(raised.value))
    with pytest.raises(ProviderRefused) as refused:
        driver_of(fake, "wrong-" + KEY).list(MAIN)
    told += [str(refused.value), caplog.text]
    assert SECRET not in "".join(told)
    assert KEY not in "".join(told)


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({"actual_status": None, "intended_status": "running"}, HostState.BOOTING),
        ({"actual_status": "created"}, HostState.BOOTING),
        ({"actual_status": "loading"}, HostState.BOOTING),
        ({"actual_status": "rebooting"}, HostState.BOOTING),
        ({"actual_status": "a new word"}, HostState.BOOTING),
        ({"actual_status": "running", "intended_status": "running"}, HostState.RUNNING),
        ({"actual_status": "running", "intended_status": "stopped"}, HostState.STOPPED),
        ({"actual_status": "stopped", "intended_status": "running"}, HostState.STOPPED),
        ({"actual_status": "frozen"}, HostState.STOPPED),
        ({"actual_status": "created", "intended_status": "stopped"}, HostState.STOPPED),
        ({"actual_status": "exited"}, HostState.LOST),
        ({"actual_status": "offline"}, HostState.LOST),
        ({"actual_status": "unknown", "intended_status": "stopped"}, HostState.LOST),
        (
            {"actual_status": "created", "status_msg": "Error: OCI runtime create failed: x"},
            HostState.LOST,
        ),
    ],
)
def test_three_statuses_come_to_one(row: dict[str, Any], state: HostState) -> None:
    assert state_of(row) is state


@pytest.mark.parametrize("answer", [{}, {"success": True}, {"msg": "try later"}])
def test_an_answer_that_says_nothing_of_a_machine_does_not_say_that_it_is_gone(
    fake: FakeVast, vast: Vast, answer: dict[str, Any]
) -> None:
    made = vast.create(offer_from(vast), boot_of())
    fake.faults["get"].append(answer)
    with pytest.raises(ProviderUnavailable, match="cannot be read"):
        vast.get(made.id)
    assert vast.get(made.id)


@pytest.mark.parametrize("change", [{"start_date": "soon"}, {"id": None}, {"dph_total": "cheap"}])
def test_a_machine_of_ours_that_cannot_be_read_is_not_left_out(
    fake: FakeVast, vast: Vast, change: dict[str, Any]
) -> None:
    """And stops no reaper at the other provider, as any other error would."""
    made = vast.create(offer_from(vast), boot_of())
    row = {**fake.machines[int(made.id)], **change}
    if change == {"id": None}:
        del row["id"]
    for kind, answer in (("list", {"instances": [row]}), ("get", {"instances": row})):
        fake.faults[kind].append(answer)
    with pytest.raises(ProviderUnavailable, match="cannot be read"):
        vast.list(MAIN)
    with pytest.raises(ProviderUnavailable, match="cannot be read"):
        vast.get(made.id)
    fake.faults["list"].append({"instances": [{**row, "label": "somebody else's"}]})
    assert vast.list(MAIN) == []


def test_a_list_without_an_end_is_left(fake: FakeVast, vast: Vast) -> None:
    fake.faults["list"].extend([{"instances": [], "next_token": "again"}] * 10)
    with pytest.raises(ProviderUnavailable, match="no end"):
        vast.list(MAIN)
    assert len(fake.calls("list")) == 2


@pytest.mark.parametrize("label", [None, "", "somebody else's"])
def test_a_machine_without_our_label_is_not_gone(
    fake: FakeVast, vast: Vast, label: str | None
) -> None:
    host = vast.create(offer_from(vast), boot_of())
    fake.machines[int(host.id)]["label"] = label
    with pytest.raises(ProviderUnavailable, match="without our label"):
        vast.get(host.id)
    vast.destroy(host.id)
    assert vast.get(host.id) is None
