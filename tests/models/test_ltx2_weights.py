"""Guided presets, the LoRA in its three uses, and each plan's storage, on tiny networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillreel.errors import MemoryTooSmall, ModelUnavailable, RequestRejected
from stillreel.job import Phase
from stillreel.models.base import Generated
from stillreel.models.ltx2 import Ltx2Backend
from stillreel.models.ltx2_plans import LORA_BYTES, PLANS, plans_for
from stillreel.models.ltx2_segments import segments_of
from stillreel.models.ltx2_stages import GUIDED, STAGES
from stillreel.models.ltx2_text import texts_of
from stillreel.models.ltx2_weights import FP8_SKIPS, Networks
from stillreel.models.memory import GB, MemoryPlan, choose, peak, tokens_of
from stillreel.models.torch_backend import run_with_fallback
from stillreel.settings import get_settings
from tests.models.test_ltx2 import SPEC, backend_of, counted, equal, image_of, quiet, shot_of

A10G, A100_40, A100_80, H200 = 23.3, 41.8, 84.0, 149.0
"""GB that a process finds free on these GPUs."""


@pytest.fixture(scope="module")
def deep(torch_is_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a block 29, which the guidance of 2.0 works on."""
    from stillreel.models import tiny_ltx2

    return tiny_ltx2.build(tmp_path_factory.mktemp("deep") / "LTX-2", layers=30)


def test_the_dev_preset_guides_by_text_by_block_29_and_by_modality(deep: Path) -> None:
    """Three forwards with four prompts a step, each of which sees something else."""
    backend = backend_of(deep)
    with counted(backend, "none") as calls:
        backend.generate(shot_of("dev", steps=2), image_of(), quiet)
    given = [call.given for call in calls]
    assert [len(values["hidden_states"]) for values in given] == [2, 1, 1] * 2
    assert [values["spatio_temporal_guidance_blocks"] for values in given[:3]] == [None, [29], None]
    assert [values["isolate_modalities"] for values in given[:3]] == [False, False, True]
    assert {(values["height"], values["width"]) for values in given} == {(2, 4)}
    plain = calls[0].video[1:]
    for call in calls[1:3]:
        assert (call.video - plain).abs().max() > 1e-3  # rounding would be 1e-6


def test_the_guidance_is_the_official_one() -> None:
    names = ("guidance_scale", "stg_scale", "modality_scale", "guidance_rescale")
    assert [GUIDED[name] for name in names] == [3.0, 1.0, 3.0, 0.7]
    assert [GUIDED[f"audio_{name}"] for name in names] == [7.0, 1.0, 3.0, 0.7]


def test_a_negative_prompt_changes_a_guided_video(deep: Path) -> None:
    backend = backend_of(deep)
    usual, other = (
        backend.generate(shot_of("dev", steps=2, negative_prompt=text), None, quiet)
        for text in ("", "blur")
    )
    assert other.warnings == ()
    assert not equal(usual.arrays, other.arrays)


def test_what_a_style_does_not_want_joins_the_negative_prompt_that_holds(deep: Path) -> None:
    from diffusers.pipelines.ltx2.utils import DEFAULT_NEGATIVE_PROMPT

    shot = shot_of("dev", steps=2, negative_prompt="blur", style_negative="text")
    backend = backend_of(deep)
    style, own, both = (
        backend.generate(each, None, quiet).arrays
        for each in (
            shot,
            shot_of("dev", steps=2, negative_prompt="blur"),
            shot_of("dev", steps=2, negative_prompt="blur, text"),
        )
    )
    assert equal(style, both)
    assert not equal(style, own)
    alone = texts_of(shot.model_copy(update={"negative_prompt": ""}), STAGES["dev"])
    assert alone["negative_prompt"] == f"{DEFAULT_NEGATIVE_PROMPT}, text"


def test_two_stages_of_the_dev_weights_end_with_the_lora_switched_on(deep: Path) -> None:
    import torch

    backend = backend_of(deep)
    seen: list[int] = []
    with counted(backend, "switched") as calls:
        shot = shot_of("dev-two-stage", steps=5)
        first = backend.generate(shot, image_of(), lambda _, step, __: seen.append(step))
    assert [len(call.video) for call in calls] == [2, 1, 1] * 2 + [1] * 3
    assert [call.given["height"] for call in calls] == [1] * 6 + [2] * 3
    assert seen[-6:] == [0, 1, 2, 3, 4, 5]
    again = backend.generate(shot, image_of(), quiet)
    assert equal(first.arrays, again.arrays), "the second one began with the LoRA still on"

    networks = backend._networks
    assert networks
    for lora, call in (("none", calls[0]), ("merged", calls[6])):
        with torch.no_grad():
            alone = networks.core(lora).transformer(**call.given)[0]
        torch.testing.assert_close(call.video, alone, atol=1e-4, rtol=1e-3)


