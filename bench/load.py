"""Clients that cost next to nothing, so that what is measured is the server: raw HTTP/1.1."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson


@dataclass
class Load:
    """What clients saw: seconds of each answer, how long all took, and what went wrong."""

    seconds: list[float] = field(default_factory=list[float])
    wall: float = 0.0
    errors: int = 0
    refused: int = 0
    """Answers 503 that a client tried again."""

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.wall if self.wall else 0.0

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def p95(self) -> float:
        ordered = sorted(self.seconds)
        return ordered[int(len(ordered) * 0.95)] if ordered else 0.0


@dataclass(frozen=True)
class Call:
    """One request, ready to be written to a socket."""

    raw: bytes

    @classmethod
    def of(cls, method: str, url: str, *, body: Any = None, **headers: str) -> Call:
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        data = b"" if body is None else orjson.dumps(body)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}"]
        if data:
            lines.append("Content-Type: application/json")
        lines.append(f"Content-Length: {len(data)}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return cls("\r\n".join([*lines, "", ""]).encode() + data)


def run(url: str, calls: Callable[[int], Iterator[Call]], *, clients: int) -> Load:
    """Have `clients` clients make `calls(n)` one after another, all at once."""
    return asyncio.run(_run(url, calls, clients))


async def _run(url: str, calls: Callable[[int], Iterator[Call]], clients: int) -> Load:
    load = Load()
    started = time.perf_counter()
    await asyncio.gather(*(_client(url, calls(n), load) for n in range(clients)))
    load.wall = time.perf_counter() - started
    return load


async def _client(url: str, calls: Iterator[Call], load: Load) -> None:
    parts = urlsplit(url)
    connection = _Connection(parts.hostname or "", parts.port or 80)
    for call in calls:
        started, status = time.perf_counter(), 0
        for _ in range(50):
            status = await connection.call(call)
            if status != 503 and status:
                break
            load.refused += 1
            await asyncio.sleep(0.05)
        load.seconds.append(time.perf_counter() - started)
        if not 200 <= status < 300:
            load.errors += 1
    connection.close()


class _Connection:
    """A kept-alive connection that is opened again when the server drops it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None

    async def call(self, call: Call) -> int:
        """The status of the answer; 0 when the connection broke."""
        try:
            if self._writer is None or self._reader is None:
                self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
            self._writer.write(call.raw)
            head = await self._reader.readuntil(b"\r\n\r\n")
            lowered = head.lower()
            at = lowered.index(b"content-length:") + 15
            length = int(lowered[at : lowered.index(b"\r\n", at)])
            if length:
                await self._reader.readexactly(length)
            if b"connection: close" in lowered:
                self.close()
            return int(head[9:12])
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._reader = None
