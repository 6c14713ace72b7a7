"""The models: whether their code, their weights and a memory plan for the GPU are here."""

from __future__ import annotations

from collections.abc import Iterator

from stillreel.doctor.finding import Finding, ok, skipped, warning
from stillreel.doctor.gpu import Gpu, find_gpus
from stillreel.errors import MemoryTooSmall, ModelUnavailable
from stillreel.models.base import ModelSpec
from stillreel.models.memory import choose, tokens_of
from stillreel.models.registry import MODELS, is_available
from stillreel.models.weights import find_preset
from stillreel.settings import Settings

DRIVER_BYTES = 1_000_000_000
"""Of the GPU's memory that its driver and CUDA keep to themselves, about."""


def look(settings: Settings) -> Iterator[Finding]:
    """Each model of the registry, as far as this machine could run it."""
    gpus, _ = find_gpus()
    for spec in MODELS.values():
        yield _look_at(spec, settings, gpus)


def _look_at(spec: ModelSpec, settings: Settings, gpus: list[Gpu]) -> Finding:
    check = f"model {spec.name}"
    if spec.elsewhere:
        if settings.inference.remote_url:
            return ok(check, "runs at STILLREEL_REMOTE_URL")
        return skipped(check, "STILLREEL_REMOTE_URL is not set")
    if not spec.pipelines:
        return ok(check, "needs no weights and no GPU")
    return _look_at_weights(check, spec, settings, gpus)


def _look_at_weights(check: str, spec: ModelSpec, settings: Settings, gpus: list[Gpu]) -> Finding:
    """The API's machine offers models whose weights lie on hosts: without a GPU none is due."""
    lacks = warning if gpus else skipped
    if not is_available(spec):
        fix = "pip install -c constraints.txt 'stillreel[models]'"
        return lacks(check, "its Python packages are not installed here", fix)
    try:
        preset = find_preset(spec, settings.inference)
    except ModelUnavailable as exc:
        note = exc.message if gpus else "its weights are not on this machine"
        return lacks(check, note, f"on a host for it: stillreel models pull {spec.name}")
    if not gpus:
        return ok(check, f"weights of {preset} are here, and no GPU to run them")
    return _look_at_memory(check, spec, preset, gpus)


def _look_at_memory(check: str, spec: ModelSpec, preset: str, gpus: list[Gpu]) -> Finding:
    width, height = spec.default_size
    frames = round(min(5.0, spec.max_seconds) * spec.fps[0])
    tokens = tokens_of(width, height, frames, frame_step=spec.frame_step)
    free = min(gpu.memory for gpu in gpus) - DRIVER_BYTES
    try:
        plan = choose(spec.plans, free, tokens) if spec.plans else None
    except MemoryTooSmall as exc:
        fix = "rent a larger GPU for it (docs/models.md has the memory of each plan)"
        return warning(check, f"weights of {preset} are here. {exc.message}", fix)
    return ok(check, f"weights of {preset} are here; plan {plan.name if plan else 'its own'}")
