"""What Prefect is told: where its server is, for us, for our children and for a browser."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stillreel import prefect_env
from stillreel.errors import SettingsInvalid
from stillreel.settings import get_settings
from stillreel.up import run_up


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:4200/api"),
        ("prefect.internal", "http://prefect.internal:4200/api"),
        ("0.0.0.0", "http://127.0.0.1:4200/api"),
        ("::", "http://[::1]:4200/api"),
        ("[::]", "http://[::1]:4200/api"),
        ("::1", "http://[::1]:4200/api"),
        ("[fd00::7]", "http://[fd00::7]:4200/api"),
    ],
)
def test_the_api_has_an_address_that_can_be_called(
    monkeypatch: pytest.MonkeyPatch, host: str, url: str
) -> None:
    monkeypatch.setenv("STILLREEL_PREFECT_HOST", host)
    assert prefect_env.api_url(get_settings()) == url


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_browser_finds_the_api_where_it_found_the_page(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("STILLREEL_PREFECT_HOST", host)
    assert prefect_env.server_env(get_settings())["PREFECT_UI_API_URL"] == "/api"


def test_the_database_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://me:pw@db/prefect?sslmode=require")
    env = prefect_env.server_env(get_settings())
    url = "postgresql+asyncpg://me:pw@db/prefect?ssl=require"
    assert env["PREFECT_API_DATABASE_CONNECTION_URL"] == url


PROFILES = """\
active = "mine"

[profiles.mine]
PREFECT_API_URL = "http://127.0.0.1:9/api"
PREFECT_API_AUTH_STRING = "me:profile-password"
"""

PRINT_ENV = """
import json, os
from stillreel.prefect_env import apply, common_env, pin_api
from stillreel.settings import get_settings
url = pin_api()
apply(common_env(get_settings()))
print(json.dumps([url, dict(os.environ)]))
"""


@pytest.mark.parametrize(
    ("given", "url"),
    [
        pytest.param({}, "http://127.0.0.1:9/api", id="from the profile"),
        pytest.param(
            {"PREFECT_API_URL": "http://127.0.0.1:10/api"},
            "http://127.0.0.1:10/api",
            id="the environment wins",
        ),
    ],
)
def test_children_speak_to_the_server_of_the_operators_profile(
    tmp_path: Path, given: dict[str, str], url: str
) -> None:
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").write_text(PROFILES)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"HOME": str(tmp_path), "STILLREEL_HOME": str(tmp_path / "ours")} | given
    done = subprocess.run(
        [sys.executable, "-c", PRINT_ENV], env=env, capture_output=True, text=True, check=True
    )
    found, ours = json.loads(done.stdout)
    assert found == url
    assert ours["PREFECT_API_URL"] == url
    assert ours["PREFECT_API_AUTH_STRING"] == "me:profile-password"
    assert ours["PREFECT_HOME"] == str(tmp_path / "ours" / "prefect")


@pytest.fixture(params=["127.0.0.1", "::1"])
def taken(
    request: pytest.FixtureRequest, require: Callable[[str, bool], None]
) -> Iterator[tuple[str, int]]:
    """An address of this machine that somebody listens on."""
    host: str = request.param
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            require("IPv6 on loopback", False)
        listener.listen()
        yield host, listener.getsockname()[1]


def test_a_port_in_use_is_told_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, taken: tuple[str, int]
) -> None:
    host, port = taken
    monkeypatch.setenv("STILLREEL_PREFECT_HOST", host)
    monkeypatch.setenv("STILLREEL_PREFECT_PORT", str(port))
    with pytest.raises(SettingsInvalid, match=f"port {port} on {host} .*already in use"):
        run_up(get_settings(), pool="local", model="")
