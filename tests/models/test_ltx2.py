"""The real LTX-2 pipelines on tiny networks: both stages, both inputs, sound, cancel, decode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillreel.errors import InferenceCancelled, InferenceFailed, ModelUnavailable, RequestRejected
from stillreel.inference.latents import write_latents
from stillreel.job import Phase, Shot
from stillreel.models.base import Decoded, Generated, LatentArrays
from stillreel.models.ltx2 import Ltx2Backend
from stillreel.models.ltx2_weights import LORA
from stillreel.models.registry import MODELS
from stillreel.scene import draw_scene
from stillreel.settings import InferenceSettings

SPEC = MODELS["ltx-2"]
SIZE, FRAMES = (128, 64), 17
Step = tuple[Phase, int, int]


def backend_of(folder: Path) -> Ltx2Backend:
    backend = Ltx2Backend(SPEC, InferenceSettings.model_validate({"model_path": str(folder)}))
    backend.load()
    return backend


def shot_of(preset: str = "standard", **update: Any) -> Shot:
    values = {
        "model": "ltx-2", "model_version": SPEC.version, "preset": preset, "prompt": "a quiet lake",
        "negative_prompt": "", "width": SIZE[0], "height": SIZE[1], "crop_width": SIZE[0],
        "crop_height": SIZE[1], "fps": 24, "frames": FRAMES, "steps": SPEC.presets[preset].steps,
        "seed": 7, "audio": True,
    }  # fmt: skip
    return Shot.model_validate({**values, **update})


def image_of(size: tuple[int, int] = SIZE) -> Image.Image:
    return draw_scene(*size, seed=3)


def frames_of(decoded: Decoded) -> np.ndarray:
    return np.concatenate(list(decoded.chunks))


def quiet(*_: object) -> None: ...


def equal(first: LatentArrays, second: LatentArrays) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(array, second[name]) for name, array in first.items()
    )


@dataclass
class Forward:
    """One call of the transformer."""

    given: dict[str, Any]
    video: Any
    """What it made: (batch, tokens, channels)."""


@contextmanager
def counted(backend: Ltx2Backend, lora: Any = "merged") -> Iterator[list[Forward]]:
    """Every forward of the transformer."""
    networks = backend._networks
    assert networks
    networks.use("cpu")
    forwards: list[Forward] = []
    hook = networks.core(lora).transformer.register_forward_hook(
        lambda _, __, given, made: forwards.append(Forward(given, made[0])), with_kwargs=True
    )
    yield forwards
    hook.remove()


@pytest.fixture(scope="module")
def backend(ltx_folder: Path) -> Ltx2Backend:
    return backend_of(ltx_folder)


@pytest.fixture(scope="module")
def from_image(backend: Ltx2Backend) -> Generated:
    return backend.generate(shot_of(), image_of(), quiet)


@pytest.fixture(scope="module")
def from_text(backend: Ltx2Backend) -> Generated:
    return backend.generate(shot_of(), None, quiet)


@pytest.mark.parametrize("kind", ["from_image", "from_text"])
def test_a_video_has_the_frames_the_size_and_the_sound_of_its_shot(
    backend: Ltx2Backend, kind: str, request: pytest.FixtureRequest
) -> None:
    generated: Generated = request.getfixturevalue(kind)
    assert {name: array.shape for name, array in generated.arrays.items()} == {
        "video": (1, 8, 3, 2, 4), "audio": (1, 2, 18, 2),
    }  # fmt: skip
    assert all(
        array.dtype == np.float32 and array.flags.c_contiguous
        for array in generated.arrays.values()
    )
    assert (generated.dtype, generated.plan, generated.warnings) == ("float32", "cpu", ())
    assert set(generated.seconds) == {Phase.TEXT, Phase.LOAD, Phase.DENOISE}
    decoded = backend.decode(shot_of(), generated.arrays)
    assert (decoded.width, decoded.height, decoded.frames) == (*SIZE, FRAMES)
    chunks = list(decoded.chunks)
    assert [chunk.shape for chunk in chunks] == [(n, 64, 128, 3) for n in (8, 8, 1)]
    assert {chunk.dtype.name for chunk in chunks} == {"uint8"}
    assert decoded.audio is not None
    assert decoded.audio.dtype == np.float32
    assert (decoded.audio.shape, decoded.sample_rate) == ((17000, 2), 24000)
    assert np.abs(decoded.audio[:16000]).max() > 0
    assert not decoded.audio[16560:].any()  # the model's own sound is this long
    assert np.ptp(np.concatenate(chunks)) > 20


def test_a_silent_shot_has_no_sound(backend: Ltx2Backend, from_text: Generated) -> None:
    decoded = backend.decode(shot_of(audio=False), from_text.arrays)
    assert (decoded.audio, decoded.sample_rate) == (None, 0)


def test_equal_shots_give_equal_latents_and_seed_image_and_prompt_change_them(
    backend: Ltx2Backend, from_image: Generated, from_text: Generated
) -> None:
    def again(image: Image.Image | None, **update: Any) -> LatentArrays:
        return backend.generate(shot_of(**update), image, quiet).arrays

    assert equal(again(image_of()), from_image.arrays)
    assert equal(again(None), from_text.arrays)
    assert not equal(from_image.arrays, from_text.arrays)
    assert not equal(again(None, seed=8), from_text.arrays)
    assert not equal(again(None, prompt="a storm"), from_text.arrays)


def test_the_default_takes_one_forward_a_step_at_the_exact_noise_levels(
    backend: Ltx2Backend,
) -> None:
    with counted(backend) as calls:
        backend.generate(shot_of(), None, quiet)
    given = [call.given for call in calls]
    sigmas = [round(float(values["sigma"].flatten()[0]) / 1000, 6) for values in given]
    first = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]
    assert sigmas == [*first, 0.909375, 0.725, 0.421875]
    sizes = [(values["height"], values["width"]) for values in given]
    assert sizes == [(1, 2)] * 8 + [(2, 4)] * 3
    assert {len(values["hidden_states"]) for values in given} == {1}


def test_steps_are_counted_over_both_stages_after_the_text(backend: Ltx2Backend) -> None:
    seen: list[Step] = []
    backend.generate(shot_of(), image_of(), lambda *step: seen.append(step))
    steps = [(Phase.DENOISE, step, 11) for step in range(12)]
    assert seen == [(Phase.TEXT, 0, 1), (Phase.TEXT, 1, 1), *steps]


@pytest.mark.parametrize("stop", [3, 9])
def test_a_cancelled_generation_stops_at_that_step_and_the_backend_stays_usable(
    backend: Ltx2Backend, from_image: Generated, stop: int
) -> None:
    seen: list[int] = []

    def cancel(phase: Phase, step: int, _: int) -> None:
        if phase is Phase.DENOISE:
            seen.append(step)
            if step == stop:
                raise InferenceCancelled

    with counted(backend) as calls, pytest.raises(InferenceCancelled):
        backend.generate(shot_of(), image_of(), cancel)
    assert seen == list(range(stop + 1))
    assert len(calls) == stop
    assert equal(backend.generate(shot_of(), image_of(), quiet).arrays, from_image.arrays)


def test_the_second_stage_begins_with_the_image_at_its_full_size(backend: Ltx2Backend) -> None:
    """The first latent frame is held, so it ends as what the image itself is encoded to."""
    import torch

    from stillreel.models.ltx2_denoise import _compressed

    arrays = backend.generate(shot_of(), image_of(), quiet).arrays
    networks = backend._networks
    assert networks
    pixels = torch.from_numpy(np.array(_compressed(image_of()))).permute(2, 0, 1)[None, :, None]
    with torch.no_grad():
        still = networks.small("vae").encode(pixels / 127.5 - 1).latent_dist.mode().numpy()
    np.testing.assert_allclose(arrays["video"][:, :, :1], still, atol=1e-4)


def test_a_prompt_is_encoded_once_and_then_needs_no_text_encoder(
    ltx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / "home"))
    first = backend_of(ltx_folder).generate(shot_of(), None, quiet)
    copy = tmp_path / ltx_folder.name
    shutil.copytree(ltx_folder, copy)
    (copy / "text_encoder" / "model.safetensors").unlink()
    second = backend_of(copy)
    assert equal(second.generate(shot_of(), None, quiet).arrays, first.arrays)
    with pytest.raises(ModelUnavailable, match="not whole"):
        second.generate(shot_of(prompt="another"), None, quiet)


def test_both_stages_are_those_of_the_pipelines_called_by_hand(
    ltx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As diffusers documents it: the prompt with its padding, the LoRA beside the weights."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline
    from diffusers.pipelines.ltx2 import LTX2LatentUpsamplePipeline, LTX2LatentUpsamplerModel
    from diffusers.pipelines.ltx2.utils import (
        DISTILLED_SIGMA_VALUES,
        STAGE_2_DISTILLED_SIGMA_VALUES,
    )

    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path))
    pipe: Any = LTX2Pipeline.from_pretrained(ltx_folder)
    pipe.load_lora_weights(str(ltx_folder), weight_name=LORA)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipe.scheduler.config, use_dynamic_shifting=False, shift_terminal=None
    )
    pipe.set_progress_bar_config(disable=True)
    upsampler: Any = LTX2LatentUpsamplerModel.from_pretrained(ltx_folder / "latent_upsampler")
    common: dict[str, Any] = {
        "prompt": "a quiet lake", "num_frames": FRAMES, "frame_rate": 24.0, "guidance_scale": 1.0,
        "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0,
        "audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
        "audio_guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None,
        "generator": torch.Generator("cpu").manual_seed(7), "output_type": "latent",
        "return_dict": False,
    }  # fmt: skip
    half, sound = pipe(height=32, width=64, sigmas=DISTILLED_SIGMA_VALUES, **common)
    large = LTX2LatentUpsamplePipeline(vae=pipe.vae, latent_upsampler=upsampler)(
        latents=half, latents_normalized=False, output_type="latent", return_dict=False
    )[0]
    video, audio = pipe(
        height=64, width=128, sigmas=STAGE_2_DISTILLED_SIGMA_VALUES, noise_scale=0.909375,
        latents=large, audio_latents=sound, **common,
    )  # fmt: skip
    ours = backend_of(ltx_folder).generate(shot_of(), None, quiet).arrays
    np.testing.assert_allclose(ours["video"], video.numpy(), atol=1e-3)
    np.testing.assert_allclose(ours["audio"], audio.numpy(), atol=1e-3)


def test_latents_decode_in_a_new_process_to_the_same_bytes(
    ltx_folder: Path, backend: Ltx2Backend, from_image: Generated, tmp_path: Path
) -> None:
    shot = shot_of()
    here = backend.decode(shot, from_image.arrays)
    path = tmp_path / "latents.safetensors"
    write_latents(path, shot, from_image)
    code = (
        "import sys, numpy as np, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from stillreel.inference.latents import read_arrays, read_facts\n"
        "from stillreel.models.ltx2 import Ltx2Backend\n"
        "from stillreel.models.registry import MODELS\n"
        "from stillreel.settings import InferenceSettings\n"
        "backend = Ltx2Backend(MODELS['ltx-2'], InferenceSettings())\n"
        "backend.load()\n"
        "path = Path(sys.argv[1])\n"
        "decoded = backend.decode(read_facts(path)[0], read_arrays(path))\n"
        "frames = np.concatenate(list(decoded.chunks))\n"
        "np.savez(sys.argv[2], frames=frames, audio=decoded.audio)\n"
    )
    environment = {**os.environ, "MODEL_PATH": str(ltx_folder)}
    subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "there.npz")],
        check=True, env=environment, timeout=120,
    )  # fmt: skip
    there = np.load(tmp_path / "there.npz")
    assert here.audio is not None
    assert there["frames"].tobytes() == frames_of(here).tobytes()
    assert there["audio"].tobytes() == here.audio.tobytes()


@pytest.mark.parametrize(
    "change", [{"frames": 25}, {"width": 64}, {"height": 128}], ids=["frames", "width", "height"]
)
def test_latents_of_another_shot_are_refused(
    backend: Ltx2Backend, from_text: Generated, change: dict[str, int]
) -> None:
    with pytest.raises(InferenceFailed, match="not of this LTX-2 video"):
        backend.decode(shot_of(**change), from_text.arrays)
    with pytest.raises(InferenceFailed, match="not of this LTX-2 video"):
        backend.decode(shot_of(), {})


@pytest.mark.parametrize(
    "change", [{"frames": 18}, {"width": 96}, {"height": 72}], ids=["frames", "width", "height"]
)
def test_numbers_that_the_pipeline_would_round_are_refused(
    backend: Ltx2Backend, change: dict[str, int]
) -> None:
    with pytest.raises(RequestRejected):
        backend.generate(shot_of(**change), None, quiet)


def test_a_negative_prompt_that_nothing_reads_is_a_warning(
    backend: Ltx2Backend, from_text: Generated
) -> None:
    generated = backend.generate(shot_of(negative_prompt="blur"), None, quiet)
    assert "negative prompt" in generated.warnings[0]
    assert equal(generated.arrays, from_text.arrays)


def _without_lora(folder: Path) -> str:
    (folder / LORA).unlink()
    return LORA


def _without_upsampler(folder: Path) -> str:
    shutil.rmtree(folder / "latent_upsampler")
    return "latent_upsampler/"


def _of_the_old_family(folder: Path) -> str:
    index = folder / "model_index.json"
    found = json.loads(index.read_text())
    index.write_text(json.dumps({**found, "_class_name": "LTXImageToVideoPipeline"}))
    return "LTXImageToVideoPipeline"


@pytest.mark.parametrize("spoil", [_without_lora, _without_upsampler, _of_the_old_family])
def test_a_folder_that_is_not_all_of_ltx_2_is_refused_at_load(
    ltx_folder: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    copy = tmp_path / "LTX-2"
    shutil.copytree(ltx_folder, copy)
    missing = spoil(copy)
    with pytest.raises(ModelUnavailable, match=missing):
        backend_of(copy)


@pytest.mark.parametrize("package", ["peft", "av", "accelerate", "diffusers"])
def test_a_missing_package_is_named_at_load(
    ltx_folder: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelUnavailable, match=f"'{package}'"):
        backend_of(ltx_folder)


def test_the_newer_layout_sounds_at_its_own_rate(tmp_path: Path) -> None:
    """The same classes serve 2.3: the rate is read, never assumed."""
    from stillreel.models import tiny_ltx2

    backend = backend_of(tiny_ltx2.build(tmp_path / "LTX-2.3", layout="2.3"))
    generated = backend.generate(shot_of(), image_of(), quiet)
    decoded = backend.decode(shot_of(), generated.arrays)
    assert decoded.audio is not None
    assert (decoded.audio.shape, decoded.sample_rate) == ((34000, 2), 48000)


def test_the_whole_life_of_a_backend_ends_with_nothing_held(ltx_folder: Path) -> None:
    backend = backend_of(ltx_folder)
    backend.close()
    with pytest.raises(InferenceFailed, match="before it was loaded"):
        backend.generate(shot_of(), None, quiet)
