"""WAN 2.2 on tiny weights: what it makes, what it takes for it, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillreel.errors import (
    InferenceCancelled,
    InferenceFailed,
    ModelUnavailable,
    RequestRejected,
)
from stillreel.inference.latents import write_latents
from stillreel.job import JobSpec, Phase, Shot
from stillreel.models.base import Generated
from stillreel.models.embeddings import EmbeddingCache, key_of
from stillreel.models.memory import MemoryPlan
from stillreel.models.registry import MODELS, load_backend
from stillreel.models.shots import resolve
from stillreel.models.styles import find_style
from stillreel.models.torch_backend import CPU_PLAN
from stillreel.models.wan22 import NEGATIVE_PROMPT, Wan22Backend
from stillreel.models.wan22_weights import PLACES
from stillreel.settings import InferenceSettings
from tests.models.shots import Steps, tiny_image, tiny_shot

SPEC = MODELS["wan-2.2"]
FAST = SPEC.presets["fast"].repo_id.rpartition("/")[2]
ROOT = Path(__file__).parents[2]

each_preset = pytest.mark.parametrize("preset", ["standard", "fast"])
each_start = pytest.mark.parametrize("image", [None, tiny_image()], ids=["prompt", "image"])


@pytest.fixture(scope="session")
def weights(wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODEL_PATH with both presets' folders, as `models pull` would leave them."""
    from stillreel.models import tiny_wan

    folder = tmp_path_factory.mktemp("model-path")
    (folder / wan_folder.name).symlink_to(wan_folder)
    index = tiny_wan.build(folder / FAST, seed=1) / "model_index.json"
    facts = json.loads(index.read_text())
    index.write_text(json.dumps({**facts, "_class_name": "WanDMDPipeline"}))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has its own stored embeddings."""
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def load() -> Iterator[Callable[[Path], Wan22Backend]]:
    """Loads backends as the inference server does; all are closed at the end."""
    loaded: list[Wan22Backend] = []

    def load_from(model_path: Path) -> Wan22Backend:
        backend = load_backend(
            SPEC, InferenceSettings.model_validate({"model_path": str(model_path)})
        )
        assert isinstance(backend, Wan22Backend)
        backend.load()
        loaded.append(backend)
        return backend

    yield load_from
    for backend in loaded:
        backend.close()


@pytest.fixture
def backend(load: Callable[[Path], Wan22Backend], weights: Path) -> Wan22Backend:
    return load(weights)


@contextmanager
def forwards() -> Iterator[dict[str, int]]:
    """How often networks of each class ran in this block."""
    from torch.nn.modules.module import register_module_forward_hook

    counts = {"WanTransformer3DModel": 0, "UMT5EncoderModel": 0}

    def count(module: object, *_: object) -> None:
        name = type(module).__name__
        if name in counts:
            counts[name] += 1

    handle = register_module_forward_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


def latents(generated: Generated) -> bytes:
    return generated.arrays["video"].tobytes()


def frames(backend: Wan22Backend, shot: Shot, generated: Generated) -> np.ndarray:
    return np.concatenate(list(backend.decode(shot, generated.arrays).chunks))


@each_preset
def test_it_reads_the_words_of_style_and_camera(
    backend: Wan22Backend, home: Path, preset: str
) -> None:
    order = JobSpec(model="wan-2.2", prompt="a lake", style="noir", camera="pan left")
    resolved = resolve(order, SPEC, job_id="job_12345678", image_size=None)
    words = {name: getattr(resolved, name) for name in ("prompt", "style_negative", "camera")}
    generated = backend.generate(tiny_shot("wan-2.2", preset=preset, **words), None, Steps())
    cache = EmbeddingCache(home / "embeddings")
    negative = resolved.negative_text(NEGATIVE_PROMPT)
    assert negative == f"{NEGATIVE_PROMPT}, {find_style('noir').negative_prompt}"
    read = [
        text
        for text in ("a lake", resolved.prompt, NEGATIVE_PROMPT, negative)
        if cache.load(key_of(f"{SPEC.version} {backend._weights.dtype}", text))
    ]
    assert read == ([resolved.prompt] if preset == "fast" else [resolved.prompt, negative])
    assert not any("negative" in warning and "no use" in warning for warning in generated.warnings)


@each_start
@each_preset
def test_a_shot_becomes_frames_and_says_each_step(
    backend: Wan22Backend, preset: str, image: Image.Image | None
) -> None:
    shot, steps = tiny_shot("wan-2.2", preset=preset), Steps()
    generated = backend.generate(shot, image, steps)
    assert steps.seen == [
        (Phase.TEXT, 0, 1),
        (Phase.TEXT, 1, 1),
        *((Phase.DENOISE, step, 3) for step in (1, 2, 3)),
    ]
    assert generated.arrays["video"].dtype == np.float32
    assert (generated.dtype, generated.plan, generated.warnings) == ("float32", "cpu", ())
    assert generated.seconds.keys() == {Phase.TEXT, Phase.DENOISE}

    decoded = backend.decode(shot, generated.arrays)
    chunks = list(decoded.chunks)
    assert (decoded.width, decoded.height, decoded.frames) == (96, 64, 9)
    assert [chunk.shape for chunk in chunks] == [(1, 64, 96, 3), (4, 64, 96, 3), (4, 64, 96, 3)]
    assert all(chunk.dtype == np.uint8 for chunk in chunks)
    assert np.concatenate(chunks).std() > 1


@each_start
def test_the_frames_are_those_of_the_stock_pipeline_in_one_piece(
    backend: Wan22Backend, wan_folder: Path, image: Image.Image | None
) -> None:
    import torch
    from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline

    shot = tiny_shot("wan-2.2", seed=5)
    ours = frames(backend, shot, backend.generate(shot, image, Steps()))

    stock = (WanPipeline if image is None else WanImageToVideoPipeline).from_pretrained(wan_folder)
    assert isinstance(stock.scheduler, UniPCMultistepScheduler)
    assert stock.scheduler.config.flow_shift == 5.0
    stock.set_progress_bar_config(disable=True)
    video = stock(
        **({} if image is None else {"image": image}),
        prompt=shot.prompt,
        negative_prompt=NEGATIVE_PROMPT,
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(5),
    ).frames[0]
    assert np.array_equal(ours, (video * 255).round().astype(np.uint8))


@each_preset
def test_the_seed_alone_decides_the_latents(backend: Wan22Backend, preset: str) -> None:
    import torch

    shot = tiny_shot("wan-2.2", preset=preset, seed=7)
    first = backend.generate(shot, tiny_image(), Steps())
    torch.manual_seed(12345)  # what diffusers' own stochastic sampler would draw from
    assert latents(backend.generate(shot, tiny_image(), Steps())) == latents(first)
    other = shot.model_copy(update={"seed": 8})
    assert latents(backend.generate(other, tiny_image(), Steps())) != latents(first)


@pytest.mark.parametrize(("preset", "per_step"), [("standard", 2), ("fast", 1)])
@each_start
def test_a_step_takes_two_forwards_with_guidance_and_one_with_distilled_weights(
    backend: Wan22Backend, preset: str, per_step: int, image: Image.Image | None
) -> None:
    shot = tiny_shot("wan-2.2", preset=preset)
    with forwards() as counts:
        backend.generate(shot, image, Steps())
    assert counts["WanTransformer3DModel"] == per_step * shot.steps


def test_each_prompt_is_encoded_once_on_a_host(
    load: Callable[[Path], Wan22Backend], weights: Path
) -> None:
    shot = tiny_shot("wan-2.2")
    with forwards() as counts:
        first = load(weights).generate(shot, None, Steps())
        assert counts["UMT5EncoderModel"] == 2
        again = load(weights)
        assert latents(again.generate(shot, None, Steps())) == latents(first)
        assert counts["UMT5EncoderModel"] == 2
        again.generate(tiny_shot("wan-2.2", "a hill"), None, Steps())
        assert counts["UMT5EncoderModel"] == 3


def test_an_order_without_a_negative_prompt_gets_the_official_one(backend: Wan22Backend) -> None:
    def made_with(negative: str) -> bytes:
        shot = tiny_shot("wan-2.2", negative_prompt=negative)
        return latents(backend.generate(shot, None, Steps()))

    assert made_with("") == made_with(NEGATIVE_PROMPT) != made_with("blurred")


@pytest.mark.parametrize("again", [False, True], ids=["new", "stored"])
def test_what_of_a_prompt_has_no_effect_is_told(backend: Wan22Backend, again: bool) -> None:
    long, short = "a " * 600, "a lake"
    if again:
        backend.generate(tiny_shot("wan-2.2", long, negative_prompt=long), None, Steps())

    def warnings(prompt: str, negative: str, preset: str = "standard") -> str:
        shot = tiny_shot("wan-2.2", prompt, negative_prompt=negative, preset=preset)
        return " ".join(backend.generate(shot, None, Steps()).warnings)

    assert warnings(short, "blurred") == ""
    assert warnings(long, "").startswith("The prompt has 1201 tokens")
    assert warnings(short, long).startswith("The negative prompt has 1201 tokens")
    assert "fast has no use for a negative prompt" in warnings(short, "blurred", "fast")


def test_the_text_encoder_reads_the_embedding_that_the_file_has_once(wan_folder: Path) -> None:
    """Otherwise it reads zeros and every prompt is the same: huggingface/transformers#43880."""
    from transformers import UMT5EncoderModel

    encoder = UMT5EncoderModel.from_pretrained(wan_folder / "text_encoder")
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight


