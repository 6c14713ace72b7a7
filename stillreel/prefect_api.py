"""Prefect's HTTP API as the control side uses it: plain JSON, bounded patience, one writer."""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import httpx

from stillreel.errors import PrefectRefused, PrefectUnavailable, SettingsInvalid

PAGE = 200
"""The most that Prefect gives in one answer."""
FORWARD_SECONDS = 30.0
FIRST_WAIT, LONGEST_WAIT = 0.05, 0.8
_PASSING = (429, 502, 503, 504)

IN_BACKGROUND: ContextVar[bool] = ContextVar("in_background", default=False)
"""Whether nobody waits for what is done here; of such writes one at most is before a caller's."""

Json = dict[str, Any]


class PrefectApi:
    """Prefect's API, tried again for `patience` seconds where it is busy or away.

    SQLite refuses a part of all writes with 503 and drops connections while it is busy, so writes
    go one at a time and each is one that may be repeated. Every call raises PrefectUnavailable
    when the patience is over, the wait for its turn included, and PrefectRefused (with its
    `status`) for any other answer than 2xx.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        verify: bool | ssl.SSLContext = True,
        patience: float = 4.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.patience = patience
        self.spent = 0.0
        """Seconds spent in calls so far, waiting included; for measurements."""
        self.on_write: Callable[[str], None] = lambda _: None
        """Called with the path of each write, once nothing of it is under way any more."""
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=dict(headers or {}),
            verify=verify,
            trust_env=False,
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16),
        )
        self._writer = asyncio.Semaphore(1)
        self._in_background = asyncio.Semaphore(1)
        self._calls: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()

    async def aclose(self) -> None:
        """Close the connections; calls under way, and later ones, raise PrefectUnavailable.

        httpx leaks the socket of a call that is still connecting when its client is closed.
        """
        for call in self._calls:
            if not call.expired():
                call.reschedule(0.0)
        while self._calls:
            self._idle.clear()
            await self._idle.wait()
        await self._client.aclose()

    async def get(self, path: str, *, patience: float | None = None) -> Any:
        return await self._call("GET", path, None, patience)

    async def ask(self, path: str, body: Any, *, patience: float | None = None) -> Any:
        """POST that only reads: a filter or a count."""
        return await self._call("POST", path, body, patience)

    async def post(self, path: str, body: Any, *, patience: float | None = None) -> Any:
        return await self._call("POST", path, body, patience, writes=True)

    async def patch(self, path: str, body: Any) -> None:
        await self._call("PATCH", path, body, None, writes=True)

    async def delete(self, path: str) -> None:
        await self._call("DELETE", path, None, None, writes=True)

    async def forward(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """One try of a call that somebody else makes, whatever Prefect's answer.

        Raises PrefectUnavailable where none comes within FORWARD_SECONDS.
        """
        if self._client.is_closed:
            raise PrefectUnavailable
        try:
            async with self._under_way(FORWARD_SECONDS):
                return await self._client.request(method, path, json=body, timeout=None)
        except (TimeoutError, httpx.TransportError) as exc:
            raise PrefectUnavailable from exc

    async def _call(
        self, method: str, path: str, body: Any, patience: float | None, *, writes: bool = False
    ) -> Any:
        if self._client.is_closed:
            raise PrefectUnavailable
        started = time.monotonic()
        deadline = started + (self.patience if patience is None else patience)
        try:
            async with self._under_way(deadline - started):
                return await self._try(method, path, body, deadline, writes=writes)
        except TimeoutError as exc:
            raise PrefectUnavailable from exc
        finally:
            self.spent += time.monotonic() - started
            if writes:
                self.on_write(path)

    @asynccontextmanager
    async def _under_way(self, seconds: float) -> AsyncIterator[None]:
        """The time of one call, which `aclose` ends. Raises TimeoutError."""
        async with asyncio.timeout(seconds) as call:
            self._calls.add(call)
            try:
                yield
            finally:
                self._calls.discard(call)
                self._idle.set()

    async def _try(
        self, method: str, path: str, body: Any, deadline: float, *, writes: bool
    ) -> Any:
        wait = FIRST_WAIT
        while True:
            try:
                async with self._turn(writes=writes):
                    response = await self._client.request(method, path, json=body, timeout=None)
            except httpx.TransportError as exc:
                if time.monotonic() + wait > deadline:
                    raise PrefectUnavailable from exc
            else:
                if not await self._passes(response):
                    return _data(response)
                if time.monotonic() + wait > deadline:
                    raise PrefectUnavailable
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait = min(wait * 2, LONGEST_WAIT)

    async def _passes(self, response: httpx.Response) -> bool:
        """Whether a later try may be answered otherwise.

        Prefect answers 500 for one bad run, which stays bad, and for all while it has no database.
        """
        if response.status_code != 500:
            return response.status_code in _PASSING
        try:
            ready = await self._client.get("/ready", timeout=None)
        except httpx.TransportError:
            return True
        return ready.status_code == 503

    @asynccontextmanager
    async def _turn(self, *, writes: bool) -> AsyncIterator[None]:
        """The turn of one try; who waits between two tries holds up nobody."""
        if not writes:
            yield
        elif IN_BACKGROUND.get():
            async with self._in_background, self._writer:
                yield
        else:
            async with self._writer:
                yield


def connect(patience: float) -> PrefectApi:
    """The Prefect API that this process's Prefect settings name; opens no connection yet.

    Raises SettingsInvalid when they name none.
    """
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    if not api.url:
        raise SettingsInvalid(
            "PREFECT_API_URL is not set; set it to your Prefect server's address, e.g. "
            "http://127.0.0.1:4200/api"
        )
    headers: dict[str, str] = {}
    if api.key:
        headers["Authorization"] = f"Bearer {api.key.get_secret_value()}"
    elif api.auth_string:
        pair = base64.b64encode(api.auth_string.get_secret_value().encode()).decode()
        headers["Authorization"] = f"Basic {pair}"
    verify: bool | ssl.SSLContext = not api.tls_insecure_skip_verify
    if verify and api.ssl_cert_file:
        verify = ssl.create_default_context(cafile=api.ssl_cert_file)
    return PrefectApi(str(api.url), headers=headers, verify=verify, patience=patience)


def _data(response: httpx.Response) -> Any:
    status = response.status_code
    if status == 204:
        return None
    if response.is_success:
        return response.json()
    refused = PrefectRefused(f"The Prefect server answers {status}; see its log.")
    refused.status = status
    raise refused
