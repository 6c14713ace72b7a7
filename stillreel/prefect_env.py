"""Prefect's environment variables, set before Prefect is imported; what is set already stays."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stillreel.settings import Settings

RESULT_BLOCK_SLUG = "s3-bucket/stillreel-results"

_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Where a server is reached from its own machine that listens on all addresses."""
_CONNECTION = (
    "PREFECT_API_URL",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_SSL_CERT_FILE",
    "PREFECT_API_TLS_INSECURE_SKIP_VERIFY",
    "PREFECT_CLIENT_CUSTOM_HEADERS",
)


def common_env(settings: Settings) -> dict[str, str]:
    """What every process of ours gives Prefect: its own home, no calls to outside."""
    home = settings.host.home
    return {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def local_run_env(settings: Settings) -> dict[str, str]:
    """For a run without a server: Prefect starts a temporary one, which may take long at first."""
    return common_env(settings) | {
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the log stays with the run
    }


def server_env(settings: Settings) -> dict[str, str]:
    """For the Prefect server of `stillreel up` and `stillreel server`.

    Both UIs take a path as the API's address (3.8.8), so a browser finds it from any machine.
    """
    env = common_env(settings) | {
        "PREFECT_UI_API_URL": "/api",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # Jobs may wait for days until a host is rented: a write per job to call each of them late.
        "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
        # Each write of events may cost a job's create its turn on SQLite; 20 is one for a few jobs.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
        # What a deleted job's host still logs can go in no other way.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,orphans",
    }
    if database := settings.server.database_url.get_secret_value():
        env["PREFECT_API_DATABASE_CONNECTION_URL"] = database
    return unless_set(env)


def worker_env(settings: Settings) -> dict[str, str]:
    """For the worker of a host and the flow processes that it starts."""
    env = common_env(settings) | {
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
        # What Prefect answers while its database is away; 503 is tried again anyway.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
    }
    if settings.storage.kind in ("s3", "r2") and not has_lease():
        # So that another host finds what is finished; a lease reads no blocks.
        env["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"] = RESULT_BLOCK_SLUG
    return unless_set(env)


def has_lease() -> bool:
    """Whether this machine reaches Prefect through the gateway, by a lease token."""
    return os.environ.get("PREFECT_API_AUTH_STRING", "").startswith("lease:")


def listen_host(settings: Settings) -> str:
    """The address that `stillreel up` listens on: a name or an IP address without brackets."""
    return settings.server.prefect_host.removeprefix("[").removesuffix("]")


def api_url(settings: Settings) -> str:
    """The address of the Prefect API that `stillreel up` serves, as this machine reaches it."""
    host = listen_host(settings)
    host = _EVERYWHERE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.prefect_port}/api"


def pin_api() -> str:
    """The address of the operator's Prefect API, "" without one; call this before `apply`.

    It may stand in a profile in the operator's PREFECT_HOME, which `apply` replaces by ours. So it
    goes into the environment, with all that connecting to it takes: children speak to the same.
    """
    from prefect.settings import get_current_settings

    found = get_current_settings().to_environment_variables(exclude_unset=True)
    apply({name: found[name] for name in _CONNECTION if name in found})
    return found.get("PREFECT_API_URL", "")


def apply(env: dict[str, str]) -> None:
    """Put these into this process's environment, except where the operator has set something."""
    os.environ.update(unless_set(env))


def use_own_api(url: str) -> str:
    """Make this process and its children speak to our own server; gives another that was set."""
    other = os.environ.get("PREFECT_API_URL", "")
    os.environ["PREFECT_API_URL"] = url
    return "" if other == url else other


def unless_set(env: dict[str, str]) -> dict[str, str]:
    """Those of these that the operator has not set."""
    return {n: value for n, value in env.items() if n == "PATH" or n not in os.environ}
