"""`stillreel doctor` beside a real Prefect server with our deployments, and our API on it."""

from __future__ import annotations

import pytest

from stillreel.doctor import api as api_checks
from stillreel.doctor import prefect as prefect_checks
from stillreel.doctor.finding import has_failed
from stillreel.doctor.prefect import PrefectAddress
from stillreel.settings import get_settings
from tests.api.conftest import KEY, Api


def test_a_real_server_with_our_deployments_has_all_but_workers(prefect_api: str) -> None:
    found = [*prefect_checks.look(get_settings(), PrefectAddress(prefect_api, is_set=False))]
    assert not has_failed(found), found
    outcomes = {finding.check: finding.outcome for finding in found}
    assert outcomes["Prefect server"] == outcomes["deployments"] == outcomes["pool local"] == "ok"
    assert outcomes["queues of a100"] == "ok"
    assert outcomes["workers of g5"] == "warning"


def test_a_real_api_takes_its_key(
    api: Api, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLREEL_API_URL", api.url)
    monkeypatch.setenv("STILLREEL_API_KEY", KEY)
    address = PrefectAddress(prefect_api, is_set=False)
    found = {it.check: it.outcome for it in api_checks.look(get_settings(), address)}
    assert found["HTTP API"] == found["API key"] == "ok"
