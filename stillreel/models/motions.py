"""How a camera moves: a fixed vocabulary, read from an order's `camera`, said to every model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stillreel.errors import RequestRejected

Axis = Literal["all", "depth", "across", "up", "hand"]
Speed = Literal["", "slow", "fast"]


@dataclass(frozen=True)
class Motion:
    """One word of the vocabulary."""

    axis: Axis
    """At most one motion along each; `all` stands alone."""
    verb: str
    """What the camera does, as a prompt says it."""
    description: str


MOTIONS: Mapping[str, Motion] = {
    "static": Motion("all", "is static, locked on a tripod", "Stands still; only the scene moves."),
    "zoom in": Motion("depth", "zooms in", "The lens goes closer, the camera stays."),
    "zoom out": Motion("depth", "zooms out", "The lens shows more, the camera stays."),
    "dolly in": Motion("depth", "moves forward towards the subject", "Drives to the subject."),
    "dolly out": Motion("depth", "moves back from the subject", "Drives away from the subject."),
    "pan left": Motion("across", "pans left", "Turns left where it stands."),
    "pan right": Motion("across", "pans right", "Turns right where it stands."),
    "truck left": Motion("across", "tracks sideways to the left", "Drives to the left."),
    "truck right": Motion("across", "tracks sideways to the right", "Drives to the right."),
    "orbit left": Motion("across", "circles the subject to the left", "Round the subject, left."),
    "orbit right": Motion(
        "across", "circles the subject to the right", "Round the subject, right."
    ),
    "tilt up": Motion("up", "tilts up", "Looks up from where it stands."),
    "tilt down": Motion("up", "tilts down", "Looks down from where it stands."),
    "crane up": Motion("up", "rises on a crane", "Rises as a whole."),
    "crane down": Motion("up", "sinks on a crane", "Sinks as a whole."),
    "handheld": Motion("hand", "is handheld, with a slight natural sway", "Sways as in a hand."),
}
"""By the words that an order names them with."""

SPEEDS: Mapping[Speed, str] = {
    "slow": "slow slowly gentle gently subtle subtly",
    "fast": "fast quick quickly rapid rapidly dramatic dramatically",
}
"""The words of each speed; without any of them a motion is neither."""

_SPEED_OF: Mapping[str, Speed] = {
    word: speed for speed, words in SPEEDS.items() for word in words.split()
}
_ALIASES = {
    "push in": "dolly in",
    "pull out": "dolly out",
    "pull back": "dolly out",
    "hand held": "handheld",
    "still": "static",
}
_ADVERBS: Mapping[Speed, str] = {"": "", "slow": "slowly ", "fast": "quickly "}
_BETWEEN = re.compile(r"\s*(?:[,;+&]|\band\b|\bwith\b)[\s,]*")
_AXES: tuple[Axis, ...] = ("all", "depth", "across", "up", "hand")


@dataclass(frozen=True)
class Camera:
    """What an order asks of the camera: motions along different axes at once, and their speed."""

    motions: tuple[str, ...]
    speed: Speed = ""

    def __str__(self) -> str:
        """The order's words in their one canonical form, e.g. `slow dolly in and pan left`."""
        return f"{self.speed} {' and '.join(self.motions)}".strip()

    @property
    def sentence(self) -> str:
        """The same as a sentence for a prompt."""
        verbs = [MOTIONS[name].verb for name in self.motions if name not in ("static", "handheld")]
        if not verbs:
            return f"The camera {MOTIONS[self.motions[0]].verb}."
        who = "The handheld camera" if "handheld" in self.motions else "The camera"
        *first, last = verbs
        what = f"{', '.join(first)} and {last}" if first else last
        return f"{who} {_ADVERBS[self.speed]}{what}."


def read_camera(words: str) -> Camera:
    """The camera that these words ask for, e.g. `dolly in`, `slow pan left and tilt up`.

    Raises RequestRejected naming the vocabulary, or the motions that exclude each other.
    """
    text = re.sub(r"[-_\s]+", " ", words.lower()).strip(" .")
    parts = [part for part in _BETWEEN.split(text) if part]
    speed: Speed = ""
    found: dict[Axis, str] = {}
    for part in parts:
        named, speed = _without_speed(part, speed)
        if not named:  # "dolly in, slow"
            continue
        name = _ALIASES.get(named, named)
        if name not in MOTIONS:
            raise _unknown(part)
        axis = MOTIONS[name].axis
        if found.get(axis, name) != name or ("all" in {*found, axis} and {*found, axis} != {"all"}):
            others = " and ".join(found.values())
            raise RequestRejected(
                f"The camera's motions {others} and {name} exclude each other; keep one of them."
            )
        found[axis] = name
    if not found:
        raise _unknown(words)
    is_still = set(found) <= {"all", "hand"}
    return Camera(tuple(found[axis] for axis in _AXES if axis in found), "" if is_still else speed)


def _without_speed(part: str, speed: Speed) -> tuple[str, Speed]:
    rest: list[str] = []
    for word in part.split():
        if word in _SPEED_OF:
            speed = _SPEED_OF[word]
        else:
            rest.append(word)
    return " ".join(rest), speed


def _unknown(words: str) -> RequestRejected:
    return RequestRejected(
        f"There is no motion {words[:40]!r} of the camera; choose one of: {', '.join(MOTIONS)}; "
        "slow or fast may stand before it, and `and` joins several."
    )
