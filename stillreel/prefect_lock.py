"""A lock that processes on all machines share: a Prefect variable, which only one can make."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import stamina

from stillreel.errors import PrefectUnavailable
from stillreel.prefect_api import PrefectApi
from stillreel.prefect_variable import delete_variable, make_variable, read_variable

LEASE_SECONDS, PATIENCE_SECONDS = 15.0, 30.0

log = logging.getLogger("stillreel.prefect_lock")


@asynccontextmanager
async def shared_lock(
    api: PrefectApi,
    name: str,
    *,
    lease: float = LEASE_SECONDS,
    patience: float = PATIENCE_SECONDS,
) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """Hold the lock `name` for this block, which must take less than `lease` seconds.

    A holder that died loses it when another has seen it unchanged for that long, so no clocks are
    compared. Gives a question for a holder that may have been slower: whether it is known to have
    the lock still. Raises PrefectUnavailable when it is not to be had within `patience` seconds.
    """
    lock_id = await _take(api, name, lease, patience)
    try:
        yield lambda: _is_held(api, name, lock_id)
    finally:
        await _release(api, name, lock_id)


async def _take(api: PrefectApi, name: str, lease: float, patience: float) -> str:
    token, seen, since = uuid4().hex, "", time.monotonic()
    async for attempt in stamina.retry_context(
        on=_Held, attempts=None, timeout=patience, wait_initial=0.05, wait_max=0.5
    ):
        with attempt:
            there = await make_variable(api, name, token) or await read_variable(api, name)
            if there and there["value"] == token:  # also when our own call was tried twice
                return there["id"]
            if there and there["id"] != seen:
                seen, since = there["id"], time.monotonic()
            elif there and time.monotonic() - since > lease:
                await delete_variable(api, seen)
            raise _Held
    raise _Held


async def _is_held(api: PrefectApi, name: str, lock_id: str) -> bool:
    try:
        there = await read_variable(api, name)
    except PrefectUnavailable:
        return False
    return bool(there) and there["id"] == lock_id


async def _release(api: PrefectApi, name: str, lock_id: str) -> None:
    try:
        await delete_variable(api, lock_id)
    except PrefectUnavailable:
        log.warning("the lock %s could not be given back; it ends by itself", name)


class _Held(PrefectUnavailable):
    """Another process is changing the same thing; try again in a moment."""