@each_preset
@pytest.mark.parametrize("at", [(Phase.TEXT, 1), (Phase.DENOISE, 2)], ids=["text", "denoise"])
def test_a_cancelled_shot_stops_there_and_the_next_one_is_right(
    backend: Wan22Backend, preset: str, at: tuple[Phase, int]
) -> None:
    shot = tiny_shot("wan-2.2", preset=preset)
    expected = latents(backend.generate(shot, None, Steps()))
    steps = Steps(stop_after=at)
    with pytest.raises(InferenceCancelled):
        backend.generate(shot, tiny_image(), steps)
    assert steps.seen[-1][:2] == at
    assert latents(backend.generate(shot, None, Steps())) == expected


def test_each_plan_makes_the_same_video_and_all_but_the_last_the_same_frames(
    backend: Wan22Backend,
) -> None:
    shot, image = tiny_shot("wan-2.2", width=576, height=64), tiny_image(576, 64)
    expected = backend.generate_with(CPU_PLAN, shot, image, Steps())
    pictures = frames(backend, shot, expected)
    for plan in SPEC.plans:
        made = backend.generate_with(plan, shot, image, Steps())
        assert latents(made) == latents(expected)
        decoded = backend.decode_with(plan, shot, made.arrays["video"])
        seen = np.concatenate(list(decoded.chunks))
        if plan.name == "tiled":
            assert seen.shape == pictures.shape
            assert 0 < np.abs(seen.astype(int) - pictures).mean() < 16
        else:
            assert np.array_equal(seen, pictures)
    after = backend.generate_with(CPU_PLAN, shot, image, Steps())
    assert latents(after) == latents(expected), "the image is encoded in tiles, too"


