"""The two shapes of video servers: what is sent, and what the answers mean. Nothing is called."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from stillreel.errors import RemoteError
from stillreel.job import Shot
from stillreel.models.remote_calls import File
from stillreel.settings import InferenceSettings

Parameters = Mapping[str, Any]

_ASPECTS = ("16:9", "9:16", "4:3", "3:4", "1:1", "3:2", "2:3", "21:9")
_ID = re.compile(r"(?!\.+$)[\w.:~-]{1,300}", re.ASCII)
INLINE_LIMIT = 256 * 1024
"""Bytes; up to here Replicate recommends a data: URL, beyond it a file of theirs."""


class State(StrEnum):
    """Where an order stands at a server."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Seen:
    """An order as the server tells it."""

    id: str
    state: State
    percent: int = 0
    """What the server counts as done; 0 where it does not count."""
    code: str = ""
    message: str = ""
    places: tuple[str, ...] = ()
    """Where its video is, the best place first: paths of the server, or addresses."""
    usd: float | None = None
    """What the server says that it costs."""


@dataclass(frozen=True)
class Create:
    """The call that makes an order."""

    path: str
    body: dict[str, Any] | None = None
    files: list[File] | None = None


class Shape(Protocol):
    """How one kind of server is spoken to."""

    def create(self, parameters: Parameters, model: str) -> Create:
        """The order of a video with these parameters; an image among them is bytes or a URL."""
        ...

    def look(self, remote_id: str) -> str:
        """The path that tells how an order stands."""
        ...

    def cancel(self, remote_id: str) -> tuple[str, str]:
        """Method and path that end an order."""
        ...

    def read(self, body: Any) -> Seen:
        """An order out of an answer. Raises RemoteError where there is none."""
        ...

    def upload(self, image: bytes) -> Create | None:
        """The call that brings an image there first; None where it goes with the order."""
        ...


class OpenAIShape:
    """`/videos`, always as multipart: vLLM-Omni takes nothing else, and all others take it too."""

    def create(self, parameters: Parameters, model: str) -> Create:  # noqa: ARG002 - of the port
        return Create("videos", files=[_part(name, value) for name, value in parameters.items()])

    def look(self, remote_id: str) -> str:
        return f"videos/{quote(remote_id, safe='')}"

    def cancel(self, remote_id: str) -> tuple[str, str]:
        return "DELETE", self.look(remote_id)

    def upload(self, image: bytes) -> None:  # noqa: ARG002 - of the port
        return None

    def read(self, body: Any) -> Seen:
        remote_id, status = _id_and_status(body)
        error = body.get("error")
        error = error if isinstance(error, dict) else {"message": error}
        url = body.get("url")
        cost = body.get("cost")
        return Seen(
            remote_id,
            _OPENAI_STATES.get(status, State.RUNNING),
            percent=_percent(body.get("progress")),
            code=str(error.get("code") or ("cancelled" if status.startswith("cancel") else "")),
            message=str(error.get("message") or ""),
            places=(f"{self.look(remote_id)}/content", *([url] if _is_http(url) else [])),
            usd=_number(cost.get("usd")) if isinstance(cost, dict) else None,
        )


class ReplicateShape:
    """`/predictions`, as JSON; its models name their inputs as they like."""

    def create(self, parameters: Parameters, model: str) -> Create:
        body: dict[str, Any] = {"input": {n: _json(value) for n, value in parameters.items()}}
        if model.startswith("deployments/"):
            return Create(f"{model}/predictions", body)
        if "/" in model and ":" not in model:
            return Create(f"models/{model}/predictions", body)
        return Create("predictions", {"version": model, **body})

    def look(self, remote_id: str) -> str:
        return f"predictions/{quote(remote_id, safe='')}"

    def cancel(self, remote_id: str) -> tuple[str, str]:
        return "POST", f"{self.look(remote_id)}/cancel"

    def upload(self, image: bytes) -> Create | None:
        if len(image) <= INLINE_LIMIT:
            return None
        return Create("files", files=[("content", ("image.png", image, "image/png"))])

    def read(self, body: Any) -> Seen:
        remote_id, status = _id_and_status(body)
        error = body.get("error")
        return Seen(
            remote_id,
            _REPLICATE_STATES.get(status, State.RUNNING),
            code="cancelled" if status in ("canceled", "aborted") else "",
            message=error if isinstance(error, str) else "",
            places=_addresses(body.get("output")),
        )


SHAPES: Mapping[str, Shape] = {"openai": OpenAIShape(), "replicate": ReplicateShape()}

