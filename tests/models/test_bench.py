"""Made-up weights, what a video takes in arithmetic, and the bench over the real backends."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from stillreel import cli
from stillreel.errors import ModelUnavailable, RequestRejected
from stillreel.job import ModelName, Phase
from stillreel.models import tiny_ltx2
from stillreel.models.architectures import NETWORKS, PIPELINES, build_real
from stillreel.models.bench import TINY_SIZE, case_of, measure, weights_for
from stillreel.models.floors import PEAKS, TERA, peak_of, work_of
from stillreel.models.ltx2_layouts import LORA
from stillreel.models.random_weights import is_hollow, save_hollow
from stillreel.models.registry import MODELS
from stillreel.settings import get_settings
from tests.gpu.checks import check_cancel, check_decode, check_seed, loaded, quiet
from tests.models.shots import tiny_shot

SIZES = {
    ("ltx-2", "transformer"): 18.876,
    ("ltx-2", "connectors"): 1.431,
    ("ltx-2", "vae"): 1.222,
    ("ltx-2", "audio_vae"): 0.053,
    ("ltx-2", "vocoder"): 0.056,
    ("ltx-2", "latent_upsampler"): 0.498,
    ("ltx-2", "text_encoder"): 12.20,
    ("wan-2.2", "transformer"): 5.000,
    ("wan-2.2", "vae"): 0.705,
    ("wan-2.2", "text_encoder"): 5.68,
}
"""Billions of parameters as published."""


@pytest.fixture(scope="module")
def networks(torch_is_here: None) -> dict[str, dict[str, Any]]:
    return {name: make() for name, make in NETWORKS.items()}


@pytest.mark.parametrize(("model", "part"), SIZES)
def test_the_real_architectures_have_the_published_number_of_parameters(
    networks: dict[str, dict[str, Any]], model: str, part: str
) -> None:
    parameters = list(networks[model][part].parameters())
    assert all(parameter.is_meta for parameter in parameters)
    count = sum(parameter.numel() for parameter in parameters) / 1e9
    assert count == pytest.approx(SIZES[model, part], rel=0.01)


@pytest.mark.parametrize(
    ("model", "preset", "steps", "decode"),
    [
        ("wan-2.2", "standard", [(50, 2 * 521)], 2011),
        ("wan-2.2", "fast", [(3, 521)], 2011),
        ("ltx-2", "standard", [(8, 277), (3, 1722)], 320),
        ("ltx-2", "dev", [(40, 4 * 1722)], 320),
    ],
)
def test_five_seconds_take_as_much_arithmetic_as_was_counted_before(
    tmp_path: Path, model: ModelName, preset: str, steps: list[tuple[int, float]], decode: float
) -> None:
    """TFLOP, of a step and of the decode."""
    folder = build_real(model, tmp_path / "weights", preset=preset)
    work = work_of(MODELS[model], case_of(MODELS[model], preset=preset).shot, folder)
    assert [part.count for part in work.denoise] == [count for count, _ in steps]
    found = [part.flops / TERA for part in work.denoise]
    assert found == pytest.approx([flops for _, flops in steps], rel=0.01)
    assert work.decode / TERA == pytest.approx(decode, rel=0.01)
    taken = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
    assert is_hollow(folder)
    assert taken < 100_000_000


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 790),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_gpu_is_known_by_its_name(gpu: str, peak: float | None) -> None:
    assert peak_of(gpu) == peak


def test_no_gpu_hides_behind_a_shorter_name() -> None:
    assert all(peak_of(f"NVIDIA {name}") == peak for name, peak in PEAKS.items())


# --- hollow folders -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hollow(
    wan_folder: Path, ltx_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The tiny models once more, without their numbers."""
    import torch

    made: dict[str, Path] = {}
    for model, source in (("wan-2.2", wan_folder), ("ltx-2", ltx_folder)):
        root = tmp_path_factory.mktemp("hollow")
        parts = _empty_parts(source)
        for name, part in parts.items():
            if "latents_std" in dict(part.named_buffers()):
                parts[name].latents_std = torch.ones(part.latents_std.shape)
        folder = root / source.name
        save_hollow(folder, PIPELINES[model](parts), parts)
        made[model] = root
    tiny_ltx2.save_lora(
        made["ltx-2"] / ltx_folder.name / LORA,
        _empty_parts(ltx_folder)["transformer"],
        rank=1,
        strength=0.01,
        dtype=torch.bfloat16,
    )
    return made


def _empty_parts(folder: Path) -> dict[str, Any]:
    """The networks of a tiny folder, on the device `meta`."""
    import diffusers
    import torch
    from diffusers.pipelines import ltx2
    from transformers import AutoConfig, Gemma3ForConditionalGeneration, UMT5EncoderModel

    parts: dict[str, Any] = {}
    for path in sorted(folder.glob("*/config.json")):
        name = path.parent.name
        with torch.device("meta"):
            if name == "text_encoder":
                config = AutoConfig.from_pretrained(path.parent)
                is_umt5 = config.model_type == "umt5"
                kind = UMT5EncoderModel if is_umt5 else Gemma3ForConditionalGeneration
                parts[name] = kind(config)
            else:
                facts = json.loads(path.read_text())
                class_name = facts["_class_name"]
                kind = getattr(diffusers, class_name, None) or getattr(ltx2, class_name)
                parts[name] = kind.from_config(facts)
    return parts


