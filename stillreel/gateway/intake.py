"""Takes what a rented host has made: looks at it, and only then stores it where others read."""

from __future__ import annotations

import asyncio
import copy
import logging
import shutil
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from weakref import WeakValueDictionary

from stillreel.errors import (
    NotLeased,
    RequestRejected,
    ResultRefused,
    StaleExecution,
    StillreelError,
    StorageError,
    TooManyRequests,
)
from stillreel.gateway.access import BY_UPLOAD, Slot
from stillreel.gateway.looks import Looks
from stillreel.gateway.uploads import Ticket, bring
from stillreel.gateway.visit import Door, Visit
from stillreel.keys import output_key
from stillreel.settings import Settings
from stillreel.storage import ObjectInfo, Storage, check_room

AT_ONCE = 2
"""Uploads that are brought here and looked at at a time, no two of them of one lease: each takes a
processor, and room on this disk."""
SMALL_AT_ONCE = 4
"""The same of what came with its request and needs no processor; no two of one lease either."""
WAITING = 16
"""Uploads of one lease that may wait for their turn."""
LEASE_BYTES, LEASE_SECONDS = 100_000_000_000, 86_400.0
"""That a lease may send to one API process in this time, so that a host cannot fill the storage: a
video of 60 MB each minute is less. As much may be brought here: each time counts."""
WAIT_SECONDS = 20.0
"""A request waits so long for its turn, or for the look at what has arrived; proxies hang up on
longer ones."""
KEPT = 1000
WITH_PRICE = ("receipt", "result")
"""What says where it was made, and what that costs."""

log = logging.getLogger("stillreel.gateway")
_T = TypeVar("_T")


