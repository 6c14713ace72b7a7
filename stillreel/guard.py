"""Calls to addresses that a caller chose: public ones only, each pinned, every answer bounded."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import zlib
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, NoReturn, TypeVar

import httpx

from stillreel.errors import (
    AddressRefused,
    ImageFetchFailed,
    ImageRejected,
    ImageTooLarge,
    ImageUnavailable,
)
from stillreel.settings import Settings

log = logging.getLogger("stillreel.guard")

Address = IPv4Address | IPv6Address
T = TypeVar("T")

EVERYWHERE = ("*",)
"""The `allow` of a URL that the operator registered; no pair, so no setting can hold it."""
CONNECT_SECONDS = 5.0
"""For one address; a host with a dead first address still has time for its second."""
MAX_REDIRECTS = 5
MAX_ADDRESSES = 8

_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
_PROVIDER_INNER = (ip_network("168.63.129.16/32"), ip_network("192.0.0.0/24"))
"""Look public and are not: the inner services of Azure and Oracle Cloud."""
_RESOLVERS = ThreadPoolExecutor(8, "dns")
"""Names that callers give may take their servers' time; no other work waits behind them."""


class GuardedTransport(httpx.AsyncBaseTransport):
    """Carries requests to public addresses, or to the `host:port` pairs of `allow`, nowhere else.

    A pair is compared with the URL's own host and port (`fetch.allow_addresses` has the form);
    neither another port nor another name of the same address is meant by it. Each request, so
    each hop of a redirect too, has its host resolved once and goes to an address that was checked:
    no second DNS answer is asked for. Raises AddressRefused, always with the same text, and
    httpx.TransportError.
    """

    def __init__(self, allow: Sequence[str] = (), *, tls: ssl.SSLContext | None = None) -> None:
        self._allow = frozenset(allow)
        # A kept connection would be reused for another name at the same address.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._inner = httpx.AsyncHTTPTransport(
            verify=tls or _public_tls(), trust_env=False, limits=limits
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        *others, last = await self.check(request.url)
        for address in others:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._inner.handle_async_request(_pinned(request, address))
        return await self._inner.handle_async_request(_pinned(request, last))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def check(self, url: httpx.URL) -> list[Address]:
        """The addresses to call for this URL. Raises AddressRefused, httpx.TransportError."""
        plain = url.scheme in ("http", "https") and url.host and not url.userinfo
        if not plain or not 0 < _port(url) < 65536:
            raise AddressRefused
        addresses = await _resolve(url)
        if not addresses or not (self._allows(url) or all(map(is_public, addresses))):
            raise AddressRefused
        return addresses[:MAX_ADDRESSES]

    def _allows(self, url: httpx.URL) -> bool:
        return not self._allow.isdisjoint((*EVERYWHERE, _pair(url)))


def guarded_client(allow: Sequence[str] = (), *, redirects: int = 0) -> httpx.AsyncClient:
    """A client whose every hop is guarded; the caller sets the total deadline.

    Reads nothing from the environment: a proxy would do the resolving and undo the guard.
    """
    return httpx.AsyncClient(
        transport=GuardedTransport(allow),
        trust_env=False,
        follow_redirects=redirects > 0,
        max_redirects=redirects,
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        headers={"User-Agent": "stillreel"},
    )


