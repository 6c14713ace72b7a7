"""What a model takes on this machine: seconds by phase, GPU memory, and how far from the least.

It runs through the backends that jobs run through, with real weights or with made-up ones: time and
memory do not depend on the numbers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from stillreel.errors import RequestRejected
from stillreel.job import ModelName, Phase, Shot, frames_for
from stillreel.models.architectures import build_real, build_tiny
from stillreel.models.base import Backend, ModelSpec
from stillreel.models.floors import TERA, Work, work_of
from stillreel.models.registry import load_backend
from stillreel.models.torch_backend import pick_device
from stillreel.models.weights import find_weights, has_weights, is_hollow
from stillreel.receipt import cost_usd
from stillreel.scene import draw_scene
from stillreel.settings import InferenceSettings, get_settings

if TYPE_CHECKING:
    import torch

WeightsKind = Literal["auto", "real", "random"]
TINY_SIZE = (128, 64)
TINY_SECONDS = 0.7

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """A video to measure."""

    spec: ModelSpec
    shot: Shot
    plan: str = ""
    """The memory plan to use; empty: the one that a job would get."""


@dataclass
class Run:
    """What one video took."""

    seconds: dict[Phase, float] = field(default_factory=dict[Phase, float])
    """By phase; `load` is what was loaded in between, of a new plan or preset."""
    steps: list[float] = field(default_factory=list[float])
    """Seconds of each denoising step."""
    allocated: int = 0
    """The most bytes that tensors took on the GPU; `reserved`: that torch held for them."""
    reserved: int = 0
    taken: int = 0
    """The most bytes of the GPU that were in use, less what was before the model was loaded."""
    plan: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def video(self) -> float:
        """Seconds of the whole, but for loading."""
        return sum(value for phase, value in self.seconds.items() if phase is not Phase.LOAD)


@dataclass(frozen=True)
class Measured:
    """A case and its runs; the first one warms up and does not count."""

    case: Case
    weights: str
    """real, random, or tiny."""
    load_seconds: float
    first: Run
    runs: Sequence[Run]
    work: Work

    def seconds(self, phase: Phase) -> float:
        """The median of a phase."""
        if phase is Phase.LOAD:
            return self.load_seconds + self.first.seconds.get(phase, 0.0)
        return median(run.seconds.get(phase, 0.0) for run in self.runs)

    @property
    def video(self) -> float:
        """Seconds of a video with a new prompt on a loaded model; the median."""
        return median(run.video for run in self.runs)

    @property
    def steps(self) -> list[float]:
        """Seconds of a step of each stage; medians."""
        found, begin = list[float](), 0
        for stage in self.work.denoise:
            end = begin + stage.count
            found.append(median(s for run in self.runs for s in run.steps[begin:end]))
            begin = end
        return found

    def ratio(self, peak: float) -> float:
        """Denoising and decoding over the least that a GPU of `peak` TFLOP/s needs for them."""
        took = self.seconds(Phase.DENOISE) + self.seconds(Phase.DECODE)
        return took * peak * TERA / self.work.flops

    def denoise_ratio(self, peak: float) -> float:
        """The same of denoising alone; decoders may compute in more than bf16."""
        return self.seconds(Phase.DENOISE) * peak * TERA / self.work.denoise_flops

    def to_json(self, *, peak: float | None, price: float) -> dict[str, object]:
        """All of it as plain data; bytes are the most of the counted runs, 0 without a GPU."""
        shot, runs = self.case.shot, self.runs
        return {
            "model": shot.model,
            "preset": shot.preset,
            "plan": runs[-1].plan,
            "weights": self.weights,
            "width": shot.width,
            "height": shot.height,
            "frames": shot.frames,
            "steps": shot.steps,
            "repeats": len(runs),
            "load_seconds": self.seconds(Phase.LOAD),
            "text_seconds": self.seconds(Phase.TEXT),
            "denoise_seconds": self.seconds(Phase.DENOISE),
            "decode_seconds": self.seconds(Phase.DECODE),
            "step_seconds": self.steps,
            "video_seconds": self.video,
            "first_video_seconds": self.first.video,
            "allocated_bytes": max(run.allocated for run in (self.first, *runs)),
            "reserved_bytes": max(run.reserved for run in (self.first, *runs)),
            "taken_bytes": max(run.taken for run in (self.first, *runs)),
            "tflop": self.work.flops / TERA,
            "floor_seconds": self.work.flops / (peak * TERA) if peak else None,
            "ratio": self.ratio(peak) if peak else None,
            "denoise_ratio": self.denoise_ratio(peak) if peak else None,
            "usd": cost_usd(self.video, price) if price else None,
            "warnings": sorted({text for run in (self.first, *runs) for text in run.warnings}),
        }


def case_of(
    spec: ModelSpec,
    *,
    preset: str = "",
    size: tuple[int, int] | None = None,
    seconds: float = 5.0,
    steps: int = 0,
    plan: str = "",
) -> Case:
    """A case in the numbers of an order; the size is rounded up to the model's grid.

    Raises RequestRejected for a preset, a number of steps or a plan that the model does not have.
    """
    preset = preset or next(iter(spec.presets))
    if preset not in spec.presets:
        raise RequestRejected(f"{spec.name} has no preset {preset}: {', '.join(spec.presets)}.")
    facts = spec.presets[preset]
    if facts.steps_fixed and steps not in (0, facts.steps):
        raise RequestRejected(f"The preset {preset} of {spec.name} takes {facts.steps} steps.")
    names = [known.name for known in spec.plans]
    if plan and plan not in names:
        raise RequestRejected(f"{spec.name} has no memory plan {plan}: {', '.join(names)}.")
    width, height = (-(-side // spec.grid) * spec.grid for side in size or spec.default_size)
    shot = Shot(
        model=spec.name,
        model_version=spec.version,
        preset=preset,
        prompt="a lake at dawn, the camera moves slowly forward",
        negative_prompt="",
        width=width,
        height=height,
        crop_width=width,
        crop_height=height,
        fps=spec.fps[0],
        frames=frames_for(seconds, spec.fps[0], spec.frame_step),
        steps=steps or facts.steps,
        seed=1,
        audio=spec.audio,
    )
    return Case(spec, shot, plan)


@contextmanager
def weights_for(case: Case, kind: WeightsKind) -> Iterator[tuple[InferenceSettings, str]]:
    """Settings that find weights for this case, and what they are: real, random or tiny.

    `auto` takes real ones where they are; else there are random ones of the real size on a GPU,
    tiny ones on a CPU. Raises ModelUnavailable for real ones that are not here.
    """
    settings = get_settings().inference
    repo_id = case.spec.presets[case.shot.preset].repo_id or case.spec.repo_id
    if kind == "real" or (kind == "auto" and _is_here(case, settings, repo_id)):
        find_weights(case.spec, settings, repo_id=repo_id)
        yield settings, "real"
        return
    name: ModelName = case.spec.name
    with TemporaryDirectory(prefix="stillreel-bench-") as root:
        folder = Path(root) / repo_id.rpartition("/")[2]
        if pick_device().type == "cuda":
            build_real(name, folder, preset=case.shot.preset)
        else:
            build_tiny(name, folder)
        yield (
            settings.model_copy(update={"model_path": root}),
            ("random" if is_hollow(folder) else "tiny"),
        )


def measure(case: Case, kind: WeightsKind, *, repeat: int, tell: Tell) -> Measured:
    """Load the model, make one video to warm up, then `repeat` that count, each of a new prompt.

    Raises what jobs raise, MemoryTooSmall among it.
    """
    with weights_for(case, kind) as (settings, weights), _own_home():
        spec = _forced(case)
        repo_id = spec.presets[case.shot.preset].repo_id
        tell(f"{spec.name}: counting, on {weights} weights")
        work = work_of(spec, case.shot, find_weights(spec, settings, repo_id=repo_id))
        meter = Meter(pick_device())
        tell(f"{spec.name}: loading")
        with closing(load_backend(spec, settings)) as backend:
            begin = time.perf_counter()
            backend.load()
            load_seconds = time.perf_counter() - begin
            runs: list[Run] = []
            for number in range(repeat + 1):
                tell(f"{spec.name}: video {number} of {repeat}" + ("" if number else ", warm-up"))
                prompt = f"{case.shot.prompt}, take {number}"
                shot = case.shot.model_copy(update={"prompt": prompt})
                runs.append(run_once(backend, shot, meter))
        return Measured(case, weights, load_seconds, runs[0], runs[1:], work)


def run_once(backend: Backend, shot: Shot, meter: Meter) -> Run:
    """One video from a drawn image, to frames in the host's memory; what it took."""
    image = draw_scene(shot.width, shot.height, seed=1).convert("RGB")
    meter.reset()
    begin = time.perf_counter()
    generated = backend.generate(shot, image, meter.on_step)
    made = time.perf_counter()
    decoded = backend.decode(shot, generated.arrays)
    for _ in decoded.chunks:
        meter.sample()
    end = time.perf_counter()
    seconds = {Phase(name): value for name, value in generated.seconds.items()}
    # What lies between the phases belongs to denoising, whose parts are made ready there.
    rest = made - begin - sum(seconds.values())
    seconds[Phase.DENOISE] += max(0.0, rest)
    seconds[Phase.DECODE] = end - made
    warnings = (*generated.warnings, *decoded.warnings)
    return replace(meter.run, seconds=seconds, plan=generated.plan, warnings=warnings)