def test_a_merged_lora_changes_the_blocks_and_leaves_no_adapter_behind(deep: Path) -> None:
    import torch

    networks = Networks(deep, torch.device("cpu"), torch.float32)
    networks.use("cpu")
    plain = networks.core("none").transformer.state_dict()
    merged = networks.core("merged").transformer.state_dict()
    assert plain.keys() == merged.keys()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed
    assert all(name.startswith("transformer_blocks") for name in changed)


def test_presets_in_turn_do_not_change_each_other(deep: Path) -> None:
    backend = backend_of(deep)
    first = backend.generate(shot_of(), None, quiet).arrays
    backend.generate(shot_of("dev", steps=2), None, quiet)
    assert equal(backend.generate(shot_of(), None, quiet).arrays, first)


@pytest.mark.parametrize("preset", ["dev", "dev-two-stage"])
def test_weights_without_the_guided_block_are_refused(ltx_folder: Path, preset: str) -> None:
    with pytest.raises(ModelUnavailable, match=r"block 29.* 2 blocks"):
        backend_of(ltx_folder).generate(shot_of(preset, steps=5), None, quiet)


@pytest.mark.parametrize(("preset", "steps"), [("dev", 1), ("dev-two-stage", 4)])
def test_too_few_steps_are_refused_before_anything_runs(
    ltx_folder: Path, preset: str, steps: int
) -> None:
    """One step ends in NaN noise levels inside the scheduler."""
    with pytest.raises(RequestRejected, match=f"more than {steps} steps"):
        backend_of(ltx_folder).generate(shot_of(preset, steps=steps), None, quiet)


def _made_by(backend: Ltx2Backend, plan: str) -> dict[str, np.ndarray]:
    networks = backend._networks
    assert networks
    (found,) = (known for known in PLANS if known.name == plan)
    shot = shot_of()
    return backend._generate(
        shot, image_of(), quiet, STAGES["standard"], [shot.frames], found
    ).arrays


def test_fp8_stores_the_blocks_alone_and_halves_them(ltx_folder: Path) -> None:
    import torch

    networks = Networks(ltx_folder, torch.device("cpu"), torch.bfloat16)
    networks.use("fp8")
    state = networks.core("merged").transformer.state_dict()
    small = {name for name, tensor in state.items() if tensor.dtype == torch.float8_e4m3fn}
    assert small
    assert all(name.startswith("transformer_blocks") for name in small)
    assert not any("norm" in name for name in small)
    linear = {
        name
        for name, tensor in state.items()
        if name.startswith("transformer_blocks") and name.endswith("weight") and tensor.ndim == 2
    }
    assert linear <= small
    assert {state[name].dtype for name in state.keys() - small} == {torch.bfloat16}


@pytest.mark.parametrize("lora", ["merged", "switched"])
def test_fp8_keeps_the_lora(deep: Path, lora: Any) -> None:
    import torch

    networks = Networks(deep, torch.device("cpu"), torch.float32)
    networks.use("fp8")
    state = networks.core(lora).transformer.state_dict()
    kept = [tensor.dtype for name, tensor in state.items() if "lora_" in name]
    assert bool(kept) == (lora == "switched")
    assert set(kept) <= {torch.float32}


def test_every_plan_makes_a_video_and_all_but_fp8_the_same_one(ltx_folder: Path) -> None:
    backend = backend_of(ltx_folder)
    made = {plan.name: _made_by(backend, plan.name) for plan in PLANS}
    assert list(made) == ["resident", "bf16", "fp8", "streamed"]
    for name in ("bf16", "streamed"):
        assert equal(made[name], made["resident"])
    fp8, exact = made["fp8"]["video"], made["resident"]["video"]
    assert not np.array_equal(fp8, exact)
    assert np.abs(fp8 - exact).mean() < 0.2 * np.abs(exact).mean()


def test_a_text_encoder_that_streams_reads_a_prompt_as_one_that_stays(
    ltx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}
    for plan in ("resident", "bf16"):
        monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / plan))
        get_settings.cache_clear()
        made[plan] = _made_by(backend_of(ltx_folder), plan)
        assert len(list((tmp_path / plan / "embeddings").iterdir())) == 1
    assert equal(made["resident"], made["bf16"])


