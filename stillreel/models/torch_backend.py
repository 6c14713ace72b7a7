"""What the backends that run on torch share: device, randomness, steps, memory."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from stillreel.errors import MemoryTooSmall, RequestRejected
from stillreel.job import Phase, Shot
from stillreel.models.base import Generated, ModelSpec, OnStep
from stillreel.models.memory import GB, MemoryPlan, choose, leaner, peak, tokens_of
from stillreel.models.weights import missing_package

if TYPE_CHECKING:
    import torch

log = logging.getLogger("stillreel.inference")

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
Work = Callable[[MemoryPlan], Generated]

CPU_PLAN = MemoryPlan("cpu", "Everything in the memory of the host; there is no GPU.", 0, 0, 0)


def require(spec: ModelSpec, *packages: str) -> None:
    """Raise ModelUnavailable naming the first of these packages that cannot be imported.

    diffusers finds some of them missing only in the middle of a job, and then names no remedy.
    """
    for package in packages:
        try:
            import_module(package)
        except ImportError as exc:
            raise missing_package(spec, exc.name or package) from exc


def hide_progress_bars() -> None:
    """Keep the bars of diffusers and transformers out of the log; steps are reported by us."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def pick_device() -> torch.device:
    """The first GPU, else the CPU."""
    import torch

    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def dtype_on(device: torch.device) -> torch.dtype:
    """What the transformers compute in: bfloat16 on a GPU, float32 on a CPU."""
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32


def generator_for(shot: Shot) -> torch.Generator:
    """The source of all noise of a shot; on the CPU, so that it is the same on every GPU."""
    import torch

    return torch.Generator("cpu").manual_seed(shot.seed)


def step_callback(on_step: OnStep, steps: int, *, done: int = 0) -> StepCallback:
    """What a diffusers pipeline calls after each step; `done` steps were made before it.

    What `on_step` raises passes through the pipeline, which stays usable.
    """

    def callback(_pipe: Any, index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        on_step(Phase.DENOISE, done + index + 1, steps)
        return values  # diffusers takes new latents out of it, and fails on None

    return callback


@contextmanager
def released(device: torch.device, *pipes: Any) -> Iterator[None]:
    """Whatever ends the block, the pipelines' models are off the GPU again and its cache is empty.

    A pipeline does so itself only where it comes to its end, which a cancel prevents.
    """
    try:
        yield
    finally:
        for pipe in pipes:
            pipe.maybe_free_model_hooks()
        empty_cache(device)


def empty_cache(device: torch.device) -> None:
    """Give memory that no tensor holds back to the GPU."""
    import torch

    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def usable_bytes(device: torch.device) -> int:
    """GPU memory that this process holds or could take, in bytes; within its cap, if it has one."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    cap = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), cap)


def cap_memory(device: torch.device, size: int) -> None:
    """Let this process take `size` bytes of the GPU at most: it stands in for a smaller one.

    Raises RequestRejected when the GPU itself is smaller. What CUDA takes for itself, about half
    a GB, comes on top.
    """
    import torch

    _, total = torch.cuda.mem_get_info(device)
    if size > total:
        raise RequestRejected(
            f"this GPU has {total / GB:.1f} GB, which cannot stand in for {size / GB:.1f} GB"
        )
    torch.cuda.set_per_process_memory_fraction(size / total, device)


def check_shape(spec: ModelSpec, shot: Shot) -> None:
    """Raise RequestRejected for a size or a number of frames that the model does not make.

    The pipelines round such numbers down and go on: the video would not be the one ordered.
    """
    fits = not (shot.width % spec.grid or shot.height % spec.grid)
    if fits and shot.frames % spec.frame_step == 1:
        return
    raise RequestRejected(
        f"{spec.name} does not make {shot.frames} frames of {shot.width}x{shot.height}: sides are "
        f"multiples of {spec.grid}, and frames are a multiple of {spec.frame_step}, plus one."
    )


def plan_for(spec: ModelSpec, shot: Shot, device: torch.device) -> MemoryPlan:
    """The first of the model's plans that fits into the GPU's memory; a plan of its own on a CPU.

    Raises MemoryTooSmall when none fits.
    """
    return plan_within(spec, shot, usable_bytes(device)) if device.type == "cuda" else CPU_PLAN


def plan_within(spec: ModelSpec, shot: Shot, usable: int) -> MemoryPlan:
    """The first of the model's plans that fits into `usable` bytes; the log states it.

    Raises MemoryTooSmall when none fits.
    """
    tokens = tokens_of(shot.width, shot.height, shot.frames, frame_step=spec.frame_step)
    plan = choose(spec.plans, usable, tokens)
    log.info(
        "%s: plan %s takes %.1f of %.1f GB: %s",
        *(spec.name, plan.name, peak(plan, tokens) / GB, usable / GB, plan.description),
    )
    return plan


def say_plan(spec: ModelSpec, shot: Shot, device: torch.device) -> None:
    """State in the log how this host makes `shot`, the usual video of the model, or that it cannot.

    Smaller ones may fit: each is looked at when it comes.
    """
    if device.type != "cuda":
        log.warning("%s: there is no GPU here, so it runs on the CPU", spec.name)
        return
    try:
        plan_within(spec, shot, usable_bytes(device))
    except MemoryTooSmall as exc:
        size = f"{shot.seconds:.0f} s of {shot.width}x{shot.height}"
        log.warning("%s: its usual video, %s, does not fit: %s", spec.name, size, exc.message)


def run_planned(spec: ModelSpec, shot: Shot, device: torch.device, work: Work) -> Generated:
    """What `work` makes with the plan for this shot.

    Should the memory not suffice after all, once more with the next leaner plan, which the
    warnings of the result say. Raises MemoryTooSmall, before any work if no plan fits.
    """
    return run_with_fallback(spec.plans, plan_for(spec, shot, device), device, work)


def run_with_fallback(
    plans: Sequence[MemoryPlan], plan: MemoryPlan, device: torch.device, work: Work
) -> Generated:
    """What `work` makes with `plan` or, after it ran out of memory, with the next leaner one."""
    import torch

    try:
        return _named(work(plan), plan)
    except torch.OutOfMemoryError as exc:
        after = leaner(plans, plan)
        if after is None:
            raise _too_small(plan) from exc
    # Outside of the handler: the error holds the frames, and they hold what filled the memory.
    empty_cache(device)
    warning = f"The plan {plan.name} ran out of GPU memory; the video was made with {after.name}."
    log.warning("%s", warning)
    try:
        return _named(work(after), after, warning)
    except torch.OutOfMemoryError as exc:
        raise _too_small(after) from exc


def _named(generated: Generated, plan: MemoryPlan, *warnings: str) -> Generated:
    return replace(generated, plan=plan.name, warnings=(*warnings, *generated.warnings))


def _too_small(plan: MemoryPlan) -> MemoryTooSmall:
    return MemoryTooSmall(
        f"The GPU ran out of memory with the plan {plan.name}, and no leaner one is left. Ask for "
        "a shorter or a smaller video, or use a host with a larger GPU."
    )
