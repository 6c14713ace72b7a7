"""A value that is read for many at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stillreel.recent import Recent


class Counter:
    """A reading that can be held back, and counts."""

    def __init__(self) -> None:
        self.read_times = 0
        self.go = asyncio.Event()
        self.go.set()

    async def read(self) -> int:
        self.read_times += 1
        number = self.read_times
        await self.go.wait()
        if number > 5:
            raise ValueError(number)
        return number


def test_probes_in_a_row_share_one_reading() -> None:
    async def run() -> list[int]:
        recent = Recent(Counter().read, seconds=3600)
        return [await recent.get() for _ in range(3)]

    assert asyncio.run(run()) == [1, 1, 1]


def test_an_old_reading_is_made_anew() -> None:
    async def run() -> list[int]:
        recent = Recent(Counter().read, seconds=0)
        return [await recent.get() for _ in range(3)]

    assert asyncio.run(run()) == [1, 2, 3]


def test_who_wants_it_anew_gets_it_anew_for_all() -> None:
    async def run() -> list[int]:
        recent = Recent(Counter().read, seconds=3600)
        return [await recent.get(), await recent.get(anew=True), await recent.get()]

    assert asyncio.run(run()) == [1, 2, 2]


def test_probes_at_one_time_share_one_reading_and_its_failure() -> None:
    async def run() -> tuple[list[Any], list[Any]]:
        counter = Counter()
        recent = Recent(counter.read, seconds=3600)
        counter.go.clear()
        waiting = asyncio.gather(*(recent.get() for _ in range(4)), return_exceptions=True)
        await asyncio.sleep(0)
        counter.go.set()
        good = await waiting
        counter.read_times = 5
        bad = await asyncio.gather(recent.get(anew=True), recent.get(), return_exceptions=True)
        return good, [*bad, *await asyncio.gather(recent.get(), return_exceptions=True)]

    good, bad = asyncio.run(run())
    assert good == [1, 1, 1, 1]
    assert [error.args for error in bad] == [(6,), (6,), (7,)], "an error is not kept"


def test_a_probe_that_leaves_takes_the_reading_from_nobody() -> None:
    async def run() -> int:
        counter = Counter()
        recent = Recent(counter.read, seconds=3600)
        counter.go.clear()
        leaving, staying = asyncio.create_task(recent.get()), asyncio.create_task(recent.get())
        await asyncio.sleep(0)
        leaving.cancel()
        counter.go.set()
        return await staying

    assert asyncio.run(run()) == 1


def test_an_old_value_is_told_while_a_newer_one_is_read() -> None:
    async def run() -> list[int]:
        counter = Counter()
        recent = Recent(counter.read, seconds=0, stale=3600)
        first = await recent.get()
        counter.go.clear()
        told = [first, await recent.get(), await recent.get()]
        counter.go.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return [*told, await recent.get()]

    assert asyncio.run(run()) == [1, 1, 1, 2]


def test_an_old_value_is_told_while_nothing_newer_can_be_read() -> None:
    async def run() -> list[int]:
        counter = Counter()
        counter.read_times = 4
        recent = Recent(counter.read, seconds=0, stale=3600)
        told: list[int] = []
        for _ in range(4):
            told.append(await recent.get())
            await asyncio.sleep(0)
        return [*told, counter.read_times]

    told = asyncio.run(run())
    assert told[:4] == [5, 5, 5, 5]
    assert told[4] > 5, "it is tried again"


def test_what_is_too_old_is_told_to_nobody() -> None:
    async def run() -> None:
        counter = Counter()
        counter.read_times = 4
        recent = Recent(counter.read, seconds=0, stale=1e-9)
        await recent.get()
        await recent.get()

    with pytest.raises(ValueError, match="6"):
        asyncio.run(run())
