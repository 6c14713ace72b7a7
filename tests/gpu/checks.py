"""What must hold of a backend: with tiny networks on a CPU, with real sizes on a GPU."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillreel.errors import InferenceCancelled
from stillreel.inference.latents import read_arrays, write_latents
from stillreel.job import Phase, Shot
from stillreel.models.base import Backend, Generated, ModelSpec
from stillreel.models.memory import MemoryPlan
from stillreel.models.registry import load_backend
from stillreel.models.torch_backend import pick_device
from stillreel.models.wan22 import Wan22Backend
from stillreel.models.wan_vae import _denormalised, _to_bytes
from stillreel.settings import InferenceSettings

SLACK = 64_000_000
"""Bytes that a GPU's memory may differ by between two equal states."""


def loaded(spec: ModelSpec, model_path: Path) -> Backend:
    """A backend as the inference server makes it."""
    settings = InferenceSettings.model_validate({"model_path": str(model_path)})
    backend = load_backend(spec, settings)
    backend.load()
    return backend


def quiet(*_: object) -> None:
    """An OnStep."""


def check_seed(backend: Backend, shot: Shot) -> Generated:
    """The same seed gives the same latents, another one others."""
    first, second, other = (
        backend.generate(each, None, quiet)
        for each in (shot, shot, shot.model_copy(update={"seed": shot.seed + 1}))
    )
    for name, array in first.arrays.items():
        assert np.isfinite(array).all()
        assert np.array_equal(array, second.arrays[name])
        assert not np.array_equal(array, other.arrays[name])
    return first


def check_cancel(backend: Backend, shot: Shot, expected: Generated) -> None:
    """A cancelled video leaves no more on the GPU than a finished one, and the next is right."""
    before = _memory()

    def cancel(phase: Phase, step: int, _: int) -> None:
        if phase is Phase.DENOISE and step == 1:
            raise InferenceCancelled

    with pytest.raises(InferenceCancelled):
        backend.generate(shot, None, cancel)
    assert all(now <= then + SLACK for now, then in zip(_memory(), before, strict=True))
    again = backend.generate(shot, None, quiet)
    assert all(np.array_equal(again.arrays[name], expected.arrays[name]) for name in again.arrays)


def check_decode(
    spec: ModelSpec, model_path: Path, shot: Shot, made: Generated, folder: Path
) -> None:
    """Stored latents, decoded by another backend, give the frames of a decode in one piece."""
    import torch

    path = folder / "latents.safetensors"
    write_latents(path, shot, made)
    with closing(loaded(spec, model_path)) as backend:
        assert isinstance(backend, Wan22Backend)
        frames = np.concatenate(list(backend.decode(shot, read_arrays(path)).chunks))
        vae: Any = backend._weights["vae"]
        latents = torch.from_numpy(made.arrays["video"])
        with torch.no_grad():
            whole = _to_bytes(vae.decode(_denormalised(vae, latents), return_dict=False)[0])
        assert np.array_equal(frames, whole.cpu().numpy())


def check_fallback(spec: ModelSpec, model_path: Path, shot: Shot) -> Generated:
    """Where the first plan runs out of memory, the second makes it, and the result says so.

    Only on a GPU whose memory is capped; on a CPU there are no plans.
    """
    first, second = (
        MemoryPlan(plan.name, plan.description, 0, 1, 0)
        for plan in spec.plans
        if plan.name in ("resident", "one-by-one")
    )
    with closing(loaded(replace(spec, plans=(first, second)), model_path)) as backend:
        made = backend.generate(shot, None, quiet)
    assert made.plan == second.name
    assert "resident ran out" in made.warnings[0]
    return made


def _memory() -> tuple[int, int]:
    """Bytes that tensors take on the GPU, and that torch holds for them."""
    import torch

    device = pick_device()
    if device.type != "cuda":
        return 0, 0
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
