"""What happens behind the API: work of other processes, and what Prefect does in its own time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import stamina

from stillreel.api.services import Services, build_services
from stillreel.prefect_api import PrefectApi, connect
from tests.stack import _Patient

if TYPE_CHECKING:
    from tests.api.conftest import Api

T = TypeVar("T")


def keep(api: Api, work: Callable[[Services], Awaitable[T]]) -> T:
    """What the work gives, done now with services like those of another process."""
    return using(api, connect(30), work)


def using(api: Api, prefect: PrefectApi, work: Callable[[Services], Awaitable[T]]) -> T:
    """The same, where that process reaches Prefect in this way."""

    async def run() -> T:
        try:
            return await work(build_services(api.settings, prefect, on_submitted=lambda _: None))
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
