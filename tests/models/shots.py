"""Shots that tiny networks make within a second."""

from __future__ import annotations

from PIL import Image

from stillreel.job import ModelName, Phase, Shot
from stillreel.models.registry import MODELS
from stillreel.scene import draw_scene
from tests.fake_backend import make_shot


def tiny_shot(
    model: ModelName, prompt: str = "a lake at dawn", *, preset: str = "standard", **changes: object
) -> Shot:
    """96x64 for 9 frames; three steps unless the preset's are fixed."""
    facts = MODELS[model].presets[preset]
    steps = facts.steps if facts.steps_fixed else 3
    shot = make_shot(prompt, model=model, frames=9)
    return shot.model_copy(
        update={"width": 96, "height": 64, "preset": preset, "steps": steps, **changes}
    )


def tiny_image(width: int = 96, height: int = 64) -> Image.Image:
    """A still with some light and some shade."""
    return draw_scene(width, height, seed=1).convert("RGB")


class Steps:
    """An `on_step` that remembers what it was told, and stops the work after a phase's step."""

    def __init__(self, stop_after: tuple[Phase, int] | None = None) -> None:
        self.seen: list[tuple[Phase, int, int]] = []
        self._stop_after = stop_after

    def __call__(self, phase: Phase, step: int, steps: int) -> None:
        from stillreel.errors import InferenceCancelled

        self.seen.append((phase, step, steps))
        if (phase, step) == self._stop_after:
            raise InferenceCancelled
