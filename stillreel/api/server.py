"""Serves the API in the foreground: `python -m stillreel.api.server` is what `up` starts."""

from __future__ import annotations

import asyncio
import logging
import sys

import uvicorn

from stillreel.api.app import create_app
from stillreel.api.middleware import install_logging
from stillreel.errors import PrefectUnavailable, SettingsInvalid, StillreelError
from stillreel.owner_store import OwnerStore
from stillreel.prefect_api import connect
from stillreel.process import NO_RESTART
from stillreel.settings import Settings, get_settings

STOP_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep a connection that rests, 5 s in httpx: the one that closes it first is
to be the client, or a request may meet the closing."""


def run_api(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; event streams are ended then.

    Raises SettingsInvalid when there is no key at all, or the port cannot be used.
    """
    install_logging()
    asyncio.run(_expect_keys(settings))
    config = uvicorn.Config(
        create_app(settings),
        host=settings.api.api_host,
        port=settings.api.api_port,
        log_config=None,
        access_log=False,  # middleware.AccessLog writes a better one
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        server_header=False,
    )
    server = uvicorn.Server(config)
    server.run()
    if not server.started:
        raise StillreelError("the API did not start; its log above says why")


async def _expect_keys(settings: Settings) -> None:
    """Raises SettingsInvalid when nobody could make a request."""
    api = connect(settings.api.prefect_seconds)
    try:
        if await OwnerStore(api, settings).has_keys():
            return
    except PrefectUnavailable:
        return  # it may come back with keys; until then every answer is 503
    finally:
        await api.aclose()
    raise SettingsInvalid(
        "there is no API key: set STILLREEL_API_KEY, or make one with "
        "`stillreel owners create NAME` and `stillreel keys create NAME`"
    )


def main() -> None:
    """Run the API as a service of `up`."""
    try:
        run_api(get_settings())
    except StillreelError as exc:
        logging.getLogger("stillreel.api").error(exc.message)
        sys.exit(NO_RESTART)


if __name__ == "__main__":
    main()
