"""Which of several keepers acts: the one that holds a Prefect variable, and says so all the time.

No clocks are compared. A leader that has not written for `BEAT_SECONDS` * 2 by its own clock does
not act; another one takes over when it has seen the variable unchanged for `LEASE_SECONDS` by its.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from stillreel.errors import StillreelError
from stillreel.prefect_api import IN_BACKGROUND, PrefectApi
from stillreel.prefect_variable import (
    delete_variable,
    make_variable,
    read_variable,
    write_variable,
)

VARIABLE = "stillreel_keeper"
BEAT_SECONDS = 4.0
LEASE_SECONDS = 20.0

log = logging.getLogger("stillreel.keeper")


class Leader:
    """Tries to lead for as long as `run` runs; `on_lead` is called each time it begins to."""

    def __init__(
        self,
        api: PrefectApi,
        *,
        on_lead: Callable[[], None],
        beat: float = BEAT_SECONDS,
        lease: float = LEASE_SECONDS,
    ) -> None:
        self._api = api
        self._on_lead = on_lead
        self._beat, self._lease = beat, lease
        self._token = uuid4().hex
        self._beats = 0
        self._is_told = False
        self._held: str = ""
        """The id of the variable while it is ours."""
        self._wrote_at = float("-inf")
        self._seen: tuple[str, str] = ("", "")
        self._seen_at = time.monotonic()

    @property
    def leads(self) -> bool:
        """Whether this process may act; not after a pause that it did not notice."""
        return bool(self._held) and time.monotonic() - self._wrote_at < 2 * self._beat

    async def run(self) -> None:
        """Take part until cancelled, then leave the lead to others at once."""
        IN_BACKGROUND.set(False)  # behind a keeper's own writes it would lose the lead to nobody
        try:
            while True:
                await self._once()
                await asyncio.sleep(self._beat)
        finally:
            await asyncio.shield(self._leave())

    async def _once(self) -> None:
        try:
            if self._held:
                await self._renew()
            if not self._held:
                await self._try_to_take()
        except StillreelError as exc:
            if not (self._held or self._is_told):  # a leader's chores say it themselves
                log.info("the keeper waits: %s", exc.message)
            self._is_told = True
        except Exception:  # without this loop nobody keeps any more
            log.exception("who keeps is not known")
        else:
            self._is_told = False

    async def _renew(self) -> None:
        asked_at = time.monotonic()
        self._beats += 1
        if await write_variable(self._api, self._held, self._value):
            self._wrote_at = asked_at
        else:
            log.info("another keeper has taken over")
            self._held = ""

    async def _try_to_take(self) -> None:
        asked_at = time.monotonic()
        there = await make_variable(self._api, VARIABLE, self._value)
        there = there or await read_variable(self._api, VARIABLE)
        if there is None:  # it went in between
            return
        if there["value"].startswith(self._token):  # also when our own call was tried twice
            self._held, self._wrote_at = there["id"], asked_at
            log.info("this keeper looks after the jobs")
            self._on_lead()
        elif (there["id"], there["value"]) != self._seen:
            self._seen, self._seen_at = (there["id"], there["value"]), asked_at
        elif asked_at - self._seen_at > self._lease:
            log.info("the keeper that led is silent; this one takes over")
            await delete_variable(self._api, there["id"])

    async def _leave(self) -> None:
        held, self._held = self._held, ""
        if held:
            with suppress(StillreelError):  # then it is taken over, some seconds later
                await delete_variable(self._api, held)

    @property
    def _value(self) -> str:
        return f"{self._token} {self._beats}"
