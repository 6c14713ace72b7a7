"""LTX-2.3 and 2.5 run on the code of 2.0; what differs is in their entries, and told apart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillreel.errors import ModelUnavailable
from stillreel.job import ModelName
from stillreel.models import tiny_ltx2
from stillreel.models.base import Generated
from stillreel.models.ltx2 import Ltx2Backend
from stillreel.models.ltx2_layouts import LAYOUTS
from stillreel.models.ltx2_stages import STAGES
from stillreel.models.registry import MODELS
from stillreel.models.weights import find_weights, has_weights
from stillreel.settings import InferenceSettings
from tests.models.test_ltx2 import Forward, counted, equal, frames_of, image_of, quiet, shot_of

NEWER: tuple[ModelName, ...] = ("ltx-2.3", "ltx-2.5")
EACH = pytest.mark.parametrize("model", NEWER)


@pytest.fixture(scope="module")
def weights(ltx25_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for MODEL_PATH with all repositories of 2.3 and 2.5, 30 blocks deep for dev."""
    root = tmp_path_factory.mktemp("newer")
    tiny_ltx2.build(root / "LTX-2.3-Distilled-Diffusers", layout="2.3")
    tiny_ltx2.build(root / "LTX-2.3-Diffusers", layout="2.3", layers=30, seed=1)
    tiny_ltx2.build_upsampler(root / "LTX-2.3-Spatial-Upsampler-Diffusers")
    shutil.copytree(ltx25_folder, root / ltx25_folder.name)
    return root


def settings_for(path: Path) -> InferenceSettings:
    return InferenceSettings.model_validate({"model_path": str(path)})


def backend_of(model: ModelName, path: Path) -> Ltx2Backend:
    backend = Ltx2Backend(MODELS[model], settings_for(path))
    backend.load()
    return backend


def shot(model: ModelName, preset: str = "standard", **update: Any) -> Any:
    facts = MODELS[model]
    steps = facts.presets[preset].steps
    return shot_of(
        **{"model": model, "model_version": facts.version, "steps": steps, **update}
    ).model_copy(update={"preset": preset})


@pytest.fixture(scope="module")
def backends(weights: Path) -> dict[str, Ltx2Backend]:
    return {name: backend_of(name, weights) for name in NEWER}


@pytest.fixture(scope="module")
def made(backends: dict[str, Ltx2Backend]) -> dict[str, tuple[Generated, list[Forward]]]:
    """By model, a video from an image."""
    found = {}
    for name in NEWER:
        with counted(backends[name], "none") as calls:
            found[name] = backends[name].generate(shot(name), image_of(), quiet), list(calls)
    return found


@EACH
def test_the_default_is_two_distilled_stages_with_one_forward_a_step(
    made: dict[str, tuple[Generated, list[Forward]]], model: ModelName
) -> None:
    generated, calls = made[model]
    sizes = [(call.given["height"], call.given["width"]) for call in calls]
    assert sizes == [(1, 2)] * 8 + [(2, 4)] * 3
    assert {len(call.video) for call in calls} == {1}
    assert {call.given["use_cross_timestep"] for call in calls} == {True}
    assert generated.warnings == ()


@EACH
def test_pictures_and_sound_come_out_at_the_rate_of_the_vocoder(
    backends: dict[str, Ltx2Backend],
    made: dict[str, tuple[Generated, list[Forward]]],
    model: ModelName,
) -> None:
    first, again = (backends[model].decode(shot(model), made[model][0].arrays) for _ in range(2))
    assert first.audio is not None
    assert (first.audio.shape, first.sample_rate) == ((34000, 2), 48000)
    assert again.audio is not None
    assert first.audio.tobytes() == again.audio.tobytes()
    frames = frames_of(first)
    assert frames.shape == (17, 64, 128, 3)
    assert frames.tobytes() == frames_of(again).tobytes()


@EACH
def test_a_prompt_alone_makes_a_video_in_one_stage(
    backends: dict[str, Ltx2Backend], model: ModelName
) -> None:
    with counted(backends[model], "none") as calls:
        found = backends[model].generate(shot(model, "one-stage"), None, quiet)
    assert [(call.given["height"], len(call.video)) for call in calls] == [(2, 1)] * 8
    assert found.arrays["video"].shape == (1, 8, 3, 2, 4)