@dataclass
class Intake:
    """Looks at what has arrived, a bounded number at a time, and stores it."""

    storage: Storage
    settings: Settings
    door: Door
    _sent: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Since when, and how many bytes, by lease and way."""
    _taken: OrderedDict[str, tuple[str, asyncio.Task[ObjectInfo | StillreelError]]] = field(
        default_factory=OrderedDict
    )
    """By temporary key: whose it is, and what becomes of it."""
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    _small_turns: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(SMALL_AT_ONCE)
    )
    _small_waiting: Counter[str] = field(default_factory=Counter)
    """Requests that wait for their turn, by lease."""
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    def __post_init__(self) -> None:
        self._looks = Looks(self.storage, self.settings)
        # Of its own: what takes long here keeps nobody else of the API waiting.
        self._threads = ThreadPoolExecutor(AT_ONCE + SMALL_AT_ONCE, thread_name_prefix="arrival")

    async def allow(
        self, visit: Visit, key: str, content_type: str, size: int
    ) -> ObjectInfo | None:
        """Nothing, where an upload of this length may come; what a completed job has stays there.

        Raises NotLeased, ResultRefused for more than the order comes to, StaleExecution,
        TooManyRequests.
        """
        slot = visit.access.write(key, content_type, size)
        with _named(visit, key):
            if size > (most := self._looks.bytes_max(visit, slot)):
                raise ResultRefused(f"it has more than {most:,} bytes")
            if info := await self._if_settled(visit, key):
                return info
            await self._in_thread(self._looks.check_count, key, slot)
        await self._in_thread(check_room, self.settings.host.home, size)
        self._count(visit.lease, size)
        return None

    async def take(self, visit: Visit, ticket: Ticket, *, seconds: float) -> ObjectInfo | None:
        """The object that an upload has become; None while it is being looked at.

        Raises ResultRefused, StaleExecution, TooManyRequests, and what storage raises.
        """
        _, task = self._taken.get(ticket.temp) or ("", None)
        if task is None:
            self._make_room(visit.lease)
            task = asyncio.create_task(self._outcome(visit, ticket))
            self._taken[ticket.temp] = visit.lease, task
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            return None
        error = task.exception() or task.result()
        if not isinstance(error, ResultRefused | ObjectInfo):
            self._taken.pop(ticket.temp, None)  # another try may end better
        if isinstance(found := task.result(), ObjectInfo):
            return found
        raise copy.copy(found)  # it may be told again, and what it passes through stays with it

    async def take_bytes(
        self, visit: Visit, key: str, content_type: str, data: bytes
    ) -> ObjectInfo:
        """The same for a small object that came with its request, which waits for its turn.

        Raises NotLeased for what has to come by an upload.
        """
        slot = visit.access.write(key, content_type, len(data))
        if content_type in BY_UPLOAD:
            raise NotLeased(f"What is {content_type} comes by an upload, however small.")
        self._count(visit.lease, len(data))
        async with AsyncExitStack() as turn:
            with self._waiting(visit.lease):
                try:
                    async with asyncio.timeout(WAIT_SECONDS):
                        await turn.enter_async_context(self._turn(visit, is_small=True))
                except TimeoutError as exc:
                    raise TooManyRequests("Others have their turn; ask again later.") from exc
            with self._folder() as folder:
                path = Path(folder, "object")
                await self._in_thread(path.write_bytes, data)
                return await self._accept(visit, key, slot, path)

    @contextmanager
    def _waiting(self, lease: str) -> Iterator[None]:
        """Count a request for as long as it waits. Raises TooManyRequests where too many do."""
        if self._small_waiting[lease] >= WAITING:
            raise TooManyRequests(f"{WAITING} requests of this lease wait already.")
        self._small_waiting[lease] += 1
        try:
            yield
        finally:
            self._small_waiting[lease] -= 1
            if not self._small_waiting[lease]:
                del self._small_waiting[lease]

    async def aclose(self) -> None:
        """Stop looking; whoever sent it asks again."""
        tasks = [task for _, task in self._taken.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _outcome(self, visit: Visit, ticket: Ticket) -> ObjectInfo | StillreelError:
        """What becomes of it; an error comes bare, for its traceback holds all that was read."""
        try:
            return await self._take(visit, ticket)
        except StillreelError as exc:
            exc.__cause__ = exc.__context__ = None
            return exc.with_traceback(None)

    async def _take(self, visit: Visit, ticket: Ticket) -> ObjectInfo:
        slot = visit.access.write(ticket.key, ticket.content_type, ticket.size)
        async with self._turn(visit):
            try:
                info = await self._if_settled(visit, ticket.key)
                info = info or await self._bring(visit, ticket, slot)
            except (ResultRefused, StaleExecution, NotLeased):  # it will be no other the next time
                await self._in_thread(self._forget, ticket)
                raise
            await self._in_thread(self._forget, ticket)
            return info

    async def _bring(self, visit: Visit, ticket: Ticket, slot: Slot) -> ObjectInfo:
        self._count(f"{visit.lease} brought", ticket.size)
        await self._in_thread(check_room, self.settings.host.home, ticket.size)
        with self._folder() as folder:
            path = Path(folder, "object")
            if taken := await self._in_thread(bring, self.storage, ticket, path):
                return taken
            return await self._accept(visit, ticket.key, slot, path)

    async def _accept(self, visit: Visit, key: str, slot: Slot, path: Path) -> ObjectInfo:
        """Raises ResultRefused, with the name of what is refused."""
        with _named(visit, key):
            await self._in_thread(self._looks.check_count, key, slot)
            terms = await self.door.terms(visit) if slot.content in WITH_PRICE else None
            look = partial(self._looks.look, visit, key, slot, path, terms)
            store = await self._in_thread(look)
            if info := await self._if_settled(visit, key):
                return info
            return await self._in_thread(store)

    async def _if_settled(self, visit: Visit, key: str) -> ObjectInfo | None:
        """What is stored already, once the job is completed: nothing of it is changed any more.

        Raises StaleExecution where nothing is, or the run is not this host's any more; NotLeased.
        """
        receipt = output_key(visit.job_id, "receipt.json")
        if await self._in_thread(self.storage.head, receipt) is None:
            await self.door.is_current(visit)
            return None
        info = await self._in_thread(self.storage.head, key)
        if info is None:
            raise StaleExecution("The job is completed; nothing is added to it any more.")
        return info

    def _forget(self, ticket: Ticket) -> None:
        try:
            self.storage.delete(ticket.temp)
        except StorageError as exc:  # after a day it goes anyway
            log.warning("what has arrived is not deleted: %s", exc.message)

    def _count(self, lease: str, size: int) -> None:
        """Note so many bytes more of this lease. Raises TooManyRequests."""
        now = time.monotonic()
        if len(self._sent) > KEPT:
            old = [name for name, (at, _) in self._sent.items() if now - at > LEASE_SECONDS]
            for name in old:
                del self._sent[name]
        since, sent = self._sent.get(lease, (now, 0))
        if now - since > LEASE_SECONDS:
            since, sent = now, 0
        if sent + size > LEASE_BYTES:
            raise TooManyRequests(
                f"One lease sends at most {LEASE_BYTES:,} bytes a day, and has as many looked at."
            )
        self._sent[lease] = since, sent + size

    def _make_room(self, lease: str) -> None:
        """Forget what was taken long ago. Raises TooManyRequests where too much of hers waits."""
        waiting = [task for name, task in self._taken.values() if name == lease and not task.done()]
        if len(waiting) >= WAITING:
            raise TooManyRequests(f"{WAITING} uploads of this lease wait already; ask again later.")
        done = [temp for temp, (_, task) in self._taken.items() if task.done()]
        for temp in done[: max(0, len(self._taken) - KEPT)]:
            del self._taken[temp]

    def _folder(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(dir=self._arrivals)

    @cached_property
    def _arrivals(self) -> Path:
        """Where files are looked at; what a killed process left there a day ago is removed."""
        arrivals = self.settings.host.home / "arrivals"
        arrivals.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in arrivals.iterdir():
            if left.stat().st_mtime < time.time() - 86_400:
                shutil.rmtree(left, ignore_errors=True)
        return arrivals

    @asynccontextmanager
    async def _turn(self, visit: Visit, *, is_small: bool = False) -> AsyncIterator[None]:
        """The turn of one look, from before its bytes are brought until they are stored.

        Until then what it found of the job holds: nothing else of it is stored meanwhile. Who has a
        turn for what is small waits for no other lock.
        """
        job = self._lock(f"job {visit.job_id}")
        if is_small:
            async with self._lock(f"small of {visit.lease}"), job, self._small_turns:
                yield
            return
        async with self._lock(f"lease {visit.lease}"), self._turns, job:
            yield

    def _lock(self, name: str) -> asyncio.Lock:
        """The lock of this name, which is there while somebody has it or waits for it."""
        lock = self._locks.get(name)
        if lock is None:
            self._locks[name] = lock = asyncio.Lock()
        return lock

    async def _in_thread(self, work: Callable[..., _T], *args: object) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(work, *args))


@contextmanager
def _named(visit: Visit, key: str) -> Iterator[None]:
    """Have refusals logged, and tell what is refused. Raises ResultRefused, StaleExecution."""
    name = key.rpartition("/")[2]
    try:
        yield
    except (ResultRefused, RequestRejected, StaleExecution) as exc:
        facts = {"lease": visit.lease, "job_id": visit.job_id, "object": name}
        log.warning("result refused", extra=facts | {"reason": exc.message})
        if isinstance(exc, StaleExecution):
            raise
        raise ResultRefused(f"{name} is refused: {exc.message}") from exc
