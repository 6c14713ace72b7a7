"""From an order to exact numbers: a JobSpec against the facts of its model."""

from __future__ import annotations

import math

from stillreel.errors import RequestRejected
from stillreel.job import SIDE_LIMIT, JobSpec, Shot, frames_for, seed_of
from stillreel.models.base import ModelSpec, Preset
from stillreel.models.prompts import with_settings, words_of
from stillreel.models.registry import MODELS

Size = tuple[int, int]

PORTRAIT = 1.1
"""An image this many times as high as wide turns a model's default size upright."""


def check(spec: JobSpec, model: ModelSpec) -> None:
    """Refuse with RequestRejected whatever can be refused before an image is seen."""
    has_image = bool(spec.image_url or spec.image_key)
    _check(with_settings(spec, model), model, has_image=has_image)
    words_of(spec, model)


def resolve(
    spec: JobSpec,
    model: ModelSpec,
    *,
    job_id: str,
    image_size: Size | None,
    original_sha256: str = "",
) -> Shot:
    """The numbers that `model` is given for `spec`; `image_size` is None for a prompt alone.

    The generated size lies on the model's grid, the crop size is what is delivered. The seed
    depends on `job_id` alone, or, where results may be reused, on all that shapes the result.
    Style and camera become what the model reads. Raises RequestRejected.
    """
    spec = with_settings(spec, model)
    _check(spec, model, has_image=image_size is not None)
    preset_name, preset = _preset(spec, model)
    fps = spec.fps or model.fps[0]
    frames = frames_for(spec.duration, fps, model.frame_step)
    delivered = _delivered_size(spec, model, image_size)
    generated = _on_grid(delivered, model)
    words = words_of(spec, model)
    shot = Shot(
        model=model.name,
        model_version=model.version,
        preset=preset_name,
        prompt=words.prompt,
        negative_prompt=spec.negative_prompt,
        width=generated[0],
        height=generated[1],
        crop_width=delivered[0],
        crop_height=delivered[1],
        fps=fps,
        frames=frames,
        steps=spec.steps or preset.steps,
        seed=max(spec.seed, 0),
        audio=spec.audio and model.audio,
        style_negative=words.style_negative,
        camera=words.camera,
        warnings=(*words.warnings, *_warnings(spec, model, delivered, fps, frames)),
    )
    if spec.seed >= 0:
        return shot
    seed = seed_of(shot.digest(original_sha256) if spec.reuse else job_id)
    return shot.model_copy(update={"seed": seed})


def usual(model: ModelSpec) -> Shot:
    """What an order of a prompt and nothing else comes to."""
    order = JobSpec(model=model.name, prompt="a video")
    return resolve(order, model, job_id="usual", image_size=None)


def _check(spec: JobSpec, model: ModelSpec, *, has_image: bool) -> None:
    if not has_image and not spec.prompt:
        raise RequestRejected("There is neither an image nor a prompt; send one of them or both.")
    if not has_image and not model.text_to_video:
        able = ", ".join(other.name for other in MODELS.values() if other.text_to_video)
        raise RequestRejected(
            f"{model.name} needs an image; send one, or choose a model that works from a prompt "
            f"alone: {able}."
        )
    name, preset = _preset(spec, model)
    if preset.steps_fixed and spec.steps not in (0, preset.steps):
        raise RequestRejected(
            f"The preset {name} of {model.name} always takes {preset.steps} steps, not "
            f"{spec.steps}; leave steps out."
        )
    if spec.fps and spec.fps not in model.fps:
        raise RequestRejected(
            f"{model.name} does not make {spec.fps} frames per second; choose one of: "
            f"{', '.join(map(str, model.fps))}, or leave fps out."
        )
    if spec.duration > model.max_seconds:
        raise RequestRejected(
            f"{spec.duration:g} s are too long for {model.name}; ask for at most "
            f"{model.max_seconds:g} s."
        )
    smallest = spec.width or model.min_side, spec.height or model.min_side
    _check_size(smallest, model)


def _preset(spec: JobSpec, model: ModelSpec) -> tuple[str, Preset]:
    name = spec.preset or next(iter(model.presets))
    if name not in model.presets:
        raise RequestRejected(
            f"{model.name} has no preset {name!r}; choose one of: {', '.join(model.presets)}, or "
            "leave preset out."
        )
    return name, model.presets[name]


def _check_size(size: Size, model: ModelSpec) -> None:
    width, height = size
    if min(size) < model.min_side or max(size) > SIDE_LIMIT:
        raise RequestRejected(
            f"{width}x{height} is not a size for {model.name}; each side must be "
            f"{model.min_side} to {SIDE_LIMIT} pixels. Change width or height, or leave both out."
        )
    if math.prod(_on_grid(_even(size), model)) > model.max_pixels:
        raise RequestRejected(
            f"{width}x{height} is too large for {model.name}, which makes at most "
            f"{model.max_pixels} pixels per frame. Ask for a smaller width and height."
        )


def _delivered_size(spec: JobSpec, model: ModelSpec, image_size: Size | None) -> Size:
    asked = _asked_size(spec, model, image_size)
    _check_size(asked, model)
    return _nearest(asked, model.sizes) if model.sizes else _even(asked)


def _asked_size(spec: JobSpec, model: ModelSpec, image_size: Size | None) -> Size:
    if spec.width and spec.height:
        return spec.width, spec.height
    width, height = image_size or model.default_size
    if spec.width:
        return spec.width, _nearest_even(spec.width * height / width)
    if spec.height:
        return _nearest_even(spec.height * width / height), spec.height
    if height > PORTRAIT * width:
        return min(model.default_size), max(model.default_size)
    return model.default_size


def _nearest(size: Size, sizes: tuple[Size, ...]) -> Size:
    """The listed size that stretches both sides least."""
    return min(sizes, key=lambda s: sum(abs(math.log(a / b)) for a, b in zip(s, size, strict=True)))


def _nearest_even(side: float) -> int:
    return 2 * round(side / 2)


def _even(size: Size) -> Size:
    """H.264 with 4:2:0 colour has no odd sides."""
    return size[0] // 2 * 2, size[1] // 2 * 2


def _on_grid(size: Size, model: ModelSpec) -> Size:
    width, height = (math.ceil(side / model.grid) * model.grid for side in size)
    return width, height


def _warnings(
    spec: JobSpec, model: ModelSpec, delivered: Size, fps: int, frames: int
) -> tuple[str, ...]:
    warnings: list[str] = []
    asked = spec.width or delivered[0], spec.height or delivered[1]
    if asked != delivered:
        reason = f"{model.name} makes only fixed sizes" if model.sizes else "sides must be even"
        warnings.append(
            f"The video is {delivered[0]}x{delivered[1]} instead of {asked[0]}x{asked[1]}: "
            f"{reason}."
        )
    if frames - 1 - spec.duration * fps > 0.5:
        warnings.append(
            f"The video lasts {frames / fps:.2f} s instead of {spec.duration:g} s: {model.name} "
            f"makes one frame plus a multiple of {model.frame_step} at {fps} frames per second."
        )
    return tuple(warnings)
