"""Prefect's API for code that is not async: a drain is one thing after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from stillreel.errors import PrefectUnavailable
from stillreel.prefect_api import PAGE, Json, PrefectApi, connect
from stillreel.prefect_lock import LEASE_SECONDS, shared_lock
from stillreel.prefect_variable import make_variable, read_variable, write_variable

PATIENCE_SECONDS = 30.0


class PrefectCalls:
    """`PrefectApi`, whose calls block. They raise what it raises."""

    def __init__(self, api: PrefectApi, portal: BlockingPortal) -> None:
        self._api, self._portal = api, portal

    def get(self, path: str) -> Any:
        return self._portal.call(self._api.get, path)

    def ask(self, path: str, body: Any) -> Any:
        return self._portal.call(self._api.ask, path, body)

    def patch(self, path: str, body: Json) -> None:
        self._portal.call(self._api.patch, path, body)

    def pages(self, path: str, body: Json) -> list[Json]:
        """Everything that a filter finds, however many pages that are."""
        found: list[Json] = []
        while True:
            page = self.ask(path, body | {"limit": PAGE, "offset": len(found)})
            found += page
            if len(page) < PAGE:
                return found

    def make_variable(self, name: str, value: str) -> bool:
        """Whether this call has made it; False when there is one of this name."""
        made = self._portal.call(make_variable, self._api, name, value)
        there = made or self._portal.call(read_variable, self._api, name)
        return bool(there) and there["value"] == value  # also when our own call was tried twice

    def read_variable(self, name: str) -> str | None:
        """The value of this variable; None without one."""
        there = self._portal.call(read_variable, self._api, name)
        return str(there["value"]) if there else None

    def write_variable(self, name: str, value: str) -> None:
        """Give this variable a value, whether there is one or not."""
        if not self.make_variable(name, value):
            there = self._portal.call(read_variable, self._api, name)
            if not (there and self._portal.call(write_variable, self._api, there["id"], value)):
                raise PrefectUnavailable  # it went in between; the caller may try again

    @contextmanager
    def lock(self, name: str, *, lease: float = LEASE_SECONDS) -> Iterator[Callable[[], bool]]:
        """The shared lock of this name, see `prefect_lock`; one that is dead is outwaited.

        Gives the question whether it is held still.
        """
        patience = lease + PATIENCE_SECONDS
        held = shared_lock(self._api, name, lease=lease, patience=patience)
        with self._portal.wrap_async_context_manager(held) as is_held:
            yield lambda: self._portal.call(is_held)


@contextmanager
def prefect_calls(patience: float = PATIENCE_SECONDS) -> Iterator[PrefectCalls]:
    """Calls to the Prefect server of this process's settings. Raises SettingsInvalid."""
    with start_blocking_portal() as portal:
        api = portal.call(_connect, patience)
        try:
            yield PrefectCalls(api, portal)
        finally:
            portal.call(api.aclose)


async def _connect(patience: float) -> PrefectApi:
    return connect(patience)
