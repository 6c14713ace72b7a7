"""Decoding is what the pipeline itself does, and in windows it keeps each frame in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillreel.models.ltx2_decode import as_made, frames_of, sound_of, window_of


@pytest.fixture(scope="module")
def vae(ltx_folder: Path) -> Any:
    return _vae(ltx_folder, "float32")


def _vae(folder: Path, dtype: str) -> Any:
    import torch
    from diffusers import AutoencoderKLLTX2Video

    return AutoencoderKLLTX2Video.from_pretrained(folder / "vae", dtype=getattr(torch, dtype))


def _latents(frames: int, seed: int = 0, height: int = 2, width: int = 2) -> Any:
    import torch

    noise = torch.Generator().manual_seed(seed)
    return torch.randn(1, 8, frames, height, width, generator=noise)


def _whole(vae: Any, latents: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        light = vae.decode(latents, None, return_dict=False)[0].float() / 2 + 0.5
    frames = (light.clamp(0, 1) * 255).round().to(torch.uint8)
    return frames[0].permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize("frames", [1, 2, 16, 17])
def test_up_to_one_window_the_frames_are_those_of_one_decode(vae: Any, frames: int) -> None:
    chunks = list(frames_of(vae, _latents(frames)))
    assert [len(chunk) for chunk in chunks[:-1]] == [8] * (len(chunks) - 1)
    assert np.concatenate(chunks).tobytes() == _whole(vae, _latents(frames)).tobytes()


@pytest.mark.parametrize("frames", [18, 30, 31, 44, 61])
def test_a_longer_video_has_every_frame_in_its_place(vae: Any, frames: int) -> None:
    found = np.concatenate(list(frames_of(vae, _latents(frames)))).astype(int)
    whole = _whole(vae, _latents(frames)).astype(int)
    assert found.shape == whole.shape == (8 * (frames - 1) + 1, 64, 64, 3)
    here = np.abs(found - whole).mean(axis=(1, 2, 3))
    moved = np.abs(found[1:] - whole[:-1]).mean(axis=(1, 2, 3))
    assert (here[1:] < moved).all()
    assert here.max() < moved.min()  # the ends of a window are guesses, and blended


@pytest.mark.parametrize(
    ("size", "window"), [((1920, 1088), 16), ((1088, 1920), 16), ((2560, 1472), 8), ((64, 64), 16)]
)
def test_a_window_of_large_frames_is_shorter(size: tuple[int, int], window: int) -> None:
    assert window_of(*size) == window


def test_large_frames_are_decoded_in_tiles(vae: Any) -> None:
    import torch

    latents = _latents(1, height=2, width=20)
    found = next(frames_of(vae, latents))
    with torch.no_grad():
        tiled = vae.tiled_decode(latents, None).sample[0, :, 0].permute(1, 2, 0)
    expected = ((tiled / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert found.shape == (1, 64, 640, 3)
    assert np.array_equal(found[0], expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_stored_latents_enter_the_decoder_as_in_the_pipeline_itself(
    ltx_folder: Path, dtype: str, kind: str
) -> None:
    """In float32 bit for bit; in bf16 but for rare last bits, where a plain cast moves many."""
    import torch
    from diffusers import LTX2ImageToVideoPipeline, LTX2Pipeline
    from PIL import Image

    classes = {"text": LTX2Pipeline, "image": LTX2ImageToVideoPipeline}
    pipe: Any = classes[kind].from_pretrained(ltx_folder, dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    entered: list[Any] = []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda _, values: entered.append(values[0]))

    def make(output_type: str) -> Any:
        image = {"image": Image.new("RGB", (64, 64), "teal")} if kind == "image" else {}
        return pipe(
            **image, prompt="a lake", height=64, width=64, num_frames=9, num_inference_steps=2,
            stg_scale=0, audio_stg_scale=0, spatio_temporal_guidance_blocks=None,
            generator=torch.Generator("cpu").manual_seed(1), output_type=output_type,
            return_dict=False,
        )  # fmt: skip

    make("np")
    hook.remove()
    stored = make("latent")[0].float().numpy()
    ours = as_made(pipe.vae, torch.from_numpy(stored))
    naive = torch.from_numpy(stored).to(pipe.vae.dtype)
    moved, badly_moved = ((way != entered[0]).float().mean() for way in (ours, naive))
    if dtype == "float32":
        assert moved == 0
    else:
        assert moved < 0.002
        assert badly_moved > 0.1


@pytest.mark.parametrize(("seconds", "samples"), [(17 / 24, 17000), (0.5, 12000)])
def test_the_sound_is_as_long_as_the_picture(
    ltx_folder: Path, seconds: float, samples: int
) -> None:
    import torch
    from diffusers import AutoencoderKLLTX2Audio
    from diffusers.pipelines.ltx2 import LTX2Vocoder

    audio_vae: Any = AutoencoderKLLTX2Audio.from_pretrained(ltx_folder / "audio_vae")
    vocoder: Any = LTX2Vocoder.from_pretrained(ltx_folder / "vocoder")
    noise = torch.randn(1, 2, 18, 2, generator=torch.Generator().manual_seed(0))
    sound, rate = sound_of(audio_vae, vocoder, noise, seconds)
    with torch.no_grad():
        wave = vocoder(audio_vae.decode(noise, return_dict=False)[0])[0].clamp(-1, 1).numpy().T
    assert (sound.shape, sound.dtype, rate) == ((samples, 2), np.float32, 24000)
    kept = min(samples, len(wave))
    assert np.array_equal(sound[:kept], wave[:kept])
    assert not sound[kept:].any()
