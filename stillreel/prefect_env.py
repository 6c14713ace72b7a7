"""Prefect's environment variables, set before Prefect is imported; what is set already stays."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stillreel.settings import Settings

RESULT_BLOCK_SLUG = "s3-bucket/stillreel-results"


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
    """For the Prefect server of `stillreel up`."""
    env = common_env(settings) | {
        "PREFECT_UI_API_URL": api_url(settings),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    }
    if database := settings.server.database_url.get_secret_value():
        _, _, address = database.partition("://")
        env["PREFECT_API_DATABASE_CONNECTION_URL"] = f"postgresql+asyncpg://{address}"
    return env


def worker_env(settings: Settings) -> dict[str, str]:
    """For the worker of a host and the flow processes that it starts."""
    env = common_env(settings) | {
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
    }
    if settings.storage.kind != "local":  # so that another host finds what is finished
        env["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"] = RESULT_BLOCK_SLUG
    return env


def api_url(settings: Settings) -> str:
    """The address of the Prefect API that `stillreel up` serves."""
    return f"http://{settings.server.prefect_host}:{settings.server.prefect_port}/api"


def apply(env: dict[str, str]) -> None:
    """Put these into this process's environment, except where the operator has set something."""
    for name, value in env.items():
        if name == "PATH" or name not in os.environ:
            os.environ[name] = value