def test_out_of_memory_falls_back_to_the_next_plan_and_says_so(ltx_folder: Path) -> None:
    import torch

    backend, steps = backend_of(ltx_folder), list[int]()

    def fail_once(phase: Phase, step: int, _: int) -> None:
        if phase is Phase.DENOISE:
            steps.append(step)
            if steps == [0, 1, 2]:
                raise torch.OutOfMemoryError("CUDA out of memory")

    def work(plan: MemoryPlan) -> Generated:
        return backend._generate(shot_of(), image_of(), fail_once, STAGES["standard"], [17], plan)

    found = run_with_fallback(PLANS, PLANS[0], torch.device("cpu"), work)
    assert found.plan == "bf16"
    assert "resident ran out" in found.warnings[0]
    assert steps == [0, 1, 2, *range(12)]
    assert equal(found.arrays, backend.generate(shot_of(), image_of(), quiet).arrays)


@pytest.mark.parametrize(
    ("gpu", "preset", "size", "seconds", "plan"),
    [
        (H200, "standard", (1920, 1088), 5, "resident"),
        (A100_80, "standard", (1920, 1088), 5, "resident"),
        (A100_80, "standard", (1920, 1088), 20, "bf16"),
        (A100_40, "standard", (1920, 1088), 5, "fp8"),
        (A100_40, "standard", (1280, 768), 20, "fp8"),
        (A100_40, "dev", (1920, 1088), 5, "fp8"),
        (A100_40, "dev-two-stage", (1920, 1088), 5, "streamed"),
        (A100_40, "standard", (1920, 1088), 20, "streamed"),
        (A10G, "standard", (1920, 1088), 5, "streamed"),
        (A100_40, "standard", (1920, 1088), 30, "streamed"),  # two segments of 15 s
        (A10G, "standard", (1920, 1088), 20, ""),
        (A100_40, "standard", (3840, 2176), 10, ""),
    ],
)
def test_the_plan_is_chosen_by_what_the_shot_takes(
    gpu: float, preset: str, size: tuple[int, int], seconds: int, plan: str
) -> None:
    width, height = size
    longest = max(segments_of(24 * seconds + 1, 24 * 20 + 1))
    shot = shot_of(preset, width=width, height=height, frames=longest)
    plans = plans_for(PLANS, shot, STAGES[preset])
    tokens = tokens_of(width, height, shot.frames, frame_step=SPEC.frame_step)
    free = int(gpu * GB)
    if plan:
        assert choose(plans, free, tokens).name == plan
        return
    with pytest.raises(MemoryTooSmall):
        choose(plans, free, tokens)


def test_the_plans_count_the_real_transformer_as_it_is() -> None:
    """Its architecture without memory: what it weighs, whole, as FP8, and what never streams."""
    import re

    import torch
    from diffusers import LTX2VideoTransformer3DModel

    with torch.device("meta"):
        transformer: Any = LTX2VideoTransformer3DModel(rope_type="split")
    parts = {name: sum(p.numel() for p in part.parameters(recurse=False))
             for name, part in transformer.named_modules()}  # fmt: skip
    linear = {name for name, part in transformer.named_modules()
              if isinstance(part, torch.nn.Linear)}  # fmt: skip
    cast = {name for name in linear if not any(re.search(skip, name) for skip in FP8_SKIPS)}
    assert all(name.startswith("transformer_blocks") for name in cast)
    whole, saved = 2 * sum(parts.values()), sum(parts[name] for name in cast)
    blocks = 2 * sum(size for name, size in parts.items() if name.startswith("transformer_blocks"))
    weights = {plan.name: plan.resident_bytes for plan in PLANS}
    beside = weights["bf16"] - whole
    assert beside == pytest.approx(8.2 * GB, rel=0.02)  # all other networks, and a margin
    assert weights["fp8"] == pytest.approx(whole - saved + beside, rel=0.01)
    assert weights["streamed"] == pytest.approx(whole - blocks + 2 * blocks / 48 + beside, rel=0.02)
    adapters = sum(
        part.in_features + part.out_features
        for name, part in transformer.named_modules()
        if name in linear and name.startswith("transformer_blocks")
    )
    assert pytest.approx(2 * 384 * adapters, rel=0.05) == LORA_BYTES


def test_a_guided_shot_takes_more_than_a_distilled_one_and_4k_decodes_dearest() -> None:
    large = shot_of(width=3840, height=2176, frames=121)
    (plain, *_), (dev, *_) = (plans_for(PLANS, large, STAGES[name]) for name in ("standard", "dev"))
    assert plain == replace(PLANS[0], decode_bytes=plain.decode_bytes)
    assert plain.decode_bytes == PLANS[0].decode_bytes
    assert peak(dev, 10**6) > peak(plain, 10**6)