@EACH
def test_dev_weights_are_others_and_guided_by_block_28_with_four_prompts_a_step(
    backends: dict[str, Ltx2Backend],
    made: dict[str, tuple[Generated, list[Forward]]],
    model: ModelName,
) -> None:
    backend = backends[model]
    seen: list[Forward] = []
    networks = backend._networks_for("dev")
    networks.use("cpu")
    part, lora = networks.layout.core_of(STAGES["dev"])
    hook = networks.core(lora, part).transformer.register_forward_hook(
        lambda _, __, given, found: seen.append(Forward(given, found[0])), with_kwargs=True
    )
    backend.generate(shot(model, "dev", steps=2), None, quiet)
    hook.remove()
    assert [len(call.video) for call in seen] == [2, 1, 1] * 2
    blocks = [call.given["spatio_temporal_guidance_blocks"] for call in seen[:3]]
    assert blocks == [None, [28], None]
    sigmas = [float(call.given["sigma"].flatten()[0]) for call in seen]
    assert sigmas[-1] == pytest.approx(100, rel=1e-3)  # the scheduler ends at 0.1
    assert part == {"ltx-2.3": "transformer", "ltx-2.5": "transformer_full"}[model]
    again = backend.generate(shot(model), image_of(), quiet)
    assert equal(again.arrays, made[model][0].arrays)


@pytest.mark.parametrize(("model", "crf"), [("ltx-2", 33), ("ltx-2.3", 33), ("ltx-2.5", 18)])
def test_an_image_is_compressed_as_those_of_the_training(model: ModelName, crf: int) -> None:
    assert LAYOUTS[model].image_crf == crf


def test_the_image_of_2_5_is_held_as_its_own_compression_leaves_it(
    backends: dict[str, Ltx2Backend], made: dict[str, tuple[Generated, list[Forward]]]
) -> None:
    import torch
    from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf

    networks = backends["ltx-2.5"]._networks
    assert networks
    still = {}
    for crf in (18, 33):
        image = apply_image_conditioning_crf(np.array(image_of().convert("RGB")), crf)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None, :, None] / 127.5 - 1
        with torch.no_grad():
            still[crf] = networks.small("vae").encode(pixels).latent_dist.mode().numpy()
    first = made["ltx-2.5"][0].arrays["video"][:, :, :1]
    np.testing.assert_allclose(first, still[18], atol=1e-4)
    assert np.abs(first - still[33]).max() > 1e-3


@pytest.mark.parametrize("model", ["ltx-2", *NEWER])
def test_a_folder_of_another_layout_is_refused_at_load_by_its_transformer(
    model: ModelName, weights: Path, ltx_folder: Path
) -> None:
    folders = {
        "ltx-2": ltx_folder,
        "ltx-2.3": weights / "LTX-2.3-Distilled-Diffusers",
        "ltx-2.5": weights / "LTX-2.5-Diffusers",
    }
    for other, folder in folders.items():
        if other == model:
            backend_of(model, folder)
            continue
        said = rf"found for {model} are those of {other},.*models pull {model}"
        with pytest.raises(ModelUnavailable, match=said):
            backend_of(model, folder)


def test_without_the_upsampler_2_3_names_it_and_makes_videos_in_one_stage(
    weights: Path, tmp_path: Path
) -> None:
    name = "LTX-2.3-Distilled-Diffusers"
    shutil.copytree(weights / name, tmp_path / name)
    backend = backend_of("ltx-2.3", tmp_path)
    said = r"latent_upsampler/ are not there.*models pull ltx-2\.3 --preset standard.*one-stage"
    with pytest.raises(ModelUnavailable, match=said):
        backend.generate(shot("ltx-2.3"), None, quiet)
    backend.generate(shot("ltx-2.3", "one-stage"), None, quiet)
    upsampler = weights / "LTX-2.3-Spatial-Upsampler-Diffusers" / "latent_upsampler"
    shutil.copytree(upsampler, tmp_path / name / "latent_upsampler")
    backend.generate(shot("ltx-2.3"), None, quiet)


def test_without_the_dev_transformer_2_5_names_it_and_makes_distilled_videos(
    weights: Path, tmp_path: Path
) -> None:
    name = "LTX-2.5-Diffusers"
    shutil.copytree(weights / name, tmp_path / name)
    shutil.rmtree(tmp_path / name / "transformer_full")
    backend = backend_of("ltx-2.5", tmp_path)
    said = r"transformer_full/ are not there.*models pull ltx-2\.5 --preset dev"
    with pytest.raises(ModelUnavailable, match=said):
        backend.generate(shot("ltx-2.5", "dev", steps=2), None, quiet)
    backend.generate(shot("ltx-2.5", "one-stage"), None, quiet)


def test_dev_weights_alone_are_enough_to_offer_2_3(weights: Path, tmp_path: Path) -> None:
    spec = MODELS["ltx-2.3"]
    assert not has_weights(spec, settings_for(tmp_path))
    name = "LTX-2.3-Diffusers"
    shutil.copytree(weights / name, tmp_path / name)
    assert has_weights(spec, settings_for(tmp_path))
    backend = backend_of("ltx-2.3", tmp_path)
    with pytest.raises(ModelUnavailable, match=r"LTX-2\.3-Distilled-Diffusers"):
        backend.generate(shot("ltx-2.3"), None, quiet)
    assert find_weights(spec, settings_for(tmp_path), repo_id=f"diffusers/{name}").name == name
