"""How much one key may ask for, and what it is told."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from starlette.responses import StreamingResponse

from stillreel.api.error_handlers import install_problems
from stillreel.api.limits import RateLimits, Streams
from stillreel.errors import TooManyRequests

ITEM = re.compile(r'"requests";r=(\d+);t=(\d+)')


def remaining(headers) -> tuple[int, int]:
    found = ITEM.fullmatch(headers["RateLimit"])
    assert found, headers
    return int(found[1]), int(found[2])


def test_counts_down_and_says_the_policy() -> None:
    limits = RateLimits(3)
    told = [limits.hit("a") for _ in range(3)]
    assert [remaining(headers)[0] for headers in told] == [2, 1, 0]
    assert all(headers["RateLimit-Policy"] == '"requests";q=3;w=60' for headers in told)
    assert all(0 < remaining(headers)[1] <= 60 for headers in told)


def test_refuses_the_next_and_says_when_to_come_back() -> None:
    limits = RateLimits(2)
    limits.hit("a")
    _, seconds = remaining(limits.hit("a"))
    with pytest.raises(TooManyRequests) as caught:
        limits.hit("a")
    assert caught.value.retry_after
    assert 0 < caught.value.retry_after <= seconds
    assert remaining(getattr(caught.value, "headers"))[0] == 0  # noqa: B009


def test_keys_do_not_share_a_limit() -> None:
    limits = RateLimits(1)
    limits.hit("a")
    limits.hit("b")
    with pytest.raises(TooManyRequests):
        limits.hit("a")


def test_a_new_minute_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    limits = RateLimits(1)
    limits.hit("a")
    now += 59
    with pytest.raises(TooManyRequests) as caught:
        limits.hit("a")
    assert caught.value.retry_after == 1
    now += 1
    assert remaining(limits.hit("a")) == (0, 60)


def test_the_refusal_carries_the_headers_to_the_caller() -> None:
    app, limits = FastAPI(), RateLimits(1)
    install_problems(app)

    @app.get("/")
    async def poll() -> None:
        limits.hit("a")

    client = TestClient(app)
    assert client.get("/").status_code == 200
    got = client.get("/")
    assert (got.status_code, got.json()["code"]) == (429, "too_many_requests")
    _, seconds = remaining({"RateLimit": got.headers["ratelimit"]})
    assert got.headers["retry-after"] == str(seconds)
    assert got.headers["ratelimit-policy"] == '"requests";q=1;w=60'


def test_streams_are_counted_while_they_are_open() -> None:
    async def scenario() -> None:
        streams = Streams(2)
        async with streams.opened("a"), streams.opened("a"):
            with pytest.raises(TooManyRequests, match="2 event streams"):
                await streams.opened("a").__aenter__()
            async with streams.opened("b"):
                pass
        async with streams.opened("a"):
            pass

    asyncio.run(scenario())


def test_a_stream_that_breaks_is_not_counted_any_more() -> None:
    async def scenario() -> None:
        streams = Streams(1)
        with pytest.raises(ConnectionError):
            async with streams.opened("a"):
                raise ConnectionError
        async with streams.opened("a"):
            pass

    asyncio.run(scenario())


def test_as_a_dependency_it_lasts_as_long_as_the_stream_and_refuses_before_it() -> None:
    app, streams = FastAPI(), Streams(1)
    install_problems(app)
    seen: list[int] = []

    async def counted():
        async with streams.opened("a"):
            yield

    @app.get("/nested", dependencies=[Depends(counted)])
    async def nested() -> StreamingResponse:
        async def events():
            try:
                async with streams.opened("a"):
                    pass
            except TooManyRequests as exc:
                seen.append(exc.http_status)
            yield b"data: x\n\n"

        return StreamingResponse(events())

    async def counted_again():
        async with streams.opened("a"):
            yield

    @app.get("/twice", dependencies=[Depends(counted), Depends(counted_again)])
    async def twice() -> None: ...

    client = TestClient(app)
    assert client.get("/nested").content == b"data: x\n\n"
    assert seen == [429], "the stream was open, and counted, when another was asked for"
    assert client.get("/twice").status_code == 429
    assert client.get("/nested").status_code == 200
