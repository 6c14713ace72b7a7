"""Camera moves over a still image: read from an order's words, drawn as a path of boxes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stillreel.models.motions import SPEEDS, Camera

Scaling = Literal["zoom-in", "zoom-out", "dolly-in", "dolly-out"]

SWAY_BESIDE = 0.25
"""How much a camera held by hand sways that also goes somewhere."""
RATIOS = {"slow": 1.12, "": 1.25, "fast": 1.5}
"""How much closer the nearest point of a move is than its farthest, by speed."""


@dataclass(frozen=True)
class Move:
    """Where a camera goes: at most one move along each of its three axes."""

    scaling: Scaling | None = None
    pan: int = 0
    """-1 left, 1 right."""
    tilt: int = 0
    """-1 up, 1 down."""
    ratio: float = RATIOS[""]
    sway: float = 0.0
    """How much of the room beside what it sees a camera held by hand sways through."""


MOVES: dict[str, Move] = {
    "dolly-in": Move("dolly-in"),
    "pan-right": Move(pan=1),
    "zoom-out": Move("zoom-out"),
    "tilt-up": Move(tilt=-1),
    "zoom-in": Move("zoom-in"),
    "pan-left": Move(pan=-1),
    "dolly-out": Move("dolly-out"),
    "tilt-down": Move(tilt=1),
}
"""The single moves, in the order in which seeds choose them."""

FLAT: dict[str, str] = {"orbit left": "pan left", "orbit right": "pan right"}
"""What a flat image shows instead of a motion that needs depth."""

_MOTIONS: dict[str, Move] = {
    "static": Move(),
    "zoom in": Move("zoom-in"),
    "zoom out": Move("zoom-out"),
    "dolly in": Move("dolly-in"),
    "dolly out": Move("dolly-out"),
    "pan left": Move(pan=-1),
    "pan right": Move(pan=1),
    "truck left": Move(pan=-1),
    "truck right": Move(pan=1),
    "tilt up": Move(tilt=-1),
    "tilt down": Move(tilt=1),
    "crane up": Move(tilt=-1),
    "crane down": Move(tilt=1),
    "handheld": Move(sway=1.0),
}
_SWAYS = ((1.3, 0.0), (3.1, 1.0)), ((1.7, 2.0), (2.3, 0.5))
"""Across and down: two waves each, by their number in a video and where they begin."""

_CAMERA = re.compile(
    r"(?P<zoom>zoom)(s|ed|ing)?"
    r"|(camera|doll(y|ie)|push(e)?|pull|pann?|truck|track|slide?|sweep|tilt|crane?|boom|pedestal)"
    r"(s|d|ed|ing)?"
)
_WAYS = {
    "in": "in into inward inwards closer forward forwards toward towards",
    "out": "out outward outwards back backward backwards away",
    "left": "left leftward leftwards",
    "right": "right rightward rightwards",
    "up": "up upward upwards",
    "down": "down downward downwards",
}
_WAY = {word: way for way, words in _WAYS.items() for word in words.split()}
_SIDES = {"left": -1, "right": 1}
_LEVELS = {"up": -1, "down": 1}
_FROM_TO = re.compile(r"\b(?:left|right|top|bottom) to (?:the )?(left|right|top|bottom)\b")
_ENDS = {"left": "left", "right": "right", "top": "up", "bottom": "down"}
_OTHER = frozenset({"camera", "handheld", "orbit", "orbits", "orbiting", "tripod"})
_REACH = 4
"""A direction belongs to a camera word at most this many words before it."""


def read_move(prompt: str, *, seed: int) -> Move:
    """The move that an English prompt asks for, else the one that `seed` chooses."""
    words = _words(prompt)
    scaling, pan, tilt = _axes(words)
    ratio = _ratio(words)
    if scaling or pan or tilt:
        return Move(scaling, pan, tilt, ratio)
    chosen = list(MOVES.values())[seed % len(MOVES)]
    return Move(chosen.scaling, chosen.pan, chosen.tilt, ratio)


def move_of(camera: Camera) -> Move:
    """The move that shows these motions over a flat image; an orbit becomes a pan."""
    parts = [_MOTIONS[FLAT.get(name, name)] for name in camera.motions]
    scalings: list[Scaling] = [part.scaling for part in parts if part.scaling]
    scaling = scalings[0] if scalings else None
    pan, tilt = sum(part.pan for part in parts), sum(part.tilt for part in parts)
    if scaling or pan or tilt:
        sway = SWAY_BESIDE if any(part.sway for part in parts) else 0.0
        return Move(scaling, pan, tilt, RATIOS[camera.speed], sway)
    sway = max(part.sway for part in parts)
    return Move(ratio=RATIOS["slow"] if sway else 1.0, sway=sway)


def directs_camera(prompt: str) -> bool:
    """Whether a prompt has words of its own about the camera: of a move, or of how it is held."""
    words = _words(prompt)
    return any(_axes(words)) or not _OTHER.isdisjoint(words)


def boxes(move: Move, times: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """What the camera sees at `times` (0 to 1): (n, 4) left, top, right, bottom in pixels.

    Each box has the shape of the image and lies inside it. The move starts and ends gently.
    """
    progress = times * times * (3 - 2 * times)
    scale = _scale(move, progress)
    size = np.array([width, height], dtype=np.float64)
    seen = size / scale[:, None]
    place = _place(move, progress)[:, None] * np.array([move.pan, move.tilt])
    if move.sway:
        place = (1 - move.sway) * place + move.sway * _sway(times)
    start = (size - seen) * (1 + place) / 2
    return np.clip(np.hstack([start, start + seen]), 0.0, np.tile(size, 2))


def _words(prompt: str) -> list[str]:
    text = _FROM_TO.sub(lambda match: _ENDS[match[1]], prompt.lower())
    return re.findall(r"[a-z]+", text)


def _axes(words: list[str]) -> tuple[Scaling | None, int, int]:
    scaling: Scaling | None = None
    pan = tilt = 0
    zoom, last = False, -_REACH - 1
    for index, word in enumerate(words):
        if camera := _CAMERA.fullmatch(word):
            zoom, last = bool(camera["zoom"]), index
            continue
        way = _WAY.get(word)
        if way is None or index - last > _REACH:
            continue
        pan = pan or _SIDES.get(way, 0)
        tilt = tilt or _LEVELS.get(way, 0)
        if way == "in":
            scaling = scaling or ("zoom-in" if zoom else "dolly-in")
        elif way == "out":
            scaling = scaling or ("zoom-out" if zoom else "dolly-out")
    return scaling, pan, tilt


def _ratio(words: list[str]) -> float:
    for speed, names in SPEEDS.items():
        if not set(names.split()).isdisjoint(words):
            return RATIOS[speed]
    return RATIOS[""]


def _scale(move: Move, progress: np.ndarray) -> np.ndarray:
    """Magnification: constant for a pan, in equal ratios for a zoom, in equal ways for a dolly."""
    match move.scaling:
        case "zoom-in":
            return move.ratio**progress
        case "zoom-out":
            return move.ratio ** (1 - progress)
        case "dolly-in":
            return _dolly(move.ratio, progress)
        case "dolly-out":
            return _dolly(move.ratio, 1 - progress)
        case None:
            return np.full_like(progress, move.ratio)


def _dolly(ratio: float, way: np.ndarray) -> np.ndarray:
    """What stands at distance 1 looks 1 / distance as large, and the camera stops at 1 / ratio."""
    return 1 / (1 - (1 - 1 / ratio) * way)


def _place(move: Move, progress: np.ndarray) -> np.ndarray:
    """How far along its pan or tilt: -1 to 1, and 0 where a zoom or dolly shows all."""
    match move.scaling:
        case "zoom-in" | "dolly-in":
            return progress
        case "zoom-out" | "dolly-out":
            return progress - 1
        case None:
            return 2 * progress - 1


def _sway(times: np.ndarray) -> np.ndarray:
    """Where a hand holds the camera: (n, 2) across and down, -1 to 1."""
    turns = 2 * np.pi * times
    return np.stack(
        [sum(np.sin(turns * n + begin) / 2 for n, begin in waves) for waves in _SWAYS], axis=1
    )
