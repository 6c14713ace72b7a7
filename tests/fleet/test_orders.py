"""What a rented host is told, and from whom nothing is rented."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from stillreel.errors import LeaseRefused, ModelUnavailable, RequestRejected, SettingsInvalid
from stillreel.fleet.flows import model_of
from stillreel.fleet.labels import Label
from stillreel.fleet.leases import POOL
from stillreel.fleet.needs import NEEDS, need_of
from stillreel.fleet.orders import (
    granting,
    host_env,
    limits_of,
    opened,
    provider_of,
    seconds_per_job,
)
from stillreel.fleet.ranking import Batch, priced
from stillreel.gateway.lease import lease_in
from stillreel.models.registry import MODELS
from stillreel.settings import get_settings, secret_names
from tests.fleet.fake_world import FakeBook
from tests.fleet.test_ranking import GOOD

UNTIL = datetime(2026, 12, 1, 7, tzinfo=UTC)
LABEL = Label("main", str(uuid4()), 1)
CHOICE = priced(GOOD, Batch(1.0))
SERVER = {PREFECT_API_URL: "https://prefect.example/api", PREFECT_API_AUTH_STRING: "me:pass"}


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_RENTED_VIA", "direct")


def env_of() -> dict[str, str]:
    with temporary_settings(updates=SERVER):
        return dict(host_env(get_settings(), LABEL, CHOICE, UNTIL, no_grants))


def no_grants(label: Label, until: datetime) -> str:
    raise AssertionError("a host that goes the direct way has no lease token")


@pytest.mark.usefixtures("direct")
def test_a_host_knows_its_name_its_price_its_time_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "VAST_API_KEY": "account",
        "STILLREEL_WEBHOOK_SECRET": "whsec_" + "A" * 32,
        "STILLREEL_API_KEY": "first",
        "STILLREEL_SERVER_SECRET": "server",
        "R2_SECRET_KEY": "r2",
        "S3_BUCKET": "videos",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("R2_BUCKET", "R2_ENDPOINT", "R2_ACCESS_KEY", "R2_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert env_of() == {
        "PREFECT_API_URL": "https://prefect.example/api",
        "PREFECT_API_AUTH_STRING": "me:pass",
        "S3_BUCKET": "videos",
        "STILLREEL_HOST_NAME": str(LABEL),
        "STILLREEL_HOST_PRICE": "0.6600",
        "STILLREEL_RENTED_UNTIL": str(int(UNTIL.timestamp())),
        "STILLREEL_HOST_HOURS": "4",
        "STILLREEL_BOOT_MINUTES": "20",
        "STILLREEL_IDLE_MINUTES": "5",
        "STILLREEL_CONTACT_MINUTES": "15",
    }


@pytest.mark.usefixtures("direct")
def test_the_operator_says_what_else_a_host_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_RENTED_ENV", "HF_TOKEN, NOT_SET")
    monkeypatch.setenv("HF_TOKEN", "read-only")
    monkeypatch.setenv("STILLREEL_RENTED_API_URL", "https://outside.example/api/")
    monkeypatch.setenv("STILLREEL_API_URL", "https://api.example")
    env = env_of()
    assert env["HF_TOKEN"] == "read-only"
    assert "NOT_SET" not in env
    assert env["PREFECT_API_URL"] == "https://outside.example/api"
    assert env["STILLREEL_API_URL"] == "https://api.example"


@pytest.mark.usefixtures("direct")
def test_a_host_that_could_reach_no_prefect_is_not_rented() -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(SettingsInvalid, match="STILLREEL_RENTED_API_URL"),
    ):
        host_env(get_settings(), LABEL, CHOICE, UNTIL, no_grants)


def test_through_the_gateway_a_host_gets_a_lease_token_and_no_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STILLREEL_API_URL", "https://api.example")
    book = FakeBook()
    with temporary_settings(updates=SERVER):
        env = host_env(get_settings(), LABEL, CHOICE, UNTIL, granting(book))
    assert env["PREFECT_API_URL"] == "https://api.example/lease/api"
    token = env["PREFECT_API_AUTH_STRING"].removeprefix("lease:")
    run = {"id": LABEL.run_id, "flow_id": "f", "labels": {POOL: "a100"}}
    labels = run["labels"] | book.tokens[LABEL.run_id]
    lease = lease_in(run | {"labels": labels}, token, flow_id="f", now=UNTIL - timedelta(hours=1))
    assert (lease.pool, lease.expires) == ("a100", UNTIL)
    assert "me:pass" not in str(env)
    assert token not in str(book)
    book.start(LABEL.run_id)
    book.gone(LABEL.run_id, 1)
    labels = run["labels"] | book.tokens[LABEL.run_id]
    with pytest.raises(LeaseRefused):
        lease_in(run | {"labels": labels}, token, flow_id="f", now=UNTIL - timedelta(hours=1))


def test_through_the_gateway_a_host_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All that a process of the host has: environment, home and command lines."""
    monkeypatch.setenv("STILLREEL_API_URL", "https://api.example")
    unset = ("R2_", "STILLREEL_R2_", "STILLREEL_DATABASE", "DATABASE_", "REDIS", "STILLREEL_RE")
    for name in secret_names() - {"STILLREEL_LEASE_TOKEN"}:
        if not name.startswith(unset):  # R2 beside S3 is a mistake, and these are addresses
            monkeypatch.setenv(name, "whsec_c2VjcmV0LW9mLXRoZS1jb250cm9sLXNpZGU=")
    monkeypatch.setenv("S3_BUCKET", "videos-of-everybody")
    with temporary_settings(updates=SERVER):
        env = dict(host_env(get_settings(), LABEL, CHOICE, UNTIL, granting(FakeBook())))
    assert set(env) >= {"STILLREEL_LEASE_URL", "STILLREEL_LEASE_TOKEN"}
    assert not set(env) & (secret_names() - {"STILLREEL_LEASE_TOKEN"})
    env |= {"STILLREEL_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    process = subprocess.run(
        [sys.executable, "-c", _TELL_ALL], env=env, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    told = process.stdout
    assert "STILLREEL_LEASE_TOKEN" in told
    assert '"kind": "lease"' in told
    for secret in ("c2VjcmV0", "videos-of-everybody", "me:pass", "bWU6cGFzcw"):
        assert secret not in told
    assert told.count(env["STILLREEL_LEASE_TOKEN"]) == 2  # and as Prefect's credential


_TELL_ALL = """
import json, os, sys
from pathlib import Path
from stillreel.host import host_services
from stillreel.settings import get_settings, make_home
settings = get_settings()
make_home(settings)
services = host_services(settings, pool="a100", model="preview")
print(json.dumps({
    "kind": settings.storage.kind,
    "environment": dict(os.environ),
    "processes": [[service.argv, {n: v for n, v in service.env.items() if os.environ.get(n) != v}]
                  for service in services],
    "files": [path.read_text(errors="replace") for path in settings.host.home.rglob("*")
              if path.is_file()],
    "settings": repr(settings),
}))
"""


@pytest.mark.parametrize(
    "name", ["R2_SECRET_KEY", "S3_ACCESS_KEY_ID", "VAST_API_KEY", "MY_AUTH", "a_password",
             "STILLREEL_SERVER_SECRET", "DATABASE_URL", "AWS_PROFILE", "HF_TOKEN"]
)  # fmt: skip
def test_through_the_gateway_no_secret_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("STILLREEL_RENTED_ENV", f"S3_BUCKET, {name}")
    monkeypatch.setenv("STILLREEL_RENTED_VIA", "direct")
    assert name in get_settings().fleet.rented_env  # a host of one's own may have it
    get_settings.cache_clear()
    monkeypatch.delenv("STILLREEL_RENTED_VIA")
    with pytest.raises(SettingsInvalid, match=f"STILLREEL_RENTED_ENV: {name}"):
        get_settings()


def test_a_token_for_weights_is_passed_on_where_the_operator_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STILLREEL_API_URL", "https://api.example")
    monkeypatch.setenv("HF_TOKEN", "read-only")
    with temporary_settings(updates=SERVER):
        env = host_env(get_settings(), LABEL, CHOICE, UNTIL, granting(FakeBook()))
        assert "HF_TOKEN" not in env
        get_settings.cache_clear()
        monkeypatch.setenv("STILLREEL_RENTED_HF_TOKEN", "1")
        env = host_env(get_settings(), LABEL, CHOICE, UNTIL, granting(FakeBook()))
        assert env["HF_TOKEN"] == "read-only"


@pytest.mark.parametrize("url", ["", "http://api.example", "http://127.0.0.1.example"])
def test_no_token_is_granted_that_would_go_over_the_wire_in_clear(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("STILLREEL_API_URL", url)
    with pytest.raises(SettingsInvalid, match="STILLREEL_API_URL"):
        host_env(get_settings(), LABEL, CHOICE, UNTIL, no_grants)


def test_to_give_strangers_the_password_needs_a_word_from_the_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("VAST_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "k")
    monkeypatch.setenv("STILLREEL_WORKER_IMAGE", "a/b")
    with opened(get_settings().fleet, "vast", renting=True) as by_lease:
        assert not by_lease.is_trusted
    monkeypatch.setenv("STILLREEL_RENTED_VIA", "direct")
    get_settings.cache_clear()
    fleet = get_settings().fleet
    with (
        pytest.raises(SettingsInvalid, match="STILLREEL_ALLOW_UNTRUSTED_HOSTS=1"),
        opened(fleet, "vast", renting=True),
    ):
        raise AssertionError("it was opened")
    with opened(fleet, "vast", renting=False) as looking:
        assert looking.name == "vast"
    with opened(fleet, "ec2", renting=True) as own:
        assert own.is_trusted
    monkeypatch.setenv("STILLREEL_ALLOW_UNTRUSTED_HOSTS", "1")
    get_settings.cache_clear()
    with opened(get_settings().fleet, "vast", renting=True) as allowed:
        assert allowed.name == "vast"


@pytest.mark.parametrize(
    ("env", "missing"),
    [
        ({"STILLREEL_WORKER_IMAGE": "a/b"}, "VAST_API_KEY"),
        ({"VAST_API_KEY": "k"}, "STILLREEL_WORKER_IMAGE"),
    ],
)
def test_what_is_not_set_is_named(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], missing: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(SettingsInvalid, match=missing),
        opened(get_settings().fleet, "vast", renting=True),
    ):
        raise AssertionError("it was opened")


def test_accounts_are_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_settings().fleet.accounts == ()
    monkeypatch.setenv("VAST_API_KEY", "k")
    monkeypatch.setenv("STILLREEL_EC2", "1")
    get_settings.cache_clear()
    assert get_settings().fleet.accounts == ("vast", "ec2")


@pytest.mark.parametrize(
    ("env", "model", "provider"),
    [
        ({"VAST_API_KEY": "k", "STILLREEL_EC2": "1"}, "ltx-2", "vast"),
        ({"VAST_API_KEY": "k", "STILLREEL_EC2": "1"}, "wan-2.2", "ec2"),
        ({"VAST_API_KEY": "k"}, "wan-2.2", "vast"),
        ({"STILLREEL_EC2": "1"}, "ltx-2", "ec2"),
        (
            {"VAST_API_KEY": "k", "STILLREEL_EC2": "1", "STILLREEL_FLEET_PROVIDER": "ec2"},
            "ltx-2",
            "ec2",
        ),
    ],
)
def test_a_host_comes_from_an_account_of_ours(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], model: str, provider: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert provider_of(get_settings().fleet, model) == provider


@pytest.mark.parametrize(
    ("env", "missing"),
    [
        ({}, "STILLREEL_EC2=1"),
        ({"VAST_API_KEY": "k", "STILLREEL_FLEET_PROVIDER": "ec2"}, "STILLREEL_EC2=1"),
        ({"STILLREEL_EC2": "1", "STILLREEL_FLEET_PROVIDER": "vast"}, "VAST_API_KEY"),
    ],
)
def test_where_the_reaper_does_not_look_nothing_is_rented(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], missing: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=missing):
        provider_of(get_settings().fleet, "wan-2.2")


def test_the_default_rule_is_that_of_the_design() -> None:
    limits = limits_of(get_settings().fleet)
    assert limits.rule.threshold == 10
    assert limits.rule.oldest == timedelta(days=7)
    assert limits.idle == timedelta(minutes=5)
    assert limits.contact == timedelta(minutes=15)


def test_every_model_that_runs_here_has_a_need_and_a_time() -> None:
    assert set(NEEDS) == {"preview", "wan-2.2", "ltx-2"} <= set(MODELS)
    for model in NEEDS:
        assert 0 < seconds_per_job(model) < 3600
    with pytest.raises(ModelUnavailable, match="'nothing'"):
        need_of("nothing")


def test_pools_have_the_models_that_they_are_made_for() -> None:
    assert [model_of(pool) for pool in ("local", "g5", "a100")] == ["preview", "wan-2.2", "ltx-2"]
    for pool in ("control", "nowhere"):
        with pytest.raises(RequestRejected, match="choose one of"):
            model_of(pool)
