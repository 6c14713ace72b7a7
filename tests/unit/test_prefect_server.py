"""The parts of a Prefect server: which command each is, and what it needs."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from stillreel.cli import app
from stillreel.errors import RequestRejected, SettingsInvalid
from stillreel.prefect_server import Part, redis_env, server_argv
from stillreel.settings import Settings, get_settings

POSTGRES, REDIS = "postgresql://me:pw@db/prefect", "redis://:pw@cache:6379/0"


def settings(monkeypatch: pytest.MonkeyPatch, **env: str) -> Settings:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    return get_settings()


def test_a_part_is_a_command_of_prefects() -> None:
    made = {part: " ".join(server_argv(get_settings(), part)[3:]) for part in Part}
    assert made[Part.API].startswith("server start --host 127.0.0.1 --port 4200")
    assert made[Part.API].endswith(" --no-services")
    assert made[Part.ALL] + " --no-services" == made[Part.API]
    assert made[Part.SERVICES] == "server services start"
    assert made[Part.MIGRATE] == "server database upgrade --yes"


@pytest.mark.parametrize("env", [{}, {"DATABASE_URL": POSTGRES}, {"REDIS_URL": REDIS}])
@pytest.mark.parametrize("part", [Part.API, Part.SERVICES])
def test_parts_apart_need_both_servers_between_them(
    monkeypatch: pytest.MonkeyPatch, part: Part, env: dict[str, str]
) -> None:
    with pytest.raises(SettingsInvalid, match="set DATABASE_URL and REDIS_URL"):
        redis_env(settings(monkeypatch, **env), part)


def test_a_whole_server_needs_neither() -> None:
    assert redis_env(get_settings(), Part.ALL) == {}
    assert redis_env(get_settings(), Part.MIGRATE) == {}


def test_redis_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(monkeypatch, DATABASE_URL=POSTGRES, REDIS_URL=REDIS)

    with pytest.raises(SettingsInvalid, match="prefect-redis is not installed") as caught:
        redis_env(found, Part.API)
    assert "pw" not in caught.value.message


def test_an_unknown_part_is_refused() -> None:
    done = CliRunner().invoke(app, ["server", "--part", "half"])
    assert isinstance(done.exception, RequestRejected)
    assert "all, api, services, migrate" in done.exception.message
