"""Memory plans: the first that fits is taken, and what fits nowhere is refused with advice."""

from __future__ import annotations

import pytest

from stillreel.errors import MemoryTooSmall
from stillreel.models.memory import GB, MemoryPlan, choose, leaner, peak, tokens_of
from stillreel.models.registry import MODELS
from stillreel.models.shots import usual
from stillreel.models.torch_backend import plan_within

RICH = MemoryPlan("rich", "", 30 * GB, 100_000, 32 * GB, text_bytes=31 * GB)
LEAN = MemoryPlan("lean", "", 10 * GB, 100_000, 12 * GB, text_bytes=11 * GB)
PLANS = (RICH, LEAN)


@pytest.mark.parametrize(
    ("shape", "frame_step", "tokens"),
    [((1280, 704, 121), 4, 27280), ((1920, 1088, 121), 8, 32640), ((960, 544, 121), 8, 8160)],
    ids=["wan", "ltx", "ltx-half"],
)
def test_tokens_are_those_that_the_transformers_were_seen_to_get(
    shape: tuple[int, int, int], frame_step: int, tokens: int
) -> None:
    assert tokens_of(*shape, frame_step=frame_step) == tokens


@pytest.mark.parametrize(
    ("plan", "tokens", "bytes_"),
    [
        (LEAN, 0, 12 * GB),
        (LEAN, 50_000, 15 * GB),
        (MemoryPlan("text", "", 1, 1, 2, text_bytes=9), 3, 9),
    ],
    ids=["decode", "denoise", "text"],
)
def test_the_peak_is_that_of_the_hungriest_phase(
    plan: MemoryPlan, tokens: int, bytes_: int
) -> None:
    assert peak(plan, tokens) == bytes_


@pytest.mark.parametrize(
    ("free", "tokens", "plan"),
    [
        (40 * GB, 0, RICH),
        (32 * GB, 20_000, RICH),
        (32 * GB, 20_001, LEAN),
        (32 * GB - 1, 0, LEAN),
        (12 * GB, 20_000, LEAN),
    ],
)
def test_the_first_plan_that_fits_is_chosen(free: int, tokens: int, plan: MemoryPlan) -> None:
    assert choose(PLANS, free, tokens) is plan


def test_a_video_that_is_too_large_is_refused_with_how_much_of_it_would_fit() -> None:
    with pytest.raises(MemoryTooSmall, match=r"needs 20\.0 GB.* has 15\.0 GB.* 50% of its length"):
        choose(PLANS, 15 * GB, 100_000)
    assert choose(PLANS, 15 * GB, 50_000) is LEAN


def test_a_gpu_that_holds_no_video_at_all_is_refused_with_what_would_be_needed() -> None:
    with pytest.raises(MemoryTooSmall, match=r"needs 12\.0 GB.* has 11\.9 GB.*No video of this"):
        choose(PLANS, 119 * GB // 10, 1000)


def test_after_the_leanest_plan_there_is_none() -> None:
    assert leaner(PLANS, RICH) is LEAN
    assert leaner(PLANS, LEAN) is None


@pytest.mark.parametrize("model", [m for m in MODELS.values() if m.plans], ids=lambda m: m.name)
def test_each_plan_of_a_model_is_leaner_than_the_one_before_it(model) -> None:
    width, height = model.default_size
    tokens = tokens_of(width, height, 121, frame_step=model.frame_step)
    peaks = [peak(plan, tokens) for plan in model.plans]
    assert peaks == sorted(set(peaks), reverse=True)
    assert len({plan.name for plan in model.plans}) == len(model.plans)


@pytest.mark.parametrize(
    ("free", "plan"), [(80, "resident"), (40, "text-first"), (24, "one-by-one")]
)
def test_a_host_knows_at_its_start_how_it_makes_the_usual_video(free: int, plan: str) -> None:
    spec = MODELS["wan-2.2"]
    assert plan_within(spec, usual(spec), free * GB).name == plan


def test_a_host_knows_at_its_start_that_the_usual_video_does_not_fit() -> None:
    spec = MODELS["wan-2.2"]
    with pytest.raises(MemoryTooSmall, match=r"needs 19\.6 GB.*has 12\.0 GB"):
        plan_within(spec, usual(spec), 12 * GB)
