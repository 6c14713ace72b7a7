"""The keeper's round: every chore in its turn, whatever the others do."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest

from stillreel.api.services import Services, build_services
from stillreel.errors import PrefectUnavailable, StorageRefused
from stillreel.jobs.record import Record
from stillreel.keeper import Chore, Keeper, keeping
from stillreel.leader import Leader
from stillreel.prefect_api import PrefectApi
from stillreel.settings import get_settings

SECONDS = 20.0


class Spy:
    """A chore that counts its rounds, and fails as told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.rounds = 0
        self.error = error
        self._done = asyncio.Condition()

    async def __call__(self) -> None:
        async with self._done:
            self.rounds += 1
            self._done.notify_all()
        if self.error:
            raise self.error

    async def wait(self, rounds: int) -> None:
        async with asyncio.timeout(SECONDS), self._done:
            await self._done.wait_for(lambda: self.rounds >= rounds)


class Alone(Leader):
    """Leads without asking anybody: the Prefect server of these tests does not answer."""

    leads = True  # type: ignore[assignment]

    async def run(self) -> None:
        await asyncio.Event().wait()


def keeper_of(services: Services, *chores: Chore) -> Keeper:
    alone = Alone(services.api, on_lead=lambda: None)
    return Keeper(services, chores=chores or None, leader=alone)


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Services]:
    """Services of a Prefect server that does not answer."""

    def make(keeper_seconds: float) -> Services:
        monkeypatch.setenv("STILLREEL_KEEPER_SECONDS", str(keeper_seconds))
        get_settings.cache_clear()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        api = PrefectApi(f"http://127.0.0.1:{port}/api", patience=0.01)
        return build_services(get_settings(), api, on_submitted=_ignore)

    return make


def _ignore(record: Record) -> None:
    return None


def keep(keeper: Keeper, until: Awaitable[None]) -> None:
    async def run() -> None:
        async with keeping(keeper):
            await until

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [StorageRefused("no bucket"), ValueError("a mistake"), PrefectUnavailable()]
)
def test_a_chore_that_fails_stops_neither_itself_nor_the_others(
    services: Callable[[float], Services], error: Exception
) -> None:
    bad, good = Spy(error), Spy()
    keeper = keeper_of(services(0.02), Chore("bad", bad), Chore("good", good))

    async def both() -> None:
        await bad.wait(3)
        await good.wait(3)

    keep(keeper, both())


def test_a_chore_that_hangs_keeps_no_other_waiting(
    services: Callable[[float], Services],
) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    good = Spy()
    keep(keeper_of(services(0.02), Chore("hang", hang), Chore("good", good)), good.wait(3))


def test_a_failure_is_told_with_its_reason(
    services: Callable[[float], Services], caplog: pytest.LogCaptureFixture
) -> None:
    bad = Spy(StorageRefused("the bucket is gone"))
    keep(keeper_of(services(0.02), Chore("sweep", bad)), bad.wait(2))
    [first, *_] = [r for r in caplog.records if r.name == "stillreel.keeper"]
    assert first.levelno == logging.WARNING
    assert "sweep" in first.getMessage()
    assert "the bucket is gone" in first.getMessage()


def test_an_outage_of_prefect_is_told_once_and_quietly(
    services: Callable[[float], Services], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "stillreel.keeper")
    one, two = Spy(PrefectUnavailable()), Spy(PrefectUnavailable())
    keeper = keeper_of(services(0.02), Chore("one", one), Chore("two", two))

    def told() -> list[str]:
        return [r.levelname for r in caplog.records if r.name == "stillreel.keeper"]

    async def outages() -> None:
        await one.wait(3)
        await two.wait(3)
        assert told() == ["INFO"]
        one.error = two.error = None
        await one.wait(one.rounds + 3)
        await two.wait(two.rounds + 3)
        one.error = PrefectUnavailable()
        await one.wait(one.rounds + 3)
        assert told() == ["INFO", "INFO"]

    keep(keeper, outages())


def test_who_does_not_lead_does_no_rounds(services: Callable[[float], Services]) -> None:
    """Its Prefect server does not answer, so it never leads."""
    done, led = Spy(), Spy()
    keeper = Keeper(services(0.02), chores=[Chore("done", done)])
    leading = keeper_of(services(0.02), Chore("led", led))

    async def rounds() -> None:
        async with keeping(leading):
            await led.wait(5)
        assert done.rounds == 0

    keep(keeper, rounds())


def test_the_real_chores_wait_for_a_prefect_server_that_is_away(
    services: Callable[[float], Services], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stillreel.keeper")
    spy = Spy()
    keeper = keeper_of(services(0.05))
    keeper.chores = (*keeper.chores, Chore("spy", spy))
    keep(keeper, spy.wait(10))
    told = [r.getMessage() for r in caplog.records if r.name == "stillreel.keeper"]
    assert len(told) == 1
    assert "does not answer" in told[0]


def test_a_keeper_of_its_own_ends_when_it_is_told_to() -> None:
    code = (
        "import asyncio, logging\n"
        "from stillreel.keeper import run_keeper\n"
        "from stillreel.settings import get_settings\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "asyncio.run(run_keeper(get_settings()))\n"
    )
    env = os.environ | {
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "STILLREEL_PREFECT_SECONDS": "0.05",
    }
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("the keeper waits" in line for line in process.stderr), "it is at work"
        process.terminate()
        rest = process.stderr.read()
        assert process.wait(SECONDS) == 0, rest
