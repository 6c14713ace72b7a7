"""Takes what a rented host has made: looks at it, and only then stores it where others read."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from pydantic import ValidationError

from stillreel.arrival.claims import FilmNote, checked_receipt, checked_result
from stillreel.arrival.film import order_of, teaser_of
from stillreel.arrival.inspect import inspect_film, inspect_still
from stillreel.errors import (
    ObjectMissing,
    RequestRejected,
    ResultRefused,
    StaleExecution,
)
from stillreel.gateway.access import Access, Slot, result_task, temp_prefix
from stillreel.gateway.uploads import Ticket, finish
from stillreel.job import JobSpec
from stillreel.keys import output_key
from stillreel.models.base import ModelSpec
from stillreel.models.registry import configured, get_model
from stillreel.settings import Settings
from stillreel.storage import ObjectInfo, Storage

AT_ONCE = 2
"""Files that are looked at at a time; a look takes a processor."""
RUN_BYTES = 10_000_000_000
"""That one run may send in all, so that a host cannot fill the storage."""
KEPT = 1000

log = logging.getLogger("stillreel.gateway")


@dataclass(frozen=True)
class Visit:
    """A host at work on one of its runs."""

    lease: str
    run_id: str
    job_id: str
    access: Access
    order: Callable[[], JobSpec] = field(repr=False)
    """What was ordered. Raises RequestRejected."""
    token: str = field(repr=False)


class Door(Protocol):
    """Who may come in. Both methods raise LeaseRefused, NotLeased, PrefectUnavailable."""

    async def enter(self, token: str, run_id: str, *, writes: bool = False) -> Visit:
        """The visit of the host with this token, about this run of its own."""
        ...

    async def is_current(self, visit: Visit) -> None:
        """Nothing, while the run is still this host's to end; asked right before it is seen.

        Raises StaleExecution too.
        """
        ...


@dataclass
class Intake:
    """Looks at what has arrived, a bounded number at a time, and stores it."""

    storage: Storage
    settings: Settings
    door: Door
    _sent: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _taken: OrderedDict[str, asyncio.Task[ObjectInfo]] = field(default_factory=OrderedDict)
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    def count(self, run_id: str, size: int) -> None:
        """Note that this run sends so many bytes. Raises ResultRefused when it is too much."""
        if len(self._sent) > 100 * KEPT:
            self._sent.clear()
        self._sent[run_id] += size
        if self._sent[run_id] > RUN_BYTES:
            raise ResultRefused(f"one job sends more than {RUN_BYTES:,} bytes")

    async def take(self, visit: Visit, ticket: Ticket, *, seconds: float) -> ObjectInfo | None:
        """The object that an upload has become; None while it is being looked at.

        Raises ResultRefused, StaleExecution, and what storage raises.
        """
        task = self._taken.get(ticket.temp)
        if task is None:
            task = asyncio.create_task(self._take(visit, ticket))
            self._taken[ticket.temp] = task
            while len(self._taken) > KEPT:
                self._taken.popitem(last=False)
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            return None
        if not isinstance(task.exception(), ResultRefused | None):
            self._taken.pop(ticket.temp, None)  # another try may end better
        return task.result()

    async def take_bytes(
        self, visit: Visit, key: str, content_type: str, data: bytes
    ) -> ObjectInfo:
        """The same for a small object that came with its request."""
        slot = visit.access.write(key, content_type, len(data))
        self.count(visit.run_id, len(data))
        with self._folder() as folder:
            path = Path(folder, "object")
            await asyncio.to_thread(path.write_bytes, data)
            return await self._accept(visit, key, slot, path)

    async def aclose(self) -> None:
        """Stop looking; whoever sent it asks again."""
        tasks = list(self._taken.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, visit: Visit, ticket: Ticket) -> ObjectInfo:
        slot = visit.access.write(ticket.key, ticket.content_type, ticket.size)
        work = asyncio.to_thread
        try:
            await work(finish, self.storage, ticket)
            with self._folder() as folder:
                path = Path(folder, "object")
                await work(self.storage.get_file, ticket.temp, path)
                info = await self._accept(visit, ticket.key, slot, path)
        except ResultRefused:
            await work(self.storage.delete, ticket.temp)
            raise
        await work(self.storage.delete, ticket.temp)
        return info

    async def _accept(self, visit: Visit, key: str, slot: Slot, path: Path) -> ObjectInfo:
        """Raises ResultRefused, with the name of what is refused."""
        name = key.rpartition("/")[2]
        async with self._turn(slot):
            try:
                if slot.content in ("film", "teaser", "still", "receipt"):
                    store = await asyncio.to_thread(self._look, visit, key, slot, path)
                    if info := await self._if_completed(visit, key):
                        return info
                    await self.door.is_current(visit)
                    return await asyncio.to_thread(store)
                return await asyncio.to_thread(self._look_and_store, visit, key, slot, path)
            except (ResultRefused, RequestRejected, StaleExecution) as exc:
                facts = {"lease": visit.lease, "job_id": visit.job_id, "object": name}
                log.warning("result refused", extra=facts | {"reason": exc.message})
                if isinstance(exc, StaleExecution):
                    raise
                raise ResultRefused(f"{name} is refused: {exc.message}") from exc

    def _look_and_store(self, visit: Visit, key: str, slot: Slot, path: Path) -> ObjectInfo:
        return self._look(visit, key, slot, path)()

    def _look(self, visit: Visit, key: str, slot: Slot, path: Path) -> Callable[[], ObjectInfo]:
        """What stores it, once it was looked at. Raises ResultRefused."""
        match slot.content:
            case "film":
                note = self._film(visit, path)
                return lambda: self._put_film(visit, key, path, note)
            case "teaser":
                note = self._note(visit)
                inspect_film(path, teaser_of((note.width, note.height), note.frames, note.fps))
            case "still":
                note = self._note(visit)
                inspect_still(path, (note.width, note.height))
            case "receipt":
                data = self._receipt(visit, path.read_bytes())
                return lambda: self.storage.put_bytes(key, data, content_type=slot.content_type)
            case "result":
                data = self._result(visit, key, path.read_bytes())
                return lambda: self.storage.put_bytes(key, data, content_type=slot.content_type)
            case "image":
                _check_start(path, b"\x89PNG\r\n\x1a\n", "PNG")
            case "latents":
                _check_latents(path)
            case "any":
                pass
        return lambda: self.storage.put_file(key, path, content_type=slot.content_type)

    def _film(self, visit: Visit, path: Path) -> FilmNote:
        spec, model = self._order(visit)
        order = order_of(spec, model)
        film = inspect_film(path, order)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FilmNote(
            sha256=digest,
            size=path.stat().st_size,
            width=film.picture.width,
            height=film.picture.height,
            fps=order.fps,
            frames=film.frames,
            has_sound=film.has_sound,
            codec=spec.codec,
        )

    def _put_film(self, visit: Visit, key: str, path: Path, note: FilmNote) -> ObjectInfo:
        info = self.storage.put_file(key, path, content_type="video/mp4")
        data = note.model_dump_json().encode()
        self.storage.put_bytes(_note_key(visit), data, content_type="application/json")
        return info

    def _note(self, visit: Visit) -> FilmNote:
        """What was found in the video of this job. Raises ResultRefused without one."""
        try:
            return FilmNote.model_validate_json(self.storage.get_bytes(_note_key(visit)))
        except (ObjectMissing, ValidationError) as exc:
            raise ResultRefused("the video has to come first") from exc

    def _receipt(self, visit: Visit, data: bytes) -> bytes:
        note, (spec, _) = self._note(visit), self._order(visit)
        names = {"video": "output.mp4", "poster": "poster.jpg", "teaser": "teaser.mp4"}
        objects = {name: output_key(visit.job_id, file) for name, file in names.items()}
        for key in objects.values():
            info = self.storage.head(key)
            if info is None or (key == objects["video"] and info.size != note.size):
                raise ResultRefused(f"{key.rpartition('/')[2]} has not arrived")
        return checked_receipt(
            data,
            job_id=visit.job_id,
            spec=spec,
            note=note,
            objects=objects,
            at=datetime.now(UTC),
        )

    def _result(self, visit: Visit, key: str, data: bytes) -> bytes:
        spec, model = self._order(visit)
        name, task = key.rpartition("/")[2], result_task(key, visit.run_id)
        return checked_result(data, task, name, job_id=visit.job_id, spec=spec, model=model)

    def _order(self, visit: Visit) -> tuple[JobSpec, ModelSpec]:
        spec = visit.order()
        return spec, configured(get_model(spec.model), self.settings.inference)

    async def _if_completed(self, visit: Visit, key: str) -> ObjectInfo | None:
        """What is stored already, once the job is completed: nothing of it is changed any more."""
        receipt = output_key(visit.job_id, "receipt.json")
        if await asyncio.to_thread(self.storage.head, receipt) is None:
            return None
        return await asyncio.to_thread(self.storage.head, key)

    def _folder(self) -> TemporaryDirectory[str]:
        home = self.settings.host.home / "arrivals"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return TemporaryDirectory(dir=home)

    @asynccontextmanager
    async def _turn(self, slot: Slot) -> AsyncIterator[None]:
        """The turn of one look that takes a processor; the others need none."""
        if slot.content not in ("film", "teaser", "still"):
            yield
            return
        async with self._turns:
            yield


def _note_key(visit: Visit) -> str:
    return f"{temp_prefix(visit.job_id)}film.json"


def _check_start(path: Path, magic: bytes, name: str) -> None:
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:
            raise ResultRefused(f"it is no {name}")


def _check_latents(path: Path) -> None:
    """Raises ResultRefused for what is no safetensors file; its numbers are anybody's guess."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, 10_000_000):
            raise ResultRefused("it is no safetensors file")
        try:
            head = json.loads(file.read(length))
        except (ValueError, RecursionError) as exc:
            raise ResultRefused("it is no safetensors file") from exc
    if not isinstance(head, dict):
        raise ResultRefused("it is no safetensors file")
