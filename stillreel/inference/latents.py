"""Latents as a file: safetensors, complete in itself, under its name only when whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stillreel.errors import InferenceFailed
from stillreel.job import Shot
from stillreel.models.base import Generated, LatentArrays


def write_latents(path: Path, shot: Shot, generated: Generated) -> None:
    """Store what an inference made: to a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    arrays = {name: np.ascontiguousarray(array) for name, array in generated.arrays.items()}
    metadata = {
        "shot": shot.model_dump_json(),
        "seconds": json.dumps(dict(generated.seconds)),
        "dtype": generated.dtype,
    }
    try:
        with temporary.open("wb") as file:
            file.write(save(arrays, metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_facts(path: Path) -> tuple[Shot, dict[str, float], str]:
    """The shot, the seconds by phase and the dtype of stored latents, without the arrays."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    try:
        shot = Shot.model_validate_json(metadata["shot"])
        return shot, json.loads(metadata["seconds"]), metadata["dtype"]
    except (KeyError, ValueError) as exc:
        raise InferenceFailed("the stored latents have no readable description") from exc


def read_arrays(path: Path) -> LatentArrays:
    """The arrays of stored latents."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(str(path), framework="numpy")
    except (OSError, SafetensorError) as exc:
        raise InferenceFailed("the stored latents cannot be read") from exc
