"""What the torch backends share: one fall-back when memory runs out, weights in the hub's cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stillreel.errors import InferenceCancelled, MemoryTooSmall, ModelUnavailable
from stillreel.job import Phase
from stillreel.models.base import Generated
from stillreel.models.memory import MemoryPlan
from stillreel.models.registry import MODELS
from stillreel.models.torch_backend import (
    generator_for,
    released,
    run_planned,
    run_with_fallback,
    step_callback,
)
from stillreel.models.weights import find_weights
from stillreel.settings import InferenceSettings
from tests.models.shots import Steps, tiny_shot

SPEC = MODELS["wan-2.2"]
RICH, MIDDLE, LEAN = (MemoryPlan(name, "", 0, 0, 0) for name in ("rich", "middle", "lean"))
PLANS = (RICH, MIDDLE, LEAN)


def _work(done: list[str], *too_much: MemoryPlan) -> Callable[[MemoryPlan], Generated]:
    """Runs out of memory with the plans that are too much."""
    import torch

    def work(plan: MemoryPlan) -> Generated:
        done.append(plan.name)
        if plan in too_much:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return Generated({"value": np.zeros(1)}, warnings=("Its own.",))

    return work


def test_a_plan_that_fits_is_named_in_the_result() -> None:
    import torch

    generated = run_with_fallback(PLANS, RICH, torch.device("cpu"), _work([]))
    assert (generated.plan, generated.warnings) == ("rich", ("Its own.",))


def test_running_out_of_memory_is_tried_once_more_with_the_next_leaner_plan_and_told() -> None:
    import torch

    done: list[str] = []
    generated = run_with_fallback(PLANS, RICH, torch.device("cpu"), _work(done, RICH))
    assert done == ["rich", "middle"]
    assert generated.plan == "middle"
    assert generated.warnings == (
        "The plan rich ran out of GPU memory; the video was made with middle.",
        "Its own.",
    )


@pytest.mark.parametrize(("start", "tried"), [(RICH, ["rich", "middle"]), (LEAN, ["lean"])])
def test_running_out_of_memory_again_or_with_the_leanest_plan_is_final(
    start: MemoryPlan, tried: list[str]
) -> None:
    import torch

    done: list[str] = []
    with pytest.raises(MemoryTooSmall, match=f"with the plan {tried[-1]}") as caught:
        run_with_fallback(PLANS, start, torch.device("cpu"), _work(done, *PLANS))
    assert done == tried
    assert not caught.value.retryable


def test_on_a_cpu_there_is_one_plan_and_nothing_is_refused() -> None:
    import torch

    shot = tiny_shot("wan-2.2", width=1280, height=704, frames=121)
    generated = run_planned(SPEC, shot, torch.device("cpu"), _work([]))
    assert generated.plan == "cpu"


def test_a_step_is_counted_from_those_before_it_and_hands_the_tensors_back() -> None:
    steps, values = Steps(), {"latents": object()}
    callback = step_callback(steps, 11, done=8)
    assert callback(None, 2, None, values) is values
    assert steps.seen == [(Phase.DENOISE, 11, 11)]


def test_what_stops_a_block_passes_and_the_models_have_left_the_gpu() -> None:
    import torch

    class Pipe:
        freed = 0

        def maybe_free_model_hooks(self) -> None:
            self.freed += 1

    pipe = Pipe()
    with pytest.raises(InferenceCancelled), released(torch.device("cpu"), pipe):
        raise InferenceCancelled
    assert pipe.freed == 1


def test_noise_comes_from_the_seed_of_the_shot() -> None:
    import torch

    shots = [tiny_shot("wan-2.2", seed=seed) for seed in (2**32 - 1, 2**32 - 1, 1)]
    first, second, other = (torch.randn(4, generator=generator_for(shot)) for shot in shots)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_weights_are_found_in_the_cache_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    settings = InferenceSettings.model_validate({"model_path": ""})
    with pytest.raises(ModelUnavailable, match=r"Wan-AI/Wan2\.2-TI2V-5B.*models pull wan-2\.2"):
        find_weights(SPEC, settings)
    repository = tmp_path / "models--Wan-AI--Wan2.2-TI2V-5B-Diffusers"
    snapshot = repository / "snapshots" / SPEC.repository().revision
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    assert find_weights(SPEC, settings) == snapshot
