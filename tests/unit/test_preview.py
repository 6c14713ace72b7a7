"""The preview keeps the port's promises: sub-pixel smooth, deterministic, any size, cancellable."""

from __future__ import annotations

import io
import itertools
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

from stillreel.errors import InferenceCancelled, InferenceFailed
from stillreel.job import JobSpec, Phase, Shot
from stillreel.models import shots
from stillreel.models.base import Generated
from stillreel.models.preview import PreviewBackend
from stillreel.models.registry import MODELS
from stillreel.scene import draw_scene
from stillreel.settings import InferenceSettings

SPEC = MODELS["preview"]
SIZE = (320, 180)


def _backend(seconds_per_step: float = 0.0) -> PreviewBackend:
    settings = InferenceSettings.model_validate({"preview_seconds_per_step": seconds_per_step})
    return PreviewBackend(SPEC, settings)


def _shot(
    size: tuple[int, int] = SIZE,
    frames: int = 61,
    prompt: str = "",
    seed: int = 1,
    camera: str = "",
) -> Shot:
    order = JobSpec(prompt=prompt or "a lake", seed=seed, camera=camera)
    shot = shots.resolve(order, SPEC, job_id="job_12345678", image_size=None)
    return shot.model_copy(update={"width": size[0], "height": size[1], "frames": frames})


def _generate(shot: Shot, image: Image.Image | None = None) -> Generated:
    return _backend().generate(shot, image, lambda *_: None)


def _frames(shot: Shot, image: Image.Image | None = None) -> np.ndarray:
    return np.concatenate(list(_backend().decode(shot, _generate(shot, image).arrays).chunks))


def _dot(at: tuple[float, float], size: tuple[int, int] = SIZE) -> Image.Image:
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1])[:, None] + 0.5
    light = 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 5.0**2))
    return Image.fromarray(light.astype(np.uint8)).convert("RGB")


def _centroids(frames: np.ndarray) -> np.ndarray:
    light = frames[..., 0].astype(float)
    x, y = np.arange(light.shape[2]) + 0.5, np.arange(light.shape[1]) + 0.5
    total = light.sum(axis=(1, 2))
    across, down = (light.sum(axis=1) * x).sum(axis=1), (light.sum(axis=2) * y).sum(axis=1)
    return np.stack([across, down], axis=1) / total[:, None]


@pytest.mark.parametrize(
    ("prompt", "axis", "sign"),
    [
        ("slow pan left", 0, 1), ("slow pan right", 0, -1), ("pan right", 0, -1),
        ("tilt up", 1, 1), ("tilt down", 1, -1),
    ],
)  # fmt: skip
def test_a_pan_moves_the_picture_by_parts_of_a_pixel(prompt: str, axis: int, sign: int) -> None:
    shot = _shot(prompt=prompt)
    places = _centroids(_frames(shot, _dot((160, 90))))
    path = _generate(shot).arrays["boxes"]
    exact = (np.array([160, 90]) - path[:, :2]) / (path[:, 2:] - path[:, :2]) * SIZE
    assert np.abs(places - exact).max() < 0.1
    steps = np.diff(places[:, axis]) * sign
    assert (steps[3:-3] > 0).all()
    travel = np.ptp(places[:, axis])
    assert np.abs(np.diff(steps)).max() < 6 * travel / shot.frames**2 + 0.1


def test_a_dolly_in_drives_what_is_beside_the_middle_outwards() -> None:
    places = _centroids(_frames(_shot(prompt="dolly in"), _dot((100, 60))))
    assert (np.diff(places[3:-3], axis=0) < 0).all()
    np.testing.assert_allclose(places[-1], (85, 52.5), atol=0.1)


@pytest.mark.parametrize("prompt", ["zoom in", "dolly out", "pan left", "tilt up", "slow zoom out"])
def test_no_two_frames_are_equal_while_the_camera_moves(prompt: str) -> None:
    frames = _frames(_shot(prompt=prompt), draw_scene(*SIZE))
    middle = frames[5:-5]
    assert all((a != b).any() for a, b in itertools.pairwise(middle))


def test_equal_shots_give_equal_latents_and_another_seed_another_video() -> None:
    image = draw_scene(*SIZE)
    first, again = (_generate(_shot(), image).arrays for _ in range(2))
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = _generate(_shot(seed=2), image).arrays
    assert not np.array_equal(first["boxes"], other["boxes"])


def test_a_prompt_alone_animates_a_scene_drawn_from_the_seed() -> None:
    arrays = _generate(_shot(seed=5)).arrays
    assert np.array_equal(arrays["image"], np.asarray(draw_scene(*SIZE, seed=5)))


def test_saved_latents_decode_to_the_same_bytes_as_the_first_ones() -> None:
    shot = _shot(frames=13)
    arrays = _generate(shot).arrays
    stored = load(save(arrays))
    assert {name: array.dtype for name, array in stored.items()} == {
        "image": np.uint8, "boxes": np.float64,
    }  # fmt: skip
    first = np.concatenate(list(_backend().decode(shot, arrays).chunks))
    second = np.concatenate(list(_backend().decode(shot, stored).chunks))
    assert first.tobytes() == second.tobytes()


