"""Of several keepers one leads; another takes over when that one is silent or leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from stillreel.leader import VARIABLE, Leader
from stillreel.prefect_api import PrefectApi, connect
from stillreel.prefect_variable import delete_variable, read_variable

QUICK = {"beat": 0.2, "lease": 5.0}
SECONDS = 30.0


def test_one_leads_and_leaves_the_lead_to_the_next(prefect_api: str) -> None:
    async def story(api: PrefectApi) -> None:
        one, two = Candidate(api), Candidate(api)
        await one.start()
        await eventually(lambda: one.leads)
        await two.start()
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert not two.leads
        await eventually(lambda: one.leads)  # not while a beat of its is late
        await one.stop()
        assert not one.leads
        await eventually(lambda: two.leads)
        assert (one.led, two.led) == (1, 1)
        await two.stop()
        assert await read_variable(api, VARIABLE) is None

    with_api(story)


def test_a_silent_leader_is_replaced_and_does_not_come_back_by_itself(prefect_api: str) -> None:
    async def story(api: PrefectApi) -> None:
        silent, other = Candidate(api), Candidate(api)
        await silent.start()
        await eventually(lambda: silent.leads)
        silent.kill()  # like kill -9: nothing is given back
        await eventually(lambda: not silent.leads)
        await other.start()
        await eventually(lambda: other.leads)
        await silent.start()  # like SIGCONT after a long pause
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert not silent.leads
        await eventually(lambda: other.leads)
        await silent.stop()
        await other.stop()

    with_api(story)


def test_a_leader_whose_variable_is_deleted_takes_part_again(prefect_api: str) -> None:
    async def story(api: PrefectApi) -> None:
        one = Candidate(api)
        await one.start()
        await eventually(lambda: one.leads)
        there = await read_variable(api, VARIABLE)
        assert there
        await delete_variable(api, there["id"])
        await eventually(lambda: one.led == 2)
        await eventually(lambda: one.leads)
        await one.stop()

    with_api(story)


class Candidate(Leader):
    """A leader that can be started, stopped and killed."""

    def __init__(self, api: PrefectApi) -> None:
        self.led = 0
        super().__init__(api, on_lead=self._count, **QUICK)
        self._task: asyncio.Task[None] | None = None
        self._is_killed = False

    def _count(self) -> None:
        self.led += 1

    async def start(self) -> None:
        self._task = asyncio.create_task(self.run())

    async def stop(self) -> None:
        assert self._task
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def kill(self) -> None:
        assert self._task
        self._is_killed = True
        self._task.cancel()

    async def _leave(self) -> None:
        if self._is_killed:
            self._is_killed = False
        else:
            await super()._leave()


def with_api(story: Callable[[PrefectApi], Awaitable[None]]) -> None:
    async def run() -> None:
        api = connect(5.0)
        try:
            await story(api)
        finally:
            await api.aclose()

    asyncio.run(run())


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110 - there is no event: time is what passes
            await asyncio.sleep(0.05)
