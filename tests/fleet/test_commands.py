"""`stillreel fleet` against a loopback Vast.ai; what needs Prefect is in tests/integration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import UUID

import httpx
import pytest
from typer.testing import CliRunner, Result

from stillreel import cli_fleet
from stillreel.cli import app, exit_code
from stillreel.errors import (
    HostUndestroyed,
    PrefectRefused,
    ProviderRefused,
    ProviderUnavailable,
    RequestRejected,
    SettingsInvalid,
)
from stillreel.fleet.labels import Label
from stillreel.fleet.needs import NEEDS
from stillreel.fleet.provider import Boot
from stillreel.fleet.renting import give_back
from stillreel.fleet.vast import Vast
from stillreel.project import load_flow
from stillreel.settings import FleetSettings, get_settings
from tests.fleet.fake_vast import KEY, FakeVast
from tests.fleet.test_orders import UNTIL
from tests.stack import free_port

LABELS = [Label("main", str(UUID(int=5)), n) for n in (1, 2)]
FOREIGN = Label("other", str(UUID(int=5)), 1)


@pytest.fixture
def vast(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVast]:
    """Two hosts of ours are rented there, and one of somebody else's."""
    with FakeVast() as fake:
        monkeypatch.setenv("VAST_API_KEY", KEY)
        monkeypatch.setenv("STILLREEL_VAST_URL", fake.url)
        driver = Vast(KEY, image="i", url=fake.url)
        for number, label in enumerate((*LABELS, FOREIGN)):
            fake.offer(number + 1)
            boot = Boot(label, "a100", "ltx-2", UNTIL, {}, 150)
            driver.create(driver.offers(NEEDS["ltx-2"])[0], boot)
        driver.close()
        yield fake


def run(*words: str) -> Result:
    get_settings.cache_clear()
    return CliRunner().invoke(app, words)


def rows(*words: str) -> list[dict[str, Any]]:
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_ours_are_listed_with_what_they_cost(vast: FakeVast) -> None:
    found = rows("fleet", "list")
    assert [row["label"] for row in found] == [str(label) for label in LABELS]
    assert {(row["provider"], row["state"], row["usd_per_hour"]) for row in found} == {
        ("vast", "booting", 0.66)
    }


def test_one_is_destroyed_by_its_label(vast: FakeVast) -> None:
    assert rows("fleet", "destroy", str(LABELS[0])) == [{"label": str(LABELS[0]), "gone": True}]
    assert vast.living() == [str(LABELS[1]), str(FOREIGN)]


def test_all_of_this_installation_are_destroyed_and_nobody_elses(vast: FakeVast) -> None:
    assert len(rows("fleet", "destroy", "--all")) == 2
    assert vast.living() == [str(FOREIGN)]
    assert rows("fleet", "destroy", "--all") == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param([], "labels of hosts, or --all", id="nothing"),
        pytest.param(["--all", str(LABELS[0])], "not both", id="both"),
        pytest.param(["nothing"], "no rented host is called nothing", id="unknown"),
        pytest.param([str(FOREIGN)], "no rented host is called", id="another installation's"),
    ],
)
def test_what_is_not_clear_destroys_nothing(vast: FakeVast, words: list[str], told: str) -> None:
    done = run("fleet", "destroy", *words)
    assert isinstance(done.exception, RequestRejected)
    assert told in done.exception.message
    assert exit_code(done.exception) == 2
    assert len(vast.living()) == 3


def test_without_an_account_the_list_is_empty_and_says_why() -> None:
    done = run("fleet", "list", "--json")
    assert json.loads(done.stdout) == []
    assert "VAST_API_KEY" in done.stderr


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (RuntimeError("Failed to reach API"), True),
        (PrefectRefused("no"), True),
        (httpx.ConnectError("away"), True),
        (SettingsInvalid("no account"), False),
    ],
)
def test_a_drain_for_ever_outlives_prefect_and_no_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, error: Exception, goes_on: bool
) -> None:
    rounds: list[float] = []

    def drain(**_: Any) -> Any:
        raise error

    def pause(seconds: float) -> None:
        rounds.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_fleet, "load_flow", lambda _: drain)
    monkeypatch.setattr(cli_fleet.time, "sleep", pause)
    with pytest.raises(KeyboardInterrupt if goes_on else SettingsInvalid):
        cli_fleet._drain_for_ever("a100", now=False)
    assert bool(rounds) == goes_on


def test_prefect_takes_the_key_of_every_pools_report() -> None:
    key = load_flow(cli_fleet.DRAIN_ENTRYPOINT).fn.__globals__["artifact_key"]
    assert [key(pool) for pool in ("g5", "a100-ltx-2.3")] == ["drain-g5", "drain-a100-ltx-2-3"]


@pytest.mark.parametrize("action", ["start", "stop"])
def test_an_instance_that_is_kept_has_to_be_named(action: str) -> None:
    done = run("fleet", action)
    assert isinstance(done.exception, SettingsInvalid)
    assert "STILLREEL_EC2_KEPT_INSTANCE" in done.exception.message


def test_a_provider_that_is_away_keeps_no_host_of_another_alive(
    vast: FakeVast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLREEL_EC2", "1")
    monkeypatch.setenv("STILLREEL_EC2_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests-secret")
    monkeypatch.setattr(FleetSettings, "accounts", ("ec2", "vast"))
    done = run("fleet", "destroy", "--all")
    assert isinstance(done.exception, ProviderUnavailable)
    assert vast.living() == [str(FOREIGN)]


def test_one_that_cannot_be_destroyed_keeps_no_other_alive(
    vast: FakeVast, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = min(vast.machines)
    destroy = Vast.destroy

    def refuse(driver: Vast, host_id: str) -> None:
        if host_id == str(first):
            raise ProviderRefused("not this one")
        destroy(driver, host_id)

    monkeypatch.setattr(Vast, "destroy", refuse)
    monkeypatch.setattr("stillreel.fleet.flows.give_back", partial(give_back, patience=0.0))
    done = run("fleet", "destroy", "--all")
    assert isinstance(done.exception, HostUndestroyed)
    assert vast.living() == [str(LABELS[0]), str(FOREIGN)]