def test_a_decode_states_its_facts_and_gives_chunks_of_eight_frames() -> None:
    shot = _shot(frames=19)
    decoded = _backend().decode(shot, _generate(shot).arrays)
    assert (decoded.width, decoded.height, decoded.frames) == (*SIZE, 19)
    assert (decoded.pixel_format, decoded.audio) == ("rgb24", None)
    chunks = list(decoded.chunks)
    assert [chunk.shape for chunk in chunks] == [(n, 180, 320, 3) for n in (8, 8, 3)]
    assert {chunk.dtype.name for chunk in chunks} == {"uint8"}


@pytest.mark.parametrize(
    ("size", "frames"), [((1, 1), 9), ((1, 77), 9), ((333, 1), 2), ((2, 2), 1), ((17, 31), 3)]
)
@pytest.mark.parametrize("prompt", ["zoom in", "fast pan left", "dolly out and tilt up"])
def test_any_size_and_any_length_work(size: tuple[int, int], frames: int, prompt: str) -> None:
    assert _frames(_shot(size, frames, prompt)).shape == (frames, size[1], size[0], 3)


def test_a_larger_image_of_the_same_shape_gives_the_same_view_sharper() -> None:
    shot = _shot(prompt="zoom in", frames=5)
    small, large = (draw_scene(320 * k, 180 * k, seed=1) for k in (1, 3))
    plain, sharp = (_frames(shot, image)[-1].astype(float) for image in (small, large))
    assert np.abs(plain - sharp).mean() < 4
    assert np.abs(np.diff(sharp, axis=1)).mean() > np.abs(np.diff(plain, axis=1)).mean()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_an_image_of_another_mode_is_taken(mode: str) -> None:
    image = Image.new(mode, SIZE)
    assert _generate(_shot(frames=2), image).arrays["image"].shape == (180, 320, 3)


def test_one_colour_stays_one_colour_to_the_last_pixel_of_each_border() -> None:
    frames = _frames(_shot(prompt="zoom out and pan left"), Image.new("RGB", SIZE, (9, 200, 90)))
    assert (frames == (9, 200, 90)).all()


def test_each_step_is_reported_once_and_waits_as_long_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    seen: list[tuple[Phase, int, int]] = []
    generated = _backend(0.25).generate(_shot(), None, lambda *step: seen.append(step))
    assert seen == [(Phase.DENOISE, step, 8) for step in range(1, 9)]
    assert waits == [0.25] * 8
    assert list(generated.seconds) == [Phase.DENOISE]


def test_more_steps_than_frames_are_all_taken() -> None:
    shot = _shot(frames=2).model_copy(update={"steps": 5})
    seen: list[int] = []
    arrays = _backend().generate(shot, None, lambda _, step, __: seen.append(step)).arrays
    assert seen == [1, 2, 3, 4, 5]
    assert arrays["boxes"].shape == (2, 4)


def test_a_cancelled_generation_stops_at_that_step_and_the_backend_stays_usable() -> None:
    backend, shot = _backend(), _shot(frames=9)
    seen: list[int] = []

    def cancel_at_three(_: Phase, step: int, __: int) -> None:
        seen.append(step)
        if step == 3:
            raise InferenceCancelled

    with pytest.raises(InferenceCancelled):
        backend.generate(shot, None, cancel_at_three)
    assert seen == [1, 2, 3]
    after = backend.generate(shot, None, lambda *_: None).arrays
    assert np.array_equal(after["boxes"], _generate(shot).arrays["boxes"])


@pytest.mark.parametrize(
    "arrays",
    [{}, {"boxes": np.zeros((61, 4))}, {"image": np.zeros((2, 2, 3), np.uint8)},
     {"image": np.zeros((2, 2, 3), np.uint8), "boxes": np.zeros((60, 4))}],
    ids=["none", "no-image", "no-boxes", "other-length"],
)  # fmt: skip
def test_latents_of_something_else_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(InferenceFailed, match="not of this preview"):
        _backend().decode(_shot(), arrays)


def test_the_whole_life_of_a_backend_leaves_a_readable_frame() -> None:
    backend, shot = _backend(), _shot(frames=2)
    backend.load()
    chunk = next(backend.decode(shot, backend.generate(shot, None, lambda *_: None).arrays).chunks)
    backend.close()
    file = io.BytesIO()
    Image.fromarray(chunk[0]).save(file, "PNG")
    assert Image.open(file).size == SIZE


def test_the_camera_of_an_order_goes_before_the_words_of_its_prompt() -> None:
    image = _dot((160, 90))
    pan = _frames(_shot(prompt="zoom in on the lake", camera="pan left", frames=25), image)
    assert (np.diff(_centroids(pan)[2:-2, 0]) > 0).all()  # what it leaves behind goes right
    assert np.array_equal(pan, _frames(_shot(prompt="pan left", frames=25), image))


def test_a_static_camera_shows_the_whole_image_in_each_frame() -> None:
    image = draw_scene(*SIZE)
    frames = _frames(_shot(camera="static", frames=9), image)
    assert (frames == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"camera": "slow orbit left"}, ["shows orbit left as pan left"]),
        ({"camera": "pan left"}, []),
        ({"negative_prompt": "ducks"}, ["no use for a negative prompt"]),
        ({"style_negative": "ducks"}, []),
    ],
    ids=["orbit", "pan", "negative", "style"],
)
def test_what_the_preview_cannot_do_is_said_of_what_the_caller_asked_for(
    change: dict[str, str], says: list[str]
) -> None:
    warnings = _generate(_shot(frames=2).model_copy(update=change)).warnings
    assert len(warnings) == len(says)
    assert all(words in warning for words, warning in zip(says, warnings, strict=True))