class Meter:
    """Looks at the clock and at the GPU's memory after each step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._before = self._in_use()
        self.run = Run()
        self._at = 0.0

    def reset(self) -> None:
        """Begin a run."""
        import torch

        self.run = Run()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)

    def on_step(self, phase: Phase, step: int, steps: int) -> None:  # noqa: ARG002 - it is a port
        """An OnStep that only looks."""
        import torch

        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if phase is Phase.DENOISE and step > 0:
            self.run.steps.append(now - self._at)
        self._at = now
        self.sample()

    def sample(self) -> None:
        """See how much of the GPU is in use now, and the most that torch has taken so far."""
        import torch

        if self._on_gpu:
            run, device = self.run, self._device
            run.taken = max(run.taken, self._in_use() - self._before)
            run.allocated = torch.cuda.max_memory_allocated(device)
            run.reserved = torch.cuda.max_memory_reserved(device)

    def _in_use(self) -> int:
        import torch

        if not self._on_gpu:
            return 0
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


def _is_here(case: Case, settings: InferenceSettings, repo_id: str) -> bool:
    only = replace(case.spec, presets={case.shot.preset: case.spec.presets[case.shot.preset]})
    return bool(repo_id) and has_weights(only, settings)


def _forced(case: Case) -> ModelSpec:
    """The spec with the plan of this case alone, tried whatever it is said to take."""
    plans = case.spec.plans
    if case.plan:
        plans = tuple(
            replace(plan, resident_bytes=0, bytes_per_token=1, decode_bytes=0, text_bytes=0)
            for plan in plans
            if plan.name == case.plan
        )
    return replace(case.spec, plans=plans)


@contextmanager
def _own_home() -> Iterator[None]:
    """Prompts as made-up weights read them must never come to a job."""
    before = os.environ.get("STILLREEL_HOME")
    with TemporaryDirectory(prefix="stillreel-bench-") as home:
        os.environ["STILLREEL_HOME"] = home
        get_settings.cache_clear()
        try:
            yield
        finally:
            if before is None:
                del os.environ["STILLREEL_HOME"]
            else:
                os.environ["STILLREEL_HOME"] = before
            get_settings.cache_clear()
