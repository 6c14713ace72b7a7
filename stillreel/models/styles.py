"""Styles: named looks that an order asks for, in our own file and in the operator's.

`styles.toml` holds ours; STILLREEL_STYLES names a file of the same form that adds to them, or
replaces them by name (docs/styles.md).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

from stillreel.errors import RequestRejected, SettingsInvalid
from stillreel.job import ModelName
from stillreel.models.motions import read_camera
from stillreel.models.registry import MODELS
from stillreel.settings import get_settings

OWN_FILE = Path(__file__).with_name("styles.toml")
PROMPT = "{prompt}"
"""Where in a style's prompt the caller's words go."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_FIELD = re.compile(r"\{.*?\}|[{}]")


def _one_line(value: str) -> str:
    if "\x00" in value:
        raise ValueError("contains the NUL character; remove it")
    return " ".join(value.split())


_Text = Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(_one_line)]
"""Text whose line breaks are spaces."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StyleSettings(_Strict):
    """What a style sets of one model, where the order does not; "" and 0 leave it alone."""

    preset: str = ""
    steps: int = Field(0, ge=0)
    fps: int = Field(0, ge=0)


class Style(_Strict):
    """A named look."""

    title: _Text = Field(min_length=1, max_length=60)
    description: _Text = Field(min_length=1, max_length=200)
    prompt: _Text = Field(max_length=1500)
    """What the model reads; `{prompt}` in it is what the caller wrote."""
    negative_prompt: _Text = Field("", max_length=1000)
    """Is added to the caller's own negative prompt, or to the model's."""
    sound: _Text = Field("", max_length=300)
    """Is added to the prompt where the video has sound."""
    camera: str = ""
    """Holds where neither `camera` nor the prompt of an order says how the camera moves."""
    settings: Mapping[ModelName, StyleSettings] = {}

    @field_validator("prompt")
    @classmethod
    def _one_place(cls, value: str) -> str:
        if others := [found for found in _FIELD.findall(value) if found != PROMPT]:
            raise ValueError(f"holds {others[0]!r}; the only braces are those of {PROMPT}")
        if value.count(PROMPT) != 1:
            raise ValueError(f"needs {PROMPT} exactly once: there the caller's words go")
        return value

    @field_validator("camera")
    @classmethod
    def _known_motions(cls, value: str) -> str:
        try:
            return str(read_camera(value)) if value else ""
        except RequestRejected as exc:
            raise ValueError(exc.message) from exc

    @field_validator("settings")
    @classmethod
    def _of_the_model(
        cls, value: Mapping[ModelName, StyleSettings]
    ) -> Mapping[ModelName, StyleSettings]:
        if mistakes := [m for name, found in value.items() for m in _mismatches(name, found)]:
            raise ValueError("; ".join(mistakes))
        return value


def get_styles() -> Mapping[str, Style]:
    """All styles by name, ours first. Raises SettingsInvalid naming every mistake in a file."""
    own, path = _read(OWN_FILE), get_settings().host.styles
    return {**own, **_read(path)} if path else own


def find_style(name: str) -> Style:
    """The style of this name, in whatever case. Raises RequestRejected naming those there are."""
    styles = get_styles()
    found = styles.get(name.lower())
    if found is None:
        raise RequestRejected(
            f"There is no style {name[:40]!r}; choose one of: {', '.join(styles)}, or leave style "
            "out."
        )
    return found


def read_styles(path: Path) -> dict[str, Style]:
    """The styles in a file, by name. Raises SettingsInvalid naming every mistake at once."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SettingsInvalid(f"STILLREEL_STYLES: {path} cannot be read: {exc}") from exc
    styles: dict[str, Style] = {}
    mistakes: list[str] = []
    for name, table in tables.items():
        if not _NAME.fullmatch(name):
            mistakes.append(
                f"{name[:50]!r} is no name of a style; use 1 to 40 of a-z, 0-9 and the hyphen"
            )
        if not isinstance(table, dict):
            mistakes.append(f"{name} stands outside of a style; begin each with its [name]")
            continue
        try:
            styles[name] = Style.model_validate(table)
        except ValidationError as exc:
            mistakes += [f"{name}: {_mistake(error)}" for error in exc.errors()]
    if mistakes:
        lines = "\n".join(f"  - {mistake}" for mistake in mistakes)
        raise SettingsInvalid(f"STILLREEL_STYLES: {path} has {len(mistakes)} mistake(s):\n{lines}")
    return styles


_read = lru_cache(maxsize=8)(read_styles)


def _mismatches(name: ModelName, found: StyleSettings) -> list[str]:
    """What these settings ask of a model that it does not do."""
    model = MODELS[name]
    mistakes: list[str] = []
    preset = found.preset or next(iter(model.presets))
    if preset not in model.presets:
        mistakes.append(f"{name} has no preset {preset!r}; it has: {', '.join(model.presets)}")
    elif model.presets[preset].steps_fixed and found.steps not in (0, model.presets[preset].steps):
        mistakes.append(
            f"the preset {preset} of {name} always takes {model.presets[preset].steps} steps, not "
            f"{found.steps}"
        )
    if found.fps and found.fps not in model.fps:
        rates = ", ".join(map(str, model.fps))
        mistakes.append(f"{name} does not make {found.fps} frames per second; it makes: {rates}")
    return mistakes


def _mistake(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    return f"{place}{': ' if place else ''}{error['msg'].removeprefix('Value error, ')}"
