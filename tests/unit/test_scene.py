"""The drawn scene has any size, depends on its seed alone, and shows something."""

from __future__ import annotations

import numpy as np
import pytest

from stillreel.scene import PALETTES, draw_scene


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 50), (50, 1), (2, 3), (641, 353), (90, 160), (1280, 720)]
)
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    scene = draw_scene(*size)
    assert scene.size == size
    assert scene.mode == "RGB"


def test_equal_seeds_draw_equal_scenes_and_others_others() -> None:
    scenes = [draw_scene(160, 90, seed=seed).tobytes() for seed in range(8)]
    assert scenes == [draw_scene(160, 90, seed=seed).tobytes() for seed in range(8)]
    assert len(set(scenes)) == 8


def test_the_largest_seed_works() -> None:
    assert draw_scene(16, 9, seed=2**32 - 1).size == (16, 9)


def test_each_size_shows_the_same_place() -> None:
    small = np.asarray(draw_scene(320, 180, seed=3), dtype=float)
    large = np.asarray(draw_scene(960, 540, seed=3).reduce(3), dtype=float)
    assert np.abs(small - large).mean() < 3


@pytest.mark.parametrize("seed", range(len(PALETTES)))
def test_a_scene_has_a_light_sky_a_dark_shore_and_a_lake_that_mirrors(seed: int) -> None:
    pixels = np.asarray(draw_scene(320, 180, seed=seed), dtype=float)
    assert pixels.max() > 225
    assert pixels[120:126].mean() < pixels[:120].mean() / 2
    mirrored = pixels[127:170].mean(axis=2)
    above = pixels[125:71:-1].mean(axis=2)[: len(mirrored)]
    assert np.corrcoef(mirrored.mean(axis=1), above.mean(axis=1))[0, 1] > 0.5