@pytest.mark.parametrize("plan", SPEC.plans, ids=lambda plan: plan.name)
def test_each_plan_says_what_lies_where(plan: MemoryPlan) -> None:
    assert PLACES[plan.name].keys() == {"text", "denoise", "decode"}


def test_latents_decode_in_a_new_process_to_the_same_frames(
    backend: Wan22Backend, weights: Path, tmp_path: Path
) -> None:
    shot = tiny_shot("wan-2.2")
    generated = backend.generate(shot, tiny_image(), Steps())
    write_latents(tmp_path / "stored", shot, generated)
    program = """
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)  # as here (conftest.py): sums on a CPU depend on it
from stillreel.inference.latents import read_arrays, read_facts
from stillreel.models.registry import MODELS, load_backend
from stillreel.settings import InferenceSettings
stored, weights, out = map(Path, sys.argv[1:])
settings = InferenceSettings.model_validate({"model_path": str(weights)})
backend = load_backend(MODELS["wan-2.2"], settings)
backend.load()
decoded = backend.decode(read_facts(stored)[0], read_arrays(stored))
np.save(out, np.concatenate(list(decoded.chunks)))
"""
    out = tmp_path / "frames.npy"
    subprocess.run(
        [sys.executable, "-c", program, tmp_path / "stored", weights, out], cwd=ROOT, check=True
    )
    assert np.array_equal(np.load(out), frames(backend, shot, generated))