async def fetch_bytes(
    url: str, *, limit: int, seconds: float, allow: Sequence[str] = ()
) -> tuple[bytes, str]:
    """The body at `url` and the media type that its server states for it (may be empty).

    At most `limit` bytes, as sent and as decoded, and at most `seconds` in all, name resolution
    included. Raises AddressRefused, ImageTooLarge, ImageUnavailable, ImageRejected (an encoding we
    do not read), and ImageFetchFailed where a later try may succeed.
    """
    headers = {"Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity"}
    try:
        async with (
            asyncio.timeout(seconds),
            guarded_client(allow, redirects=MAX_REDIRECTS) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            _expect_success(response.status_code)
            raw = await _read(response, limit)
            body = _decoded(raw, response.headers.get("content-encoding", ""), limit)
            return body, response.headers.get("content-type", "")
    except httpx.InvalidURL as exc:
        raise AddressRefused from exc
    except httpx.TooManyRedirects as exc:
        raise ImageUnavailable(
            f"The image's address redirects more than {MAX_REDIRECTS} times; give the final one."
        ) from exc
    except TimeoutError as exc:
        raise ImageFetchFailed(
            f"The image was not here in full after {seconds:g} s; try again, or upload the image."
        ) from exc
    except (httpx.HTTPError, OSError) as exc:
        raise ImageFetchFailed(
            "The image could not be fetched: the connection to its server failed; try again."
        ) from exc


async def check_url(url: str, allow: Sequence[str] = (), *, seconds: float = 2.0) -> None:
    """Nothing, when `url` may be called as far as can be told now; each call checks it again.

    A name that cannot be resolved in time is let through. Raises AddressRefused.
    """
    try:
        async with asyncio.timeout(seconds):
            await GuardedTransport(allow).check(httpx.URL(url))
    except httpx.InvalidURL as exc:
        raise AddressRefused from exc
    except (TimeoutError, httpx.TransportError) as exc:
        log.info("the address of a caller was not checked: %s", type(exc).__name__)


def is_public(address: Address) -> bool:
    """Whether this address, and an IPv4 address inside it, is one of the open internet."""
    address = _unwrapped(address)
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    if any(address in network for network in _PROVIDER_INNER):
        return False
    return address.is_global and not address.is_multicast


def warn_of_allowed(settings: Settings) -> None:
    """Say in the log what callers may reach although it is not public, if anything."""
    if pairs := settings.fetch.allow_addresses:
        log.warning(
            "callers' URLs may reach what is not public (STILLREEL_ALLOW_ADDRESSES): %s",
            ", ".join(pairs),
        )


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of `coroutine`, for callers outside of an event loop."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()  # asyncio.run would wait for a name resolution that hangs in its thread


def _port(url: httpx.URL) -> int:
    return url.port if url.port is not None else 443 if url.scheme == "https" else 80


def _pair(url: httpx.URL) -> str:
    host = url.raw_host.decode("ascii")
    return f"[{host}]:{_port(url)}" if ":" in host else f"{host}:{_port(url)}"


async def _resolve(url: httpx.URL) -> list[Address]:
    host = url.raw_host.decode("ascii")
    try:
        loop = asyncio.get_running_loop()
        ask = partial(socket.getaddrinfo, host, _port(url), type=socket.SOCK_STREAM)
        answers = await loop.run_in_executor(_RESOLVERS, ask)
        return [ip_address(address) for address in dict.fromkeys(str(a[4][0]) for a in answers)]
    except (OSError, ValueError) as exc:
        if isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_AGAIN:
            raise httpx.ConnectError("name resolution fails now") from exc
        # A name that does not exist is told like one that is private: no oracle of inner names.
        raise AddressRefused from exc


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside a mapped, 6to4 or NAT64 address; any other as it is."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _pinned(request: httpx.Request, address: Address) -> httpx.Request:
    """`request` to this address; its Host header and the name in its certificate stay."""
    name = request.url.raw_host.decode("ascii").rstrip(".")
    return httpx.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": name},
    )


@lru_cache(maxsize=1)
def _public_tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


def _expect_success(status: int) -> None:
    if 200 <= status < 300:
        return
    if status in (408, 425, 429) or status >= 500:
        raise ImageFetchFailed(f"The image's server answers {status}; try again later.")
    raise ImageUnavailable(
        f"The image's address answers {status}; "
        "give an address that anyone can fetch, or upload the image."
    )


async def _read(response: httpx.Response, limit: int) -> bytes:
    stated = response.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        _refuse_size(limit)
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            _refuse_size(limit)
    return bytes(body)


def _decoded(raw: bytes, encoding: str, limit: int) -> bytes:
    """`raw` without the compression that some servers apply although we ask for none."""
    match encoding.strip().lower():
        case "" | "identity":
            return raw
        case "gzip" | "x-gzip" | "deflate":
            pass
        case _:
            raise ImageRejected("The image's server sends it compressed; have it sent as it is.")
    try:
        body = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS).decompress(raw, limit + 1)
    except zlib.error as exc:
        raise ImageRejected("The image's server sends it compressed, and damaged.") from exc
    if len(body) > limit:
        _refuse_size(limit)
    return body


def _refuse_size(limit: int) -> NoReturn:
    raise ImageTooLarge(f"The image has more than {limit:,} bytes; send a smaller one.")
