"""The keeper: what the control side does for jobs beside requests, in the API's process."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from stillreel.api.services import Services, build_services
from stillreel.audit import auditing
from stillreel.chores.cancels import Cancels
from stillreel.chores.copy_images import AT_ONCE, CopyImages
from stillreel.chores.dead_runs import DeadRuns
from stillreel.chores.deadlines import Deadlines
from stillreel.chores.lifetimes import Lifetimes
from stillreel.chores.reopen import Reopen
from stillreel.chores.revive import Revive
from stillreel.chores.tally import Tally
from stillreel.errors import PrefectUnavailable, StillreelError
from stillreel.jobs import marks
from stillreel.jobs.erase import erase_due
from stillreel.jobs.record import Record
from stillreel.leader import Leader
from stillreel.notifications import deliver_due
from stillreel.prefect_api import IN_BACKGROUND, connect
from stillreel.settings import Settings
from stillreel.usage import RollUps

log = logging.getLogger("stillreel.keeper")


@dataclass(frozen=True)
class Chore:
    """Something that is done again and again, a bounded part of it each time."""

    name: str
    work: Callable[[], Awaitable[None]]
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Keeper:
    """Does each chore every `keeper_seconds`; none waits for another, or ends with its failure.

    Of several keepers one leads and does the rounds; the others fetch the images of the jobs that
    they are told of, and no more.
    """

    def __init__(
        self,
        services: Services,
        *,
        chores: Sequence[Chore] | None = None,
        leader: Leader | None = None,
    ) -> None:
        self._services = services
        self._tally = Tally()
        self._copying = CopyImages(services, self._tally)
        self._away: set[str] = set()
        self.chores = self._chores() if chores is None else tuple(chores)
        self.leader = leader or Leader(services.api, on_lead=self._wake)

    @property
    def counts(self) -> Counter[str]:
        """How often it did what, by action."""
        return self._tally.counts

    def fetch(self, record: Record) -> None:
        """Fetch the image of this new job at once, if it lies at its caller's only."""
        if marks.UNCOPIED in record.tags and not record.is_final:
            self._copying.take(record)

    async def run(self) -> None:
        """Keep until cancelled."""
        IN_BACKGROUND.set(True)
        async with asyncio.TaskGroup() as group:
            if self._services.settings.server.keeper_leads:
                group.create_task(self.leader.run(), name="keeper: lead")
            for chore in self.chores:
                group.create_task(self._repeat(chore), name=f"keeper: {chore.name}")
            for _ in range(AT_ONCE):
                group.create_task(self._copying.work(), name="keeper: copy an image")

    async def aclose(self) -> None:
        """Stop what its chores have started and do not wait for."""
        await self._services.deliveries.aclose()

    def _chores(self) -> tuple[Chore, ...]:
        services, tally = self._services, self._tally
        return (
            Chore("copy_images", self._copying.look),
            Chore("cancels", Cancels(services, tally).look),
            Chore("deadlines", Deadlines(services, tally).expire),
            Chore("dead_runs", DeadRuns(services, tally).look),
            Chore("revive", Revive(services, tally).look),
            Chore("reopen", Reopen(services, tally).look),
            Chore("lifetimes", Lifetimes(services, tally).sweep),
            Chore("notifications", lambda: deliver_due(services)),
            Chore("erase", lambda: erase_due(services)),
            Chore("usage", RollUps(services).write),
        )

    async def _repeat(self, chore: Chore) -> None:
        seconds = self._services.settings.server.keeper_seconds
        while True:
            chore.wake.clear()
            if self.leader.leads:
                await self._do(chore)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await chore.wake.wait()

    def _wake(self) -> None:
        for chore in self.chores:
            chore.wake.set()

    async def _do(self, chore: Chore) -> None:
        try:
            await chore.work()
        except PrefectUnavailable as exc:
            if not self._away:  # once per outage, not once per chore and round
                log.info("the keeper waits: %s", exc.message)
            self._away.add(chore.name)
        except StillreelError as exc:
            log.warning("chore %s: %s", chore.name, exc.message)
        except Exception:  # a mistake in one chore costs no other
            log.exception("chore %s failed", chore.name)
        else:
            self._away.discard(chore.name)


@asynccontextmanager
async def keeping(keeper: Keeper) -> AsyncIterator[None]:
    """The keeper at work, for the time of this block."""
    task = asyncio.create_task(keeper.run(), name="keeper")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await keeper.aclose()


async def run_keeper(settings: Settings) -> None:
    """A keeper without an API, until SIGTERM or SIGINT. Raises SettingsInvalid."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    api = connect(settings.api.prefect_seconds)
    try:
        keeper = Keeper(build_services(settings, api, on_submitted=_ignore))
        async with auditing(api), keeping(keeper):
            await stop.wait()
    finally:
        await api.aclose()


def _ignore(record: Record) -> None:  # noqa: ARG001 - it takes no orders
    return None
