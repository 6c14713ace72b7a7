"""A landscape that the project draws itself: the image for those who bring none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
Random = np.random.Generator

SHORE = 0.70
"""Where land ends and the lake begins, as a part of the height."""
RIDGES = 5


@dataclass(frozen=True)
class Palette:
    """The light of one hour; colours are red, green, blue of 0-255."""

    zenith: Colour
    sky: Colour
    horizon: Colour
    sun: Colour
    far: Colour
    near: Colour
    stars: int


SUNSET = Palette(
    zenith=(38, 38, 92), sky=(196, 96, 124), horizon=(255, 190, 128), sun=(255, 238, 200),
    far=(168, 108, 136), near=(24, 18, 40), stars=160,
)  # fmt: skip
MORNING = Palette(
    zenith=(58, 112, 178), sky=(140, 188, 220), horizon=(252, 226, 190), sun=(255, 250, 226),
    far=(126, 158, 188), near=(16, 40, 52), stars=0,
)  # fmt: skip
MOONLIGHT = Palette(
    zenith=(10, 16, 44), sky=(38, 62, 110), horizon=(140, 150, 178), sun=(246, 242, 224),
    far=(66, 86, 128), near=(8, 12, 26), stars=220,
)  # fmt: skip
PALETTES = (SUNSET, MORNING, MOONLIGHT)
"""The seed chooses, in this order."""


def draw_scene(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """A lake below mountains in the light of sunset, morning or moon: RGB, equal for equal seeds.

    The shapes depend on the seed and the aspect ratio alone, so each size shows the same place.
    """
    random = np.random.default_rng(seed)
    palette = PALETTES[seed % len(PALETTES)]
    x = (np.arange(width, dtype=np.float32) + 0.5) / height
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    sun = float(random.uniform(0.3, 0.7)) * width / height, float(random.uniform(0.3, 0.36))
    land_rows = max(1, round(SHORE * height))

    land = _sky(x, y[:land_rows], palette, sun, random)
    for index in range(RIDGES):
        _add_ridge(land, x, y[:land_rows], palette, sun[0], index / (RIDGES - 1), random)
    _add_pines(land, x, y[:land_rows], palette, random)
    picture = np.concatenate([land, _lake(land, x, y[land_rows:], palette, sun[0])])
    picture += random.random((height, width, 1), dtype=np.float32) * 2 - 1  # hides bands
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _sky(
    x: np.ndarray, y: np.ndarray, palette: Palette, sun: tuple[float, float], random: Random
) -> np.ndarray:
    stops = np.array([palette.zenith, palette.sky, palette.horizon], dtype=np.float32)
    column = np.stack([np.interp(y[:, 0] / SHORE, (0, 0.55, 1), stop) for stop in stops.T], axis=1)
    sky = np.repeat(column[:, None].astype(np.float32), len(x), axis=1)
    _add_stars(sky, palette, random)
    distance = np.hypot(x - sun[0], y - sun[1])
    glow = 0.5 * np.exp(distance * -4.5) + 0.35 * np.exp(-((distance / 0.09) ** 2))
    disc = np.clip((0.042 - distance) * len(y) / SHORE + 0.5, 0, 1)
    return _mix(sky, palette.sun, np.maximum(glow, disc))


def _add_stars(sky: np.ndarray, palette: Palette, random: Random) -> None:
    down, right, light = random.uniform(size=(3, 220))
    rows, columns = (down**1.6 * 0.7 * sky.shape[0]).astype(int), (right * sky.shape[1]).astype(int)
    light = palette.stars * light**3 * (1 - down)
    sky[rows, columns] += light[:, None].astype(np.float32)


def _add_ridge(
    land: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    palette: Palette,
    sun: float,
    nearness: float,
    random: Random,
) -> None:
    """Mountains at `nearness` 0 (far, high, hazy) to 1 (near, low, dark), onto the land."""
    line = _crags(x, 1.5 + 1.8 * nearness, random)
    top = SHORE - 0.03 + 0.02 * nearness - (0.40 - 0.33 * nearness) * line**1.3
    first = max(0, int(top.min() * len(y) / SHORE) - 1)
    depth = y[first:] - top
    haze = np.clip(depth / (0.34 - 0.2 * nearness), 0, 1) ** 1.5 * (0.7 - 0.5 * nearness)
    light = _slopes(x, depth, top, sun) * (1 - nearness) * 30
    colour = _mix(np.array(palette.far), palette.near, nearness**0.8)
    slope = _mix(colour + light[..., None], palette.horizon, haze)
    cover = np.clip(depth * len(y) / SHORE + 0.5, 0, 1)
    land[first:] = _mix(land[first:], slope, cover)


def _crags(x: np.ndarray, frequency: float, random: Random) -> np.ndarray:
    """A jagged line between 0 and 1 over x."""
    line = np.zeros_like(x)
    for octave in range(8):
        heights = random.uniform(size=512)
        place = x * frequency * 2**octave % 511
        line += np.interp(place, np.arange(512), heights).astype(np.float32) * 0.5 ** (octave + 1)
    return line


def _slopes(x: np.ndarray, depth: np.ndarray, top: np.ndarray, sun: float) -> np.ndarray:
    """Light on the faces of a ridge: 1 towards the sun, -1 away, fading down the slope."""
    if len(x) < 2:
        return np.zeros_like(depth)
    side = np.tanh((x - sun) * 6)
    facing = np.tanh(np.gradient(top, x) * -1.5) * side
    columns = np.arange(len(x)) + (0.5 * side * depth / (x[1] - x[0])).astype(np.int32)
    return facing[np.clip(columns, 0, len(x) - 1)] * np.exp(np.clip(depth, 0, None) * -8)


def _add_pines(
    land: np.ndarray, x: np.ndarray, y: np.ndarray, palette: Palette, random: Random
) -> None:
    """Dark trees along the shore, denser towards the sides."""
    places = random.beta(0.45, 0.45, size=70) * x[-1]
    heights = random.uniform(0.025, 0.085, size=70) * (0.4 + 1.2 * np.abs(places / x[-1] - 0.5))
    line = np.zeros_like(x)
    for place, height in zip(places, heights, strict=True):
        tier = np.abs(x - place) / (0.2 * height) * 6
        rise = 1 - (np.floor(tier) + (tier % 1) ** 0.35) / 6
        np.maximum(line, (rise * height).astype(np.float32), out=line)
    cover = np.clip((y - (SHORE - 0.004 - line)) * len(y) / SHORE + 0.5, 0, 1)
    first = int((SHORE - 0.13) / SHORE * len(y))
    land[first:] = _mix(land[first:], np.array(palette.near) * 0.55, cover[first:])


def _lake(
    land: np.ndarray, x: np.ndarray, y: np.ndarray, palette: Palette, sun: float
) -> np.ndarray:
    """Still water that mirrors the land, darker towards the viewer, with a path of light."""
    rows, columns = land.shape[:2]
    below = y - SHORE
    near = np.clip(below / (1 - SHORE), 0, 1)
    phase = 130 * np.log1p(near * 6)
    wave = np.sin(phase + np.sin(x * 9 + phase * 0.3) * 1.3 + np.sin(x * 31 - phase * 0.2) * 0.7)
    swell = wave * (0.2 + near) * rows
    mirrored = rows - 1 - (below / SHORE * rows * 1.25 + swell * 0.006).astype(np.int32)
    aside = np.arange(columns) + (swell * 0.004).astype(np.int32)
    mirror = land[np.clip(mirrored, 0, rows - 1), np.clip(aside, 0, columns - 1)]
    water = _mix(mirror * np.float32(0.88), palette.near, 0.1 + 0.42 * near)
    path = np.exp(-(((x - sun) / (0.03 + 0.10 * near)) ** 2))
    return _mix(water, palette.sun, np.clip(wave * 1.5 - 0.6, 0, 1) * path * 0.55)


def _mix(first: np.ndarray, second: Colour | np.ndarray, part: np.ndarray | float) -> np.ndarray:
    """`first` with `part` (0 to 1, one number per pixel) of it replaced by `second`."""
    weight = np.asarray(part, dtype=np.float32)[..., None]
    return first + (np.asarray(second, dtype=np.float32) - first) * weight
