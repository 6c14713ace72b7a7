"""What a command works with: settings, the HTTP API, the Prefect server, the owners it keeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from stillreel.errors import SettingsInvalid, Unauthorized

if TYPE_CHECKING:
    from stillreel.client import Client
    from stillreel.owner_store import OwnerStore
    from stillreel.settings import Settings

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds that a person is kept waiting where there is no API."""


def home_settings() -> Settings:
    """The settings, with a home and styles that can be used. Raises SettingsInvalid."""
    from stillreel.models.styles import get_styles
    from stillreel.settings import get_settings, make_home

    settings = get_settings()
    make_home(settings)
    get_styles()
    return settings


def prefect_settings() -> Settings:
    """The same, and Prefect in this process goes by them; call it before a flow is imported.

    Raises SettingsInvalid, also where no Prefect server is set.
    """
    from stillreel.prefect_env import apply, common_env

    settings = home_settings()
    need_api()
    apply(common_env(settings))
    return settings


def need_api() -> None:
    """Raises SettingsInvalid where no Prefect server is set."""
    from stillreel.prefect_env import pin_api

    if not pin_api():
        raise SettingsInvalid(
            "PREFECT_API_URL is not set; set it to your Prefect server's address, e.g. "
            "http://127.0.0.1:4200/api, or run `stillreel up` to have everything on this machine"
        )


@contextmanager
def api_client() -> Iterator[Client]:
    """A client of the HTTP API. Raises SettingsInvalid inside for a key that is none there."""
    from stillreel.client import Client

    with Client(patience=PATIENCE) as client:
        try:
            yield client
        except Unauthorized as exc:
            raise SettingsInvalid(
                f"the API at {client.base_url} does not know this API key; set STILLREEL_API_KEY "
                "to one of its keys (`stillreel keys create` makes one)"
            ) from exc


def with_owners(work: Callable[[OwnerStore], Awaitable[T]]) -> T:
    """What `work` gives with the owners of the installation. Raises SettingsInvalid."""
    import anyio

    from stillreel.audit import audit, auditing
    from stillreel.owner_store import OwnerStore
    from stillreel.prefect_api import connect

    settings = prefect_settings()

    async def main() -> T:
        api = connect(patience=10.0)
        try:
            async with auditing(api):
                return await work(OwnerStore(api, settings, audit=audit))
        finally:
            await api.aclose()

    return anyio.run(main)
