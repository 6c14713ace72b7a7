"""Looks at what a rented host has made, and says how it is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from stillreel.arrival.claims import FilmNote, checked_receipt, checked_result
from stillreel.arrival.film import order_of, teaser_of
from stillreel.arrival.inspect import inspect_film, inspect_still
from stillreel.errors import ObjectMissing, ResultRefused
from stillreel.gateway.access import Content, Slot, result_task, temp_prefix
from stillreel.gateway.visit import Terms, Visit
from stillreel.job import JobSpec
from stillreel.keys import output_key
from stillreel.models.base import ModelSpec
from stillreel.models.registry import configured, get_model
from stillreel.receipt import without_texts
from stillreel.settings import Settings
from stillreel.storage import ObjectInfo, Storage

KEPT_MOST: dict[Content, int] = {"latents": 3, "result": 6}
"""Of one job, or of one task of a run: there is one, and another where an input has changed."""
LATENTS_FACTOR, LATENTS_MORE = 2, 50_000_000
"""More than the largest video has: all models need less for a frame, and have an image beside."""
HEADER_BYTES = 65_536
"""Most that a safetensors file of ours has before its numbers: names, the shot, a few words."""


@dataclass(frozen=True)
class Looks:
    """Each raises ResultRefused, RequestRejected, ArrivalUnread, and what storage raises."""

    storage: Storage
    settings: Settings

    def look(
        self, visit: Visit, key: str, slot: Slot, path: Path, terms: Terms | None
    ) -> Callable[[], ObjectInfo]:
        """What stores it, once it was looked at; `terms` are needed for what names a price."""
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
                data = self._receipt(visit, path.read_bytes(), _known(terms))
                return lambda: self.storage.put_bytes(key, data, content_type=slot.content_type)
            case "result":
                data = self._result(visit, key, path.read_bytes(), _known(terms))
                return lambda: self.storage.put_bytes(key, data, content_type=slot.content_type)
            case "image":
                _check_start(path, b"\x89PNG\r\n\x1a\n", "PNG")
            case "latents":
                _check_latents(path)
            case "any":
                pass
        return lambda: self.storage.put_file(key, path, content_type=slot.content_type)

    def bytes_max(self, visit: Visit, slot: Slot) -> int:
        """The largest object of this kind that this order comes to."""
        if slot.content not in ("film", "teaser", "latents"):
            return slot.bytes_max
        spec, model = self._order(visit)
        if slot.content == "latents" and model.elsewhere:  # a film, as that server made it
            return slot.bytes_max
        most = order_of(spec, model).bytes_max
        most = LATENTS_FACTOR * most + LATENTS_MORE if slot.content == "latents" else most
        return min(most, slot.bytes_max)

    def check_count(self, key: str, slot: Slot) -> None:
        """Raises ResultRefused where its job, or its run, has many others of this kind already."""
        most = KEPT_MOST.get(slot.content)
        if most is None:
            return
        folder = key[: max(key.rfind(mark) for mark in ("/", "-")) + 1]
        others = [info for info in self.storage.list(folder) if info.key != key]
        if len(others) >= most:
            raise ResultRefused(f"there are {most} of this kind already")

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

    def _receipt(self, visit: Visit, data: bytes, terms: Terms) -> bytes:
        note, (spec, model) = self._note(visit), self._order(visit)
        names = {"video": "output.mp4", "poster": "poster.jpg", "teaser": "teaser.mp4"}
        objects = {name: output_key(visit.job_id, file) for name, file in names.items()}
        for key in objects.values():
            info = self.storage.head(key)
            if info is None or (key == objects["video"] and info.size != note.size):
                raise ResultRefused(f"{key.rpartition('/')[2]} has not arrived")
        return checked_receipt(
            data,
            job_id=visit.job_id,
            spec=without_texts(spec, embed_prompt=self.settings.host.embed_prompt),
            model=model,
            note=note,
            objects=objects,
            terms=terms,
            at=datetime.now(UTC),
        )

    def _result(self, visit: Visit, key: str, data: bytes, terms: Terms) -> bytes:
        spec, model = self._order(visit)
        name, task = key.rpartition("/")[2], result_task(key, visit.run_id)
        return checked_result(
            data,
            task,
            name,
            job_id=visit.job_id,
            spec=spec,
            model=model,
            terms=terms,
            at=datetime.now(UTC),
        )

    def _order(self, visit: Visit) -> tuple[JobSpec, ModelSpec]:
        spec = visit.order()
        return spec, configured(get_model(spec.model), self.settings.inference)


def _known(terms: Terms | None) -> Terms:
    if terms is None:
        raise ResultRefused("it is not known what its host costs")
    return terms


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
        if not 2 <= length <= min(size - 8, HEADER_BYTES):
            raise ResultRefused("it is no safetensors file")
        try:
            head = json.loads(file.read(length))
        except (ValueError, RecursionError) as exc:
            raise ResultRefused("it is no safetensors file") from exc
    if not isinstance(head, dict):
        raise ResultRefused("it is no safetensors file")
