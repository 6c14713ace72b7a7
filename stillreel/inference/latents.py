"""Latents as a file: safetensors, complete in itself, under its name only when whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stillreel.errors import InferenceFailed
from stillreel.job import Shot
from stillreel.models.base import Generated, LatentArrays


class Facts(NamedTuple):
    """What the description of stored latents says."""

    shot: Shot
    seconds: dict[str, float]
    """By phase."""
    dtype: str
    plan: str
    """The memory plan that made them, where there was one to choose."""
    warnings: tuple[str, ...]
    usd: float
    """What a server elsewhere charged."""


def write_latents(path: Path, shot: Shot, generated: Generated) -> None:
    """Store what an inference made: to a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    arrays = {name: np.ascontiguousarray(array) for name, array in generated.arrays.items()}
    metadata = {
        "shot": shot.model_dump_json(),
        "seconds": json.dumps(dict(generated.seconds)),
        "dtype": generated.dtype,
        "plan": generated.plan,
        "warnings": json.dumps(generated.warnings),
        "usd": json.dumps(generated.usd),
    }
    try:
        with temporary.open("wb") as file:
            file.write(save(arrays, metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_facts(path: Path) -> Facts:
    """What stored latents are and what they took, without the arrays."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    try:
        return Facts(
            shot=Shot.model_validate_json(metadata["shot"]),
            seconds=json.loads(metadata["seconds"]),
            dtype=metadata["dtype"],
            plan=metadata.get("plan", ""),
            warnings=tuple(json.loads(metadata.get("warnings", "[]"))),
            usd=float(json.loads(metadata.get("usd", "0"))),
        )
    except (KeyError, TypeError, ValueError) as exc:
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
