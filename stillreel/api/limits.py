"""How much one key may ask for: requests in a minute, and streams at once.

Counted in each process for itself: with N API processes a key gets up to N times as much.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from limits import RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from stillreel.errors import TooManyRequests


class RateLimits:
    """Requests per key in a fixed window of a minute, which begins with a key's first request."""

    def __init__(self, requests_per_minute: int) -> None:
        self._limit = RateLimitItemPerMinute(requests_per_minute)
        self._limiter = FixedWindowRateLimiter(_Windows())
        self._policy = f'"requests";q={requests_per_minute};w={self._limit.get_expiry()}'

    def hit(self, key_id: str) -> Mapping[str, str]:
        """Count a request; the headers of draft-ietf-httpapi-ratelimit-headers-10.

        Raises TooManyRequests, with the same headers, when the key's minute is used up.
        """
        allowed = self._limiter.hit(self._limit, key_id)
        reset, remaining = self._limiter.get_window_stats(self._limit, key_id)
        seconds = max(0, math.ceil(reset - time.time()))
        headers = {
            "RateLimit-Policy": self._policy,
            "RateLimit": f'"requests";r={remaining};t={seconds}',
        }
        if not allowed:
            raise _OverRate(self._limit.amount, seconds, headers)
        return headers


class Streams:
    """Event streams and sockets that a key has open at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    @asynccontextmanager
    async def opened(self, key_id: str) -> AsyncIterator[None]:
        """Count a stream for as long as it is open.

        Raises TooManyRequests when the key has as many open as it may.
        """
        if self._open[key_id] >= self._limit:
            raise TooManyRequests(
                f"This key has {self._limit} event streams open, which is the most; close one."
            )
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]


class _OverRate(TooManyRequests):
    """The key's requests of this minute are used up."""

    def __init__(self, limit: int, seconds: int, headers: Mapping[str, str]) -> None:
        super().__init__(
            f"This key may make {limit} requests in a minute; wait {seconds} s, or poll less often "
            "(an event stream or a webhook needs no polling)."
        )
        self.retry_after = seconds
        self.headers = headers


class _Windows(Storage):
    """Counts in memory. The library's own starts a thread at each hit after an idle moment."""

    STORAGE_SCHEME = None

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[str, tuple[int, float]] = {}

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = time.time()
        count, end = self._windows.get(key, (0, 0.0))
        if end <= now:
            self._drop_ended(now)
            count, end = 0, now + expiry
        self._windows[key] = (count + amount, end)
        return count + amount

    def get(self, key: str) -> int:
        return self._windows.get(key, (0, 0.0))[0]

    def get_expiry(self, key: str) -> float:
        return self._windows.get(key, (0, 0.0))[1]

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        self._windows.clear()

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _drop_ended(self, now: float) -> None:
        self._windows = {key: window for key, window in self._windows.items() if window[1] > now}