DEFAULTS: Mapping[str, Parameters] = {
    "openai": {
        "model": "{model}",
        "prompt": "{prompt}",
        "negative_prompt": "{negative_prompt}",
        "seconds": "{seconds}",
        "size": "{size}",
        "fps": "{fps}",
        "seed": "{seed}",
        "input_reference": "{image}",
    },
    "replicate": {
        "prompt": "{prompt}",
        "negative_prompt": "{negative_prompt}",
        "image": "{image}",
    },
}
"""What is sent where STILLREEL_REMOTE_PARAMETERS says nothing else."""

_OPENAI_STATES = {
    "queued": State.QUEUED,
    "pending": State.QUEUED,
    "completed": State.DONE,
    "succeeded": State.DONE,
    **dict.fromkeys(("failed", "cancelled", "canceled", "expired", "deleted"), State.FAILED),
}
_REPLICATE_STATES = {
    "starting": State.QUEUED,
    "succeeded": State.DONE,
    **dict.fromkeys(("failed", "canceled", "aborted"), State.FAILED),
}


def values_of(shot: Shot, model: str) -> dict[str, Any]:
    """What the names of settings.REMOTE_VALUES stand for, without the image; None: nothing."""
    width, height = shot.crop_width, shot.crop_height
    return {
        "prompt": shot.prompt,
        "negative_prompt": shot.negative_text() or None,
        "model": model or None,
        "seconds": whole_seconds(shot),
        "duration": round((shot.frames - 1) / shot.fps, 3),
        "frames": shot.frames,
        "fps": shot.fps,
        "size": f"{width}x{height}",
        "width": width,
        "height": height,
        "aspect_ratio": min(_ASPECTS, key=lambda a: abs(math.log(_ratio(a) * height / width))),
        "seed": shot.seed,
        "audio": shot.audio,
    }


def whole_seconds(shot: Shot) -> int:
    """What is asked for, rounded up: no server takes parts of a second.

    The one frame that a shot has more than its seconds is not worth another second.
    """
    return max(1, math.ceil(round((shot.frames - 1) / shot.fps, 3)))


def parameters_of(settings: InferenceSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent for an order: the shape's defaults under the operator's, with these values.

    A parameter is left out where it is null, or names something that the order does not have.
    """
    template = {**DEFAULTS[settings.remote_shape], **settings.remote_parameters}
    filled: dict[str, Any] = {}
    for name, value in template.items():
        if value is not None:
            with suppress(_Missing):
                filled[name] = _filled(value, values)
    return filled


class _Missing(Exception):
    """The order has nothing of that name."""


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(inner, values) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values) for inner in value]
    if isinstance(value, str) and value[:1] == "{" and value[1:-1] in values:
        found = values[value[1:-1]]
        if found is None:
            raise _Missing
        return found
    return value


def _part(name: str, value: Any) -> File:
    if isinstance(value, bytes):
        return name, ("image.png", value, "image/png")
    if isinstance(value, str):
        return name, (None, value)
    return name, (None, json.dumps(_json(value)))


def _json(value: Any) -> Any:
    """The same with images as data: URLs."""
    if isinstance(value, bytes):
        return f"data:image/png;base64,{b64encode(value).decode()}"
    if isinstance(value, dict):
        return {name: _json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_json(inner) for inner in value]
    return value


def _id_and_status(body: Any) -> tuple[str, str]:
    found: dict[str, Any] = body if isinstance(body, dict) else {}
    remote_id, status = str(found.get("id") or ""), str(found.get("status") or "")
    if not status or not _ID.fullmatch(remote_id):
        raise RemoteError(
            "The remote video server answers without an id and a status; check "
            "STILLREEL_REMOTE_URL and STILLREEL_REMOTE_SHAPE."
        )
    return remote_id, status.lower()


def _addresses(output: Any) -> tuple[str, ...]:
    """All addresses in an output of any form, those of an MP4 first."""
    if isinstance(output, str):
        return (output,) if _is_http(output) or output.startswith("data:") else ()
    inner = output.values() if isinstance(output, dict) else output
    if not isinstance(inner, list | type({}.values())):
        return ()
    found = [address for value in inner for address in _addresses(value)]
    return tuple(sorted(found, key=lambda a: not urlsplit(a[:2000]).path.endswith(".mp4")))


def _is_http(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def _percent(value: Any) -> int:
    number = _number(value)
    return 0 if number is None else int(min(max(number, 0.0), 100.0))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _ratio(text: str) -> float:
    width, height = text.split(":")
    return int(width) / int(height)
