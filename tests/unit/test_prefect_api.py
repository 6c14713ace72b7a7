"""Calls to Prefect: bounded patience, and writers that take turns."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stillreel.errors import PrefectRefused, PrefectUnavailable
from stillreel.prefect_api import IN_BACKGROUND, PrefectApi
from tests.receiver import Answer, Receiver, answer, hang, receiver


def call(server: Receiver, work: Callable[[PrefectApi], Awaitable[Any]], patience: float) -> Any:
    async def run() -> Any:
        api = PrefectApi(server.url, patience=patience)
        try:
            return await work(api)
        finally:
            await api.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("misbehave", [hang, answer(503)])
def test_who_waits_for_the_turn_to_write_has_the_same_patience(misbehave: Answer) -> None:
    async def write(api: PrefectApi) -> list[Any]:
        async with asyncio.timeout(3):  # one after another they would take 5 s
            return await asyncio.gather(
                *(api.post("/runs", {}) for _ in range(10)), return_exceptions=True
            )

    with receiver(misbehave) as server:
        found = call(server, write, 0.5)
    assert [type(each) for each in found] == [PrefectUnavailable] * 10


def test_while_prefect_has_no_database_a_500_passes() -> None:
    """It answers 500 for everything then; `/ready` says why."""
    answers = (answer(500), answer(503), answer(200, b'{"id": 1}'))
    with receiver(*answers) as server:
        assert call(server, lambda api: api.get("/run"), 10) == {"id": 1}
    assert [request.path for request in server.requests] == ["/run", "/ready", "/run"]


def test_a_500_for_one_run_is_told_at_once() -> None:
    with receiver(answer(500), answer(200)) as server, pytest.raises(PrefectRefused) as refused:
        call(server, lambda api: api.get("/run"), 10)
    assert refused.value.status == 500


def test_a_write_that_is_tried_again_lets_others_go_first() -> None:
    async def write(api: PrefectApi) -> None:
        await asyncio.gather(*(api.post(f"/{n}", {}) for n in range(3)))

    with receiver(answer(503), answer(200, b"{}")) as server:
        call(server, write, 10)
    assert [request.path for request in server.requests] == ["/0", "/1", "/2", "/0"]


def test_a_caller_waits_for_one_write_of_the_background_at_most() -> None:
    async def in_background(api: PrefectApi, n: int) -> None:
        IN_BACKGROUND.set(True)
        await api.post(f"/background/{n}", {})

    async def write(api: PrefectApi) -> None:
        tasks = [asyncio.create_task(in_background(api, n)) for n in range(10)]
        await asyncio.sleep(0)
        await api.post("/caller", {})
        await asyncio.gather(*tasks)

    with receiver(answer(200, b"{}")) as server:
        call(server, write, 10)
    paths = [request.path for request in server.requests]
    assert len(paths) == 11
    assert paths.index("/caller") <= 1


@pytest.mark.parametrize("turns", [1, 3, 6], ids=lambda turns: f"{turns}-turns-of-the-loop-later")
def test_closing_breaks_off_what_is_under_way(turns: int) -> None:
    """Also a call that is still connecting, whose socket httpx would lose."""

    async def run(url: str) -> list[Any]:
        api = PrefectApi(url, patience=60)
        calls = [asyncio.create_task(call) for call in (api.get("/run"), api.post("/runs", {}))]
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await api.aclose()
            return await asyncio.gather(*calls, api.get("/too/late"), return_exceptions=True)

    with receiver(hang) as server:
        found = asyncio.run(run(server.url))
        gc.collect()
    assert [type(each) for each in found] == [PrefectUnavailable] * 3
