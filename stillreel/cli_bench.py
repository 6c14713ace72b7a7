"""`stillreel models bench`: seconds, GPU memory and US$ of videos on this machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from stillreel.errors import MemoryTooSmall, RequestRejected
from stillreel.terminal import JsonFlag, print_json, say

if TYPE_CHECKING:
    from stillreel.models.base import ModelSpec
    from stillreel.models.bench import Case, WeightsKind

CPU_NOTE = (
    "There is no GPU here: these are tiny networks on a CPU. They show that the code runs; their "
    "seconds say nothing about a GPU."
)
WEIGHTS = ("auto", "real", "random")


def bench_models(
    model: Annotated[list[str] | None, typer.Option(help="Repeat it for several.")] = None,
    preset: Annotated[list[str] | None, typer.Option(help="Repeat it for several.")] = None,
    size: Annotated[list[str] | None, typer.Option(help="As 1280x704; repeat it.")] = None,
    plan: Annotated[list[str] | None, typer.Option(help="A memory plan to force.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=30, help="Of video; 0.7 on a CPU.")] = 5.0,
    steps: Annotated[int, typer.Option(min=0, help="Denoising steps; 0: the preset's.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Videos that count; one warms up.")] = 3,
    price: Annotated[float, typer.Option(min=0, help="US$ an hour; 0: STILLREEL_HOST_PRICE.")] = 0,
    memory_cap: Annotated[
        float, typer.Option(min=0, help="GB of the GPU to use, so that it stands in for a smaller.")
    ] = 0,
    weights: Annotated[str, typer.Option(help=f"One of: {', '.join(WEIGHTS)}.")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Measure videos on this machine's GPU: no weights are needed, random ones take as long.

    Example: stillreel models bench --model ltx-2 --memory-cap 40 --price 0.66
    """
    from stillreel.models.bench import measure
    from stillreel.models.memory import GB
    from stillreel.models.torch_backend import cap_memory, pick_device
    from stillreel.settings import get_settings

    if weights not in WEIGHTS:
        raise RequestRejected(f"--weights is one of: {', '.join(WEIGHTS)}")
    device = pick_device()
    on_gpu = device.type == "cuda"
    if memory_cap and not on_gpu:
        raise RequestRejected("--memory-cap needs a GPU; there is none here")
    if memory_cap:
        cap_memory(device, int(memory_cap * GB))
    cases = list(_cases(model, preset, size, plan, seconds, steps, on_gpu=on_gpu))
    say(CPU_NOTE if not on_gpu else "With random weights, loading includes making them.")
    price = (price or get_settings().host.host_price) if on_gpu else 0.0
    here = describe_machine(memory_cap)
    rows: list[dict[str, Any]] = []
    for case in cases:
        try:
            measured = measure(case, cast("WeightsKind", weights), repeat=repeat, tell=say)
        except MemoryTooSmall as exc:
            say(f"{case.spec.name}: {exc.message}")
            rows.append({"model": case.spec.name, "plan": case.plan, "error": exc.message})
        else:
            rows.append(measured.to_json(peak=here["peak_tflops"], price=price))
    if as_json:
        print_json({"machine": here, "usd_per_hour": price, "results": rows})
    else:
        print_table(here, rows)
    if all("error" in row for row in rows):
        raise typer.Exit(1)


def describe_machine(memory_cap: float = 0) -> dict[str, Any]:
    """The GPU, its peak and where that is from, the versions, and when it was.

    The peak of a GPU that is not in the table is measured, which takes some seconds.
    """
    import diffusers
    import torch

    from stillreel.models.floors import measured_peak, peak_of
    from stillreel.models.memory import GB
    from stillreel.models.torch_backend import pick_device

    device = pick_device()
    gpu, memory, peak, source = "", 0.0, None, ""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        gpu, memory, peak, source = (
            facts.name,
            facts.total_memory / GB,
            peak_of(facts.name),
            "table",
        )
        if peak is None:
            peak, source = measured_peak(device), "measured here: a bf16 product of 8192x8192"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "gpu": gpu,
        "gpu_gb": round(memory, 1),
        "memory_cap_gb": memory_cap or None,
        "peak_tflops": peak,
        "peak_source": source,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def print_table(here: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print rows of `Measured.to_json` for a person, on stdout."""
    gpu = f"{here['gpu']} {here['gpu_gb']} GB" if here["gpu"] else "CPU, tiny networks"
    cap = f", capped at {here['memory_cap_gb']:g} GB" if here["memory_cap_gb"] else ""
    peak = f", {here['peak_tflops']:.0f} TFLOP/s ({here['peak_source']})" if here["gpu"] else ""
    title = f"{here['date']}, {gpu}{cap}{peak}, torch {here['torch']}, {here['cpu']}"
    table = Table(
        "model", "plan", "size", "weights", "load s", "text s", "s/step", "denoise s", "decode s",
        "video s", "GB tensors/torch/GPU", "x floor", "US$", title=title, title_justify="left",
    )  # fmt: skip
    for row in rows:
        if "error" in row:
            table.add_row(row["model"], row["plan"], row["error"])
            continue
        sizes = ("allocated_bytes", "reserved_bytes", "taken_bytes")
        table.add_row(
            f"{row['model']} {row['preset']}",
            row["plan"],
            f"{row['width']}x{row['height']}x{row['frames']}",
            row["weights"],
            *(f"{row[name]:.2f}" for name in ("load_seconds", "text_seconds")),
            ", ".join(f"{value:.3g}" for value in row["step_seconds"]),
            *(f"{row[f'{name}_seconds']:.2f}" for name in ("denoise", "decode", "video")),
            "/".join(f"{row[name] / 1e9:.1f}" for name in sizes) if here["gpu"] else "",
            f"{row['ratio']:.2f}" if row["ratio"] else "",
            f"{row['usd']:.4f}" if row["usd"] is not None else "",
        )
    Console(width=None if Console().is_terminal else 200).print(table)


def _cases(
    models: list[str] | None,
    presets: list[str] | None,
    sizes: list[str] | None,
    plans: list[str] | None,
    seconds: float,
    steps: int,
    *,
    on_gpu: bool,
) -> Iterator[Case]:
    """Every combination of what was asked for; tiny where there is no GPU."""
    from stillreel.models.architectures import NETWORKS
    from stillreel.models.bench import TINY_SECONDS, TINY_SIZE, case_of
    from stillreel.models.registry import get_model

    asked = models or list(NETWORKS)
    specs: list[ModelSpec] = [get_model(name) for name in asked]
    for spec in specs:
        if spec.name not in NETWORKS:
            raise RequestRejected(
                f"{spec.name} cannot be measured; choose one of: {', '.join(NETWORKS)}"
            )
        for preset in presets or [""]:
            for plan in plans or [""]:
                for size in sizes or [""]:
                    default = spec.default_size if on_gpu else TINY_SIZE
                    yield case_of(
                        spec,
                        preset=preset,
                        size=_size(size) if size else default,
                        seconds=seconds if on_gpu else min(seconds, TINY_SECONDS),
                        steps=steps,
                        plan=plan,
                    )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise RequestRejected(f"--size is a width and a height, as 1280x704, not {text[:40]!r}")
    return int(width), int(height)
