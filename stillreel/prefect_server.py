"""The Prefect server of an installation: whole, or its parts apart, several of them as one."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from importlib.util import find_spec

from stillreel import prefect_env
from stillreel.errors import SettingsInvalid
from stillreel.settings import Settings


class Part(StrEnum):
    """What one process does of a Prefect server's work."""

    ALL = "all"
    API = "api"
    """API and UI; may run several times."""
    SERVICES = "services"
    """What happens without being asked: schedules, vacuum, workers that went away."""
    MIGRATE = "migrate"
    """Bring the database to this release, and end."""


def run_server(settings: Settings, part: Part) -> None:
    """Become that part of the Prefect server; does not return.

    Raises SettingsInvalid where parts run apart without Postgres and Redis.
    """
    pages = settings.host.home / "prefect" / "ui"
    pages.mkdir(parents=True, exist_ok=True)
    own = {"PREFECT_UI_STATIC_DIRECTORY": str(pages)}  # where it is installed it may not write
    env = os.environ | prefect_env.server_env(settings) | redis_env(settings, part)
    env |= prefect_env.unless_set(own)
    argv = server_argv(settings, part)
    os.execve(argv[0], argv, env)  # noqa: S606


def server_argv(settings: Settings, part: Part = Part.ALL) -> list[str]:
    """The command of that part."""
    prefect = [sys.executable, "-m", "prefect", "server"]
    if part is Part.MIGRATE:
        return [*prefect, "database", "upgrade", "--yes"]
    if part is Part.SERVICES:
        return [*prefect, "services", "start"]
    listen = ["--host", prefect_env.listen_host(settings)]
    port = ["--port", str(settings.server.prefect_port)]
    apart = ["--no-services"] if part is Part.API else []
    return [*prefect, "start", *listen, *port, "--log-level", "WARNING", *apart]


def redis_env(settings: Settings, part: Part) -> dict[str, str]:
    """How the parts speak to each other; nothing where one process is the whole server.

    Raises SettingsInvalid where they could not.
    """
    url = settings.server.redis_url.get_secret_value()
    if part in (Part.ALL, Part.MIGRATE) and not url:
        return {}
    if not url or not settings.server.database_url.get_secret_value():
        raise SettingsInvalid(
            f"a Prefect server in parts (--part {part}) needs Postgres and Redis between them; set "
            "DATABASE_URL and REDIS_URL, or run it whole with --part all"
        )
    if find_spec("prefect_redis") is None:
        raise SettingsInvalid(
            "REDIS_URL is set, but the package prefect-redis is not installed; install what "
            "infra/docker/server-requirements.txt names, or unset REDIS_URL and run one server"
        )
    return prefect_env.unless_set(
        {
            "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
            "PREFECT_REDIS_MESSAGING_URL": url,
            "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": url,  # it does not look at the one above
            "PREFECT_SERVER_DOCKET_URL": url,
        }
    )
