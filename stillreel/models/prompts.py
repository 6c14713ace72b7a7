"""What a model reads: the caller's words, with those of the order's style and camera."""

from __future__ import annotations

from dataclasses import dataclass

from stillreel.errors import RequestRejected
from stillreel.job import PROMPT_LIMIT, JobSpec
from stillreel.models.base import ModelSpec
from stillreel.models.camera import directs_camera
from stillreel.models.motions import Camera, read_camera
from stillreel.models.styles import PROMPT, Style, find_style


@dataclass(frozen=True)
class Words:
    """The texts of a shot."""

    prompt: str
    style_negative: str = ""
    camera: str = ""
    warnings: tuple[str, ...] = ()


def words_of(spec: JobSpec, model: ModelSpec) -> Words:
    """The texts that `model` is given for `spec`; the caller's words come through whole.

    Raises RequestRejected for a style or a motion that is not known, and for too much text.
    """
    style = find_style(spec.style) if spec.style else None
    camera = _camera(spec, style)
    named = str(camera or "")
    if not model.reads_prompt:
        return Words(spec.prompt, camera=named, warnings=_unused(spec, model, style, named))
    prompt, negative = spec.prompt, ""
    if style:
        prompt, negative = fill(style.prompt, prompt), style.negative_prompt
        if spec.audio and model.audio:
            prompt = f"{prompt} {style.sound}".rstrip()
    if camera:
        prompt = f"{_sentence(prompt)} {camera.sentence}".lstrip()
    _check_length("prompt", prompt)
    _check_length("negative prompt", f"{spec.negative_prompt}, {negative}" if negative else "")
    return Words(prompt, negative, named)


def with_settings(spec: JobSpec, model: ModelSpec) -> JobSpec:
    """The order with what its style sets of this model, where the caller set nothing.

    Preset and steps belong together: with either of them from the caller, none is the style's.
    Raises RequestRejected for a style that is not known.
    """
    found = find_style(spec.style).settings.get(model.name) if spec.style else None
    if found is None:
        return spec
    own = spec.preset or spec.steps
    return spec.model_copy(
        update={
            "preset": spec.preset if own else found.preset,
            "steps": spec.steps if own else found.steps,
            "fps": spec.fps or found.fps,
        }
    )


def fill(template: str, prompt: str) -> str:
    """The template with the caller's words in their place; before a new sentence they are one."""
    before, _, after = template.partition(PROMPT)
    ends = not after.strip() or after.lstrip()[0].isupper()
    return f"{before}{_sentence(prompt) if ends else prompt}{after}".strip()


def _camera(spec: JobSpec, style: Style | None) -> Camera | None:
    if spec.camera:
        return read_camera(spec.camera)
    if style and style.camera and not directs_camera(spec.prompt):
        return read_camera(style.camera)
    return None


def _sentence(text: str) -> str:
    """The text with a full stop, where it ends like a word."""
    return f"{text}." if text and text[-1].isalnum() else text


def _unused(spec: JobSpec, model: ModelSpec, style: Style | None, camera: str) -> tuple[str, ...]:
    if style is None:
        return ()
    rest = f"only the camera: {camera}" if camera and not spec.camera else "nothing"
    return (f"{model.name} shows the image as it is; of the style {spec.style} it takes {rest}.",)


def _check_length(name: str, text: str) -> None:
    if len(text) > PROMPT_LIMIT:
        raise RequestRejected(
            f"With the words of its style and camera the {name} has {len(text):,} characters, and "
            f"{PROMPT_LIMIT:,} are taken; write {len(text) - PROMPT_LIMIT:,} fewer, or leave style "
            "and camera out."
        )
