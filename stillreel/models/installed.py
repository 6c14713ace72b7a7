"""Which weights are on this host, and which commit of their repository they are."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from stillreel.errors import ModelUnavailable
from stillreel.models.base import ModelSpec, Repository
from stillreel.models.weights import find_weights
from stillreel.settings import InferenceSettings


@dataclass(frozen=True)
class Note:
    """What `stillreel models pull` leaves beside weights that came whole."""

    commit: str
    gate: str
    files: int


@dataclass(frozen=True)
class Installed:
    """Weights that a model would take."""

    folder: Path
    size: int
    """Bytes of all files in the folder."""
    commit: str
    """Empty where the folder is not one of the hub's cache."""
    note: Note | None
    """None for weights that came in another way."""


def find_installed(
    spec: ModelSpec, repository: Repository, settings: InferenceSettings
) -> Installed | None:
    """The weights of a repository as `find_weights` finds them; None where it finds none."""
    try:
        folder = find_weights(spec, settings, repo_id=repository.repo_id)
    except ModelUnavailable:
        return None
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    commit = folder.name if folder.parent.name == "snapshots" else ""
    return Installed(folder, size, commit, read_note(folder) if commit else None)


def read_note(snapshot: Path) -> Note | None:
    """The note on a folder of the hub's cache; None where there is none that can be read."""
    with suppress(OSError, ValueError, TypeError):
        return Note(**json.loads(_note_path(snapshot).read_bytes()))
    return None


def write_note(snapshot: Path, note: Note) -> None:
    """Leave a note on a folder of the hub's cache. Raises OSError."""
    write_whole(_note_path(snapshot), json.dumps(asdict(note)))


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that nobody ever reads half of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _note_path(snapshot: Path) -> Path:
    return snapshot.parents[1] / "stillreel" / f"{snapshot.name}.json"