@pytest.mark.parametrize("model", ["wan-2.2", "ltx-2"])
def test_a_hollow_folder_runs_like_a_published_one_with_the_same_numbers_each_time(
    hollow: dict[str, Path], model: ModelName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, made = MODELS[model], []
    shot = case_of(spec, size=TINY_SIZE, seconds=0.3).shot.model_copy(update={"steps": 11})
    for home in ("first", "second"):
        monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / home))
        get_settings.cache_clear()
        with closing(loaded(spec, hollow[model])) as backend:
            generated = backend.generate(shot, None, quiet)
            made.append(generated.arrays)
            chunks = np.concatenate(list(backend.decode(shot, generated.arrays).chunks))
        assert len(chunks) == shot.frames
    for name, array in made[0].items():
        assert np.isfinite(array).all()
        assert array.std() > 0
        assert np.array_equal(array, made[1][name])


def test_a_hollow_network_is_all_random_but_for_its_norms_and_biases(
    hollow: dict[str, Path],
) -> None:
    backend: Any = loaded(MODELS["wan-2.2"], hollow["wan-2.2"])
    for name, parameter in backend._weights["transformer"].named_parameters():
        if parameter.ndim > 1:
            assert 0.01 < parameter.std() < 0.03, name
        else:
            assert set(parameter.tolist()) == {0.0 if name.endswith("bias") else 1.0}, name


# --- what holds on a GPU too --------------------------------------------------------------------


def test_the_checks_of_a_gpu_hold_on_tiny_networks(wan_folder: Path, tmp_path: Path) -> None:
    spec, shot = MODELS["wan-2.2"], tiny_shot("wan-2.2")
    with closing(loaded(spec, wan_folder)) as backend:
        made = check_seed(backend, shot)
        check_cancel(backend, shot, made)
    check_decode(spec, wan_folder, shot, made, tmp_path)


# --- the bench ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"preset": "slow"}, "standard, fast"),
        ({"plan": "huge"}, "resident, text-first"),
        ({"preset": "fast", "steps": 4}, "3 steps"),
    ],
)
def test_what_a_model_does_not_have_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestRejected, match=word):
        case_of(MODELS["wan-2.2"], **change)


def test_a_case_is_on_the_grid_and_as_long_as_an_order() -> None:
    shot = case_of(MODELS["ltx-2"]).shot
    assert (shot.width, shot.height, shot.frames, shot.steps) == (1920, 1088, 121, 11)


def test_real_weights_are_taken_where_they_are(
    wan_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = case_of(MODELS["wan-2.2"])
    monkeypatch.setenv("MODEL_PATH", str(wan_folder))
    get_settings.cache_clear()
    with weights_for(case, "auto") as (settings, kind):
        assert (settings.model_path, kind) == (str(wan_folder), "real")
    with weights_for(case, "random") as (settings, kind):
        assert (settings.model_path != str(wan_folder), kind) == (True, "tiny")
    monkeypatch.setenv("MODEL_PATH", str(tmp_path))
    get_settings.cache_clear()
    with pytest.raises(ModelUnavailable, match="models pull"), weights_for(case, "real"):
        pass


@pytest.mark.parametrize(("model", "stages"), [("wan-2.2", 1), ("ltx-2", 2)])
def test_a_video_is_measured_phase_by_phase(
    model: ModelName, stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    spec = MODELS[model]
    steps = 0 if model == "ltx-2" else 3
    case = case_of(spec, size=TINY_SIZE, seconds=0.3, steps=steps, plan=spec.plans[-1].name)
    measured = measure(case, "random", repeat=2, tell=lambda _: None)
    assert len(measured.runs) == 2
    assert [len(run.steps) for run in measured.runs] == [case.shot.steps] * 2
    assert len(measured.steps) == stages
    for run in (measured.first, *measured.runs):
        assert run.seconds[Phase.TEXT] > 0  # each has a prompt of its own
        assert sum(run.steps) <= run.seconds[Phase.DENOISE] * 1.01
        assert run.video >= run.seconds[Phase.DENOISE] + run.seconds[Phase.DECODE]
    assert not (tmp_path / "home").exists(), "jobs would read prompts of made-up weights"
    facts = measured.to_json(peak=1.0, price=3600.0)
    assert json.loads(json.dumps(facts))["weights"] == "tiny"
    assert facts["usd"] == pytest.approx(facts["video_seconds"], abs=1e-5)
    took = measured.seconds(Phase.DENOISE) + measured.seconds(Phase.DECODE)
    assert facts["ratio"] == pytest.approx(took / (measured.work.flops / TERA))


def test_the_command_prints_data_and_says_what_a_cpu_is_worth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / "home"))
    options = ["--model", "wan-2.2", "--steps", "2", "--seconds", "0.2", "--repeat", "1"]
    done = CliRunner().invoke(cli.app, ["models", "bench", *options, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["machine"]["gpu"] == ""
    (row,) = found["results"]
    assert (row["model"], row["plan"], row["usd"], row["ratio"]) == ("wan-2.2", "cpu", None, None)
    assert "say nothing about a GPU" in done.stderr


@pytest.mark.parametrize(
    "options",
    [["--model", "preview"], ["--size", "large"], ["--memory-cap", "40"], ["--weights", "no"]],
    ids=lambda options: options[0],
)
def test_a_command_that_cannot_be_done_is_refused_at_once(options: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["models", "bench", *options])
    assert isinstance(done.exception, RequestRejected)
