"""The camera does what the words say, never leaves the image, and moves smoothly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.models.camera import (
    FLAT,
    MOVES,
    RATIOS,
    SWAY_BESIDE,
    Move,
    boxes,
    directs_camera,
    move_of,
    read_move,
)
from stillreel.models.motions import MOTIONS, Camera, read_camera

TIMES = np.linspace(0.0, 1.0, 121)
FREE = st.builds(
    Move,
    st.sampled_from([None, "zoom-in", "zoom-out", "dolly-in", "dolly-out"]),
    st.sampled_from([-1, 0, 1]),
    st.sampled_from([-1, 0, 1]),
    st.sampled_from(list(RATIOS.values())),
)
HELD = st.builds(replace, FREE, sway=st.sampled_from([0.0, SWAY_BESIDE, 1.0]))
SLOW, NORMAL, FAST = RATIOS["slow"], RATIOS[""], RATIOS["fast"]


@pytest.mark.parametrize(
    ("prompt", "move"),
    [
        ("Slow zoom in", Move("zoom-in", ratio=SLOW)),
        ("the camera zooms in slowly on the boat", Move("zoom-in", ratio=SLOW)),
        ("ZOOMING OUT, fast!", Move("zoom-out", ratio=FAST)),
        ("push in", Move("dolly-in")),
        ("a gentle push-in", Move("dolly-in", ratio=SLOW)),
        ("the camera is moving forward", Move("dolly-in")),
        ("dollies closer", Move("dolly-in")),
        ("dolly out", Move("dolly-out")),
        ("pull back from the lake", Move("dolly-out")),
        ("pan left", Move(pan=-1)),
        ("panning quickly to the right", Move(pan=1, ratio=FAST)),
        ("pan left to right", Move(pan=1)),
        ("pan from the right to the left", Move(pan=-1)),
        ("truck left", Move(pan=-1)),
        ("sliding rightwards", Move(pan=1)),
        ("tilt up", Move(tilt=-1)),
        ("crane down over the valley", Move(tilt=1)),
        ("pan from top to bottom", Move(tilt=1)),
        ("pan left and up", Move(pan=-1, tilt=-1)),
        ("zoom in and pan left", Move("zoom-in", pan=-1)),
        ("pull out, tilt down, truck right", Move("dolly-out", pan=1, tilt=1)),
        ("zoom in, then zoom out", Move("zoom-in")),
    ],
)
def test_the_words_of_a_prompt_choose_the_move(prompt: str, move: Move) -> None:
    assert {read_move(prompt, seed=seed) for seed in range(8)} == {move}


@pytest.mark.parametrize(
    "prompt",
    ["", "a panda in a forest", "the left bank, sunset", "birds fly away", "日本の湖 🌅", "zoom",
     "camera shows a very long and winding road going up"],
)  # fmt: skip
def test_without_such_words_each_seed_has_its_move(prompt: str) -> None:
    moves = [read_move(prompt, seed=seed) for seed in range(2 * len(MOVES))]
    assert moves == [*MOVES.values()] * 2


def test_speed_words_hold_for_the_seed_s_move_too() -> None:
    assert read_move("a slow river", seed=0).ratio == SLOW


@given(
    HELD, st.integers(1, 4096), st.integers(1, 4096),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
)  # fmt: skip
def test_boxes_lie_inside_the_image_and_have_its_shape(
    move: Move, width: int, height: int, times: list[float]
) -> None:
    left, top, right, bottom = boxes(move, np.array(times), width=width, height=height).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    np.testing.assert_allclose((right - left) * height, (bottom - top) * width)
    assert (right - left >= width / move.ratio * 0.999).all()


@given(FREE)
def test_every_move_starts_and_ends_gently_without_a_jerk(move: Move) -> None:
    speed = np.diff(boxes(move, TIMES, width=1280, height=720), axis=0)
    assert np.abs(speed[0]).max() < 0.2
    assert np.abs(speed[-1]).max() < 0.2
    assert np.abs(np.diff(speed, axis=0)).max() < 0.5
    assert np.abs(speed).max() < 7


@pytest.mark.parametrize(
    ("name", "edge", "sign"),
    [("pan-left", 0, -1), ("pan-right", 0, 1), ("tilt-up", 1, -1), ("tilt-down", 1, 1)],
)
def test_pans_and_tilts_cross_the_whole_image_at_one_magnification(
    name: str, edge: int, sign: int
) -> None:
    path = boxes(MOVES[name], TIMES, width=1000, height=500)
    assert (np.diff(path[:, edge]) * sign > 0).all()
    assert np.ptp(path[:, edge]) == pytest.approx((1000, 500)[edge] * 0.2)
    assert np.ptp(path[:, 2] - path[:, 0]) < 1e-9


@pytest.mark.parametrize(("name", "sign"), [("in", -1), ("out", 1)])
@pytest.mark.parametrize("kind", ["zoom", "dolly"])
def test_zooms_and_dollies_keep_the_centre_and_change_the_width(
    kind: str, name: str, sign: int
) -> None:
    left, _, right, _ = boxes(MOVES[f"{kind}-{name}"], TIMES, width=1000, height=500).T
    np.testing.assert_allclose(left + right, 1000)
    assert (np.diff(right - left) * sign > 0).all()
    assert sorted([right[0] - left[0], right[-1] - left[-1]]) == pytest.approx([800, 1000])


def test_a_zoom_grows_in_equal_ratios_and_a_dolly_covers_equal_ways() -> None:
    even = np.array([0.5 - np.sin(np.arcsin(1 - 2 * e) / 3) for e in np.linspace(0, 1, 9)])
    zoom = boxes(Move("zoom-in"), even, width=1000, height=500)
    dolly = boxes(Move("dolly-in"), even, width=1000, height=500)
    zoom_width, dolly_width = zoom[:, 2] - zoom[:, 0], dolly[:, 2] - dolly[:, 0]
    np.testing.assert_allclose(np.diff(np.log(zoom_width), 2), 0, atol=1e-9)
    np.testing.assert_allclose(np.diff(dolly_width, 2), 0, atol=1e-9)


@given(FREE)
def test_no_combination_of_moves_turns_round_on_its_way(move: Move) -> None:
    path = boxes(move, TIMES, width=1000, height=1000)
    for axis, way in ((0, move.pan), (1, move.tilt)):
        centre = path[:, axis] + path[:, axis + 2]
        assert (np.diff(centre) * (way or 1) >= -1e-9).all()


@pytest.mark.parametrize("name", MOTIONS)
def test_each_motion_of_the_vocabulary_is_a_move_over_a_flat_image(name: str) -> None:
    move = move_of(Camera((name,)))
    if name == "static":
        assert (boxes(move, TIMES, width=320, height=180) == (0, 0, 320, 180)).all()
    elif name == "handheld":
        assert move.sway == 1.0
    else:
        assert move == read_move(FLAT.get(name, name), seed=0)


@pytest.mark.parametrize(
    ("words", "move"),
    [
        ("slow dolly in", Move("dolly-in", ratio=SLOW)),
        ("fast pan left and tilt up", Move(pan=-1, tilt=-1, ratio=FAST)),
        ("zoom out, truck right", Move("zoom-out", pan=1)),
        ("orbit left and crane down", Move(pan=-1, tilt=1)),
        ("dolly in with handheld", Move("dolly-in", sway=SWAY_BESIDE)),
        ("handheld", Move(ratio=SLOW, sway=1.0)),
        ("static", Move(ratio=1.0)),
    ],
)
def test_the_camera_of_an_order_is_one_move(words: str, move: Move) -> None:
    assert move_of(read_camera(words)) == move


def test_a_camera_held_by_hand_sways_both_ways() -> None:
    steps = np.diff(boxes(move_of(read_camera("handheld")), TIMES, width=1000, height=500), axis=0)
    assert (steps[:, :2] > 0).any(axis=0).all()
    assert (steps[:, :2] < 0).any(axis=0).all()


@pytest.mark.parametrize("words", ["handheld", "fast pan left and handheld", "handheld, dolly in"])
def test_a_sway_has_no_jerk(words: str) -> None:
    path = boxes(move_of(read_camera(words)), TIMES, width=1000, height=500)
    assert np.abs(np.diff(path, 2, axis=0)).max() < 1.0  # of the 1000 pixels


@pytest.mark.parametrize(
    ("prompt", "directs"),
    [
        ("zoom in on the boat", True),
        ("the camera stays", True),
        ("a handheld shot", True),
        ("", False),
        ("a boat drifts left", False),
        ("a truck passes by", False),
    ],
)
def test_it_is_known_whether_a_prompt_speaks_of_the_camera(prompt: str, directs: bool) -> None:
    assert directs_camera(prompt) is directs
