"""A value that is read for many at once and told for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """What `read` gave at most `seconds` ago.

    Callers at one time share a reading, and its error too, so that none waits for a reading that
    failed and then for its own. An error is told to nobody who asks after it. What is older than
    `seconds` and not than `stale` is told while a newer reading is under way.
    """

    def __init__(
        self, read: Callable[[], Awaitable[T]], *, seconds: float, stale: float = 0.0
    ) -> None:
        self._read, self._seconds, self._stale = read, seconds, stale
        self._reading: asyncio.Future[T] | None = None
        self._ended_at = self._good_at = float("-inf")
        self._good: asyncio.Future[T] | None = None

    async def get(self, *, anew: bool = False) -> T:
        """The value; `anew` reads it now. Raises what `read` raises."""
        reading = self._reading
        if reading is None or anew or (reading.done() and self._is_old(reading)):
            reading = self._reading = asyncio.ensure_future(self._read())
            reading.add_done_callback(self._end)
        if self._good and not anew and time.monotonic() - self._good_at < self._stale:
            return self._good.result()
        return await asyncio.shield(reading)

    def _is_old(self, reading: asyncio.Future[T]) -> bool:
        if reading.cancelled() or reading.exception():
            return True
        return time.monotonic() - self._ended_at >= self._seconds

    def _end(self, reading: asyncio.Future[T]) -> None:
        self._ended_at = time.monotonic()
        # The exception is looked at here, also where nobody waits for it any more.
        if not reading.cancelled() and reading.exception() is None:
            self._good, self._good_at = reading, self._ended_at