def test_latents_of_another_shot_are_refused(backend: Wan22Backend) -> None:
    shot = tiny_shot("wan-2.2")
    generated = backend.generate(shot, None, Steps())
    with pytest.raises(InferenceFailed, match="not of this video"):
        backend.decode(shot.model_copy(update={"frames": 13}), generated.arrays)
    with pytest.raises(InferenceFailed, match="not of this video"):
        backend.decode(shot, {"image": np.zeros(3)})


@pytest.mark.parametrize("change", [{"width": 112}, {"height": 72}, {"frames": 18}])
def test_what_diffusers_would_round_down_is_refused(
    backend: Wan22Backend, change: dict[str, int]
) -> None:
    with pytest.raises(RequestRejected, match=r"wan-2\.2 does not make.*multiples of 32"):
        backend.generate(tiny_shot("wan-2.2", **change), None, Steps())


def test_a_preset_without_its_weights_is_refused_and_the_other_works(
    load: Callable[[Path], Wan22Backend], weights: Path, tmp_path: Path
) -> None:
    standard, fast = (tiny_shot("wan-2.2", preset=preset) for preset in ("standard", "fast"))
    official = load(weights / "Wan2.2-TI2V-5B-Diffusers")
    with pytest.raises(ModelUnavailable, match=f"{FAST}.*models pull"):
        official.generate(fast, None, Steps())
    official.generate(standard, None, Steps())

    (tmp_path / FAST).symlink_to(weights / FAST)
    distilled = load(tmp_path)
    distilled.generate(fast, None, Steps())
    with pytest.raises(ModelUnavailable, match=r"Wan2\.2-TI2V-5B-Diffusers"):
        distilled.generate(standard, None, Steps())


def test_another_model_of_the_family_is_refused(
    load: Callable[[Path], Wan22Backend], wan_folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(wan_folder, tmp_path / "Wan2.2-I2V-A14B-Diffusers")
    path = other / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_channels": 36}))
    with pytest.raises(ModelUnavailable, match=r"another WAN's.* 36 channels, .*TI2V-5B 48"):
        load(other)


def test_weights_that_are_not_whole_are_refused_with_the_part(
    load: Callable[[Path], Wan22Backend], wan_folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(wan_folder, tmp_path / "weights")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelUnavailable, match=r"weights/vae cannot be loaded.*again"):
        load(broken)


@pytest.mark.parametrize("package", ["accelerate", "ftfy"])
def test_a_missing_package_is_named_at_load(
    load: Callable[[Path], Wan22Backend],
    weights: Path,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelUnavailable, match=rf"'{package}'.*stillreel\[models\]"):
        load(weights)


def test_a_distilled_step_predicts_the_whole_video_and_adds_new_noise() -> None:
    import torch

    from stillreel.models.dmd import dmd_scheduler

    noise = [torch.randn(1, 2, generator=g) for g in [torch.Generator().manual_seed(1)] * 2]
    scheduler = dmd_scheduler(torch.Generator().manual_seed(1))
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.round().tolist() == [1000, 757, 522]
    sample, clean = torch.full((1, 2), 3.0), torch.tensor([[0.25, -0.5]])
    seen: list[torch.Tensor] = []
    for sigma, timestep in zip((1.0, 0.757, 0.522), scheduler.timesteps, strict=True):
        velocity = (sample - clean) / sigma
        sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
        seen.append(sample)
    torch.testing.assert_close(seen[0], 0.243 * clean + 0.757 * noise[0])
    torch.testing.assert_close(seen[1], 0.478 * clean + 0.522 * noise[1])
    torch.testing.assert_close(seen[2], clean)
