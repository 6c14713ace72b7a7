"""Videos of two and three segments on tiny networks, whose native limit is made small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillreel.errors import InferenceCancelled, InferenceFailed
from stillreel.inference.latents import read_arrays, read_facts, write_latents
from stillreel.job import Phase, Shot
from stillreel.models.base import Generated
from stillreel.models.ltx2 import Ltx2Backend
from stillreel.models.ltx2_decode import last_frames
from stillreel.models.ltx2_segments import OVERLAP
from stillreel.settings import InferenceSettings
from tests.models.test_ltx2 import SPEC, Step, counted, equal, frames_of, image_of, quiet, shot_of

TWO, THREE = 33, 41
"""Frames of which 25 are made in one piece."""


@pytest.fixture(scope="module")
def backend(ltx_folder: Path) -> Ltx2Backend:
    settings = InferenceSettings.model_validate({"model_path": str(ltx_folder)})
    backend = Ltx2Backend(replace(SPEC, native_seconds=1.0), settings)
    backend.load()
    return backend


def long(frames: int = TWO, **update: Any) -> Shot:
    return shot_of(frames=frames, **update)


@pytest.fixture(scope="module")
def from_image(backend: Ltx2Backend) -> Generated:
    return backend.generate(long(), image_of(), quiet)


def test_up_to_the_limit_a_video_is_made_in_one_piece(backend: Ltx2Backend) -> None:
    made = backend.generate(long(25), None, quiet)
    assert made.arrays.keys() == {"video", "audio"}
    assert made.warnings == ()


@pytest.mark.parametrize(("frames", "count"), [(TWO, 2), (THREE, 3)])
def test_a_longer_one_has_every_frame_and_all_of_its_sound(
    backend: Ltx2Backend, frames: int, count: int
) -> None:
    shot = long(frames)
    made = backend.generate(shot, None, quiet)
    assert len(made.arrays) == 2 * count
    assert made.arrays[f"video_{count}"].shape == (1, 8, 4, 2, 4)
    assert len(made.warnings) == count - 1
    assert "From second 0.3 on, the video continues the last 17 frames" in made.warnings[0]
    decoded = backend.decode(shot, made.arrays)
    found = frames_of(decoded)
    assert (decoded.frames, found.shape) == (frames, (frames, 64, 128, 3))
    assert decoded.audio is not None
    assert decoded.audio.shape == (round(frames / 24 * 24000), 2)


def test_a_segment_begins_with_the_last_frames_of_the_one_before(
    backend: Ltx2Backend, from_image: Generated
) -> None:
    """What it is held to is what these frames, decoded and encoded again, are."""
    import torch

    networks = backend._networks
    assert networks
    vae = networks.small("vae")
    opening = last_frames(vae, torch.from_numpy(from_image.arrays["video"]), OVERLAP)
    assert opening.shape == (17, 64, 128, 3)
    pixels = torch.from_numpy(opening).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        held = vae.encode(pixels).latent_dist.mode().numpy()
    np.testing.assert_allclose(from_image.arrays["video_2"][:, :, :3], held, atol=1e-3)


def test_each_segment_takes_all_steps_with_one_forward_each(backend: Ltx2Backend) -> None:
    seen: list[Step] = []
    with counted(backend) as calls:
        backend.generate(long(), image_of(), lambda *step: seen.append(step))
    sizes = [(call.given["num_frames"], call.given["height"]) for call in calls]
    assert sizes == ([(4, 1)] * 8 + [(4, 2)] * 3) * 2
    assert {len(call.video) for call in calls} == {1}
    assert seen[2:] == [(Phase.DENOISE, step, 22) for step in range(23)]


def test_the_same_seed_gives_the_same_segments_and_no_two_of_them_are_alike(
    backend: Ltx2Backend, from_image: Generated
) -> None:
    again = backend.generate(long(), image_of(), quiet).arrays
    assert equal(again, from_image.arrays)
    assert not np.array_equal(again["video"][:, :, 3:], again["video_2"][:, :, 3:])
    assert not np.array_equal(again["audio"], again["audio_2"])


def test_a_cancel_in_the_second_segment_stops_there_and_leaves_all_usable(
    backend: Ltx2Backend, from_image: Generated
) -> None:
    seen: list[int] = []

    def cancel(phase: Phase, step: int, _: int) -> None:
        if phase is Phase.DENOISE:
            seen.append(step)
            if step == 14:
                raise InferenceCancelled

    with counted(backend) as calls, pytest.raises(InferenceCancelled):
        backend.generate(long(), image_of(), cancel)
    assert seen == list(range(15))
    assert len(calls) == 14
    assert equal(backend.generate(long(), image_of(), quiet).arrays, from_image.arrays)


def test_stored_segments_decode_to_the_same_bytes_whatever_the_limit_is_then(
    ltx_folder: Path, backend: Ltx2Backend, from_image: Generated, tmp_path: Path
) -> None:
    path = tmp_path / "latents.safetensors"
    write_latents(path, long(), from_image)
    shot, arrays = read_facts(path).shot, read_arrays(path)
    other = Ltx2Backend(SPEC, backend._settings)
    other.load()
    here, there = backend.decode(long(), from_image.arrays), other.decode(shot, arrays)
    assert frames_of(here).tobytes() == frames_of(there).tobytes()
    assert here.audio is not None
    assert there.audio is not None
    assert here.audio.tobytes() == there.audio.tobytes()


@pytest.mark.parametrize("lost", ["video_2", "audio", "audio_2"])
def test_latents_that_lack_a_part_are_refused(
    backend: Ltx2Backend, from_image: Generated, lost: str
) -> None:
    rest = {name: array for name, array in from_image.arrays.items() if name != lost}
    with pytest.raises(InferenceFailed, match="not of this LTX-2 video"):
        backend.decode(long(), rest)
