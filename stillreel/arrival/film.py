"""What a film is, what was ordered, and how they differ: no file is opened here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stillreel.errors import ResultRefused
from stillreel.job import SIDE_LIMIT, TEASER_FPS, TEASER_WIDTH, Codec, JobSpec
from stillreel.models.base import ModelSpec
from stillreel.models.shots import resolve

Size = tuple[int, int]

SLACK_FRAMES, SLACK_SOUND = 1.5, 0.25
"""Of the length: frames, and seconds that sound may have beyond the last one."""
SPARE_MEDIA = 4096
"""Bytes of media data that belong to no frame and no sound."""
BITS_A_PIXEL, BYTES_MORE = 6.0, 1_000_000
"""The most that our encoder makes of noise, in quality `high`, and something for the rest."""

_NAMES: dict[Codec, tuple[str, ...]] = {"h264": ("h264",), "av1": ("av1", "libdav1d")}
_SQUARE_ENOUGH = ((1600, 900), (900, 1600))
"""Images of either shape: the size of a video depends on no more of one, if no side is given."""


class Track(BaseModel):
    """One stream of a film, as the probe tells it."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    kind: str
    codec: str
    width: int = 0
    height: int = 0
    pixels: str = ""
    fps: float = 0.0


class Film(BaseModel):
    """What the probe has found in a file."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    seconds: float
    streams: tuple[Track, ...]
    frames: int
    """Decoded; one more than were ordered where there are more."""
    media_bytes: int
    """Of all that was read for frames and sound."""
    changes_size: bool

    @property
    def picture(self) -> Track:
        return next(s for s in self.streams if s.kind == "video")

    @property
    def has_sound(self) -> bool:
        return any(s.kind == "audio" for s in self.streams)


@dataclass(frozen=True)
class FilmOrder:
    """What a file has to be."""

    codec: Codec
    frames: int
    fps: int
    sizes: tuple[Size, ...] = ()
    """One of these; empty: as the sides say."""
    width: int = 0
    height: int = 0
    """The side that was asked for, where only one was."""
    max_pixels: int = 0
    sound: bool = False
    """Whether there may be sound."""
    fewer: bool = False
    """Whether there may be fewer frames."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.frames / self.fps

    @property
    def bytes_max(self) -> int:
        """The largest file that this may come to."""
        pixels = max((w * h for w, h in self.sizes), default=self.max_pixels)
        return round(pixels * self.frames * BITS_A_PIXEL / 8) + BYTES_MORE

    @property
    def side_max(self) -> int:
        """The longest side that is worth decoding."""
        return max((max(size) for size in self.sizes), default=SIDE_LIMIT)


def order_of(spec: JobSpec, model: ModelSpec) -> FilmOrder:
    """The video that this order comes to, whatever image it has.

    Raises RequestRejected for an order that comes to none.
    """
    shots = [resolve(spec, model, job_id="any", image_size=size) for size in _SQUARE_ENOUGH]
    shot, is_open = shots[0], bool(spec.width) != bool(spec.height) and not model.sizes
    return FilmOrder(
        codec=spec.codec,
        frames=shot.frames,
        fps=shot.fps,
        sizes=() if is_open else tuple({(s.crop_width, s.crop_height): 0 for s in shots}),
        width=spec.width // 2 * 2 if is_open else 0,
        height=spec.height // 2 * 2 if is_open else 0,
        max_pixels=model.max_pixels,
        sound=shot.audio,
        fewer=model.name == "remote",
    )


def teaser_of(size: Size, frames: int, fps: int) -> FilmOrder:
    """The teaser of a video of this size and length."""
    width, rate = min(TEASER_WIDTH, size[0]), min(TEASER_FPS, fps)
    height = max(2, round(size[1] * width / size[0] / 2) * 2)
    count = 1 + (frames - 1) * rate // fps
    return FilmOrder("h264", count, rate, sizes=((width, height),))


def film_of(told: dict[str, Any]) -> Film:
    """What the probe told. Raises ResultRefused with its reason where it is a fault."""
    if fault := told.get("fault"):
        raise ResultRefused(str(fault)[:200])
    try:
        return Film.model_validate(told)
    except ValidationError as exc:
        raise ResultRefused("what is in it cannot be told") from exc


def differences(film: Film, order: FilmOrder, *, media_bytes: int) -> list[str]:
    """What of the film is not as ordered, each in words; `media_bytes` has the whole file."""
    return list(_differences(film, order, media_bytes))


def _differences(film: Film, order: FilmOrder, media_bytes: int) -> Iterator[str]:
    kinds = sorted(s.kind for s in film.streams)
    if kinds not in (["video"], ["audio", "video"]):
        yield f"it has the streams {', '.join(kinds)[:80] or 'none'} instead of one video"
        return
    picture = film.picture
    if picture.codec not in _NAMES[order.codec]:
        yield f"its codec is {picture.codec[:20]} instead of {order.codec}"
    if picture.pixels != "yuv420p":
        yield f"its pixels are {picture.pixels[:20]} instead of yuv420p"
    yield from _of_size((picture.width, picture.height), order)
    if film.changes_size:
        yield "its size changes on the way"
    if film.frames > order.frames:
        yield f"it has more than {order.frames} frames"
    elif film.frames < (1 if order.fewer else order.frames):
        yield f"it has {film.frames} frames instead of {order.frames}"
    if abs(picture.fps - order.fps) > 0.01 * order.fps:
        yield f"it has {picture.fps:.4g} frames per second instead of {order.fps}"
    least = (film.frames - SLACK_FRAMES) / order.fps
    most = (film.frames + SLACK_FRAMES) / order.fps + SLACK_SOUND
    if not least <= film.seconds <= most:
        yield f"it lasts {film.seconds:.2f} s instead of {order.seconds:.2f}"
    if film.has_sound and not order.sound:
        yield "it has sound, which was not ordered"
    if film.has_sound and any(s.kind == "audio" and s.codec != "aac" for s in film.streams):
        yield "its sound is not AAC"
    if not 0 <= media_bytes - film.media_bytes <= SPARE_MEDIA:
        yield f"{media_bytes - film.media_bytes:,} of its bytes are no frame and no sound"


def _of_size(size: Size, order: FilmOrder) -> Iterator[str]:
    said = f"it is {size[0]}x{size[1]}"
    if order.sizes:
        if size not in order.sizes:
            yield f"{said} instead of {' or '.join(f'{w}x{h}' for w, h in order.sizes)}"
        return
    if order.width not in (0, size[0]) or order.height not in (0, size[1]):
        yield f"{said} instead of {order.width or '…'}x{order.height or '…'}"
    elif size[0] % 2 or size[1] % 2 or size[0] * size[1] > order.max_pixels:
        yield f"{said}, which is no size of this model"
