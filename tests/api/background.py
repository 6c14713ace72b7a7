"""What happens behind the API: the keeper's chores, and what Prefect does in its own time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import stamina

from stillreel.api.services import Services, build_services
from stillreel.prefect_api import connect
from tests.api.conftest import Api
from tests.stack import _Patient


def keep(api: Api, chore: Callable[[Services], Awaitable[Any]]) -> Any:
    """What a chore gives, done now, on services of its own."""

    async def run() -> Any:
        prefect = connect(10)
        try:
            return await chore(build_services(api.settings, prefect, on_submitted=lambda _: None))
        finally:
            await prefect.aclose()

    return asyncio.run(run())


def eventually() -> Any:
    """`for attempt in eventually(): with attempt: assert ...`, which is true within seconds."""
    return stamina.retry_context(
        on=AssertionError, timeout=30, attempts=None, wait_initial=0.05, wait_max=0.5
    )


def prefect_client(url: str) -> httpx.Client:
    """A client of Prefect's API that tries again where SQLite is busy."""
    return httpx.Client(base_url=url, transport=_Patient(), timeout=30, trust_env=False)
