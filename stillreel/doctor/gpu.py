"""The GPU of this machine: its name, memory and driver, and whether torch can use it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from stillreel.doctor.finding import Finding, failed, ok, skipped, warning

TOOL_SECONDS = 20.0
"""For the driver's tool, which wakes a sleeping GPU first."""
TORCH_SECONDS = 40.0
_QUERY = [
    "nvidia-smi",
    "--query-gpu=name,memory.total,driver_version",
    "--format=csv,noheader,nounits",
]
_TORCH = """
import json, torch
print(json.dumps([torch.__version__, torch.version.cuda or "", torch.cuda.is_available()]))
"""


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver tells of it; memory in bytes."""

    name: str
    memory: int
    driver: str


def look_at_gpu() -> Iterator[Finding]:
    """The GPU, and torch where there is one; a machine without one is whole too."""
    found, trouble = find_gpus()
    if trouble:
        yield failed(
            "GPU", trouble, "install NVIDIA's driver again; in a container give --gpus all"
        )
        return
    if not found:
        yield skipped("GPU", "none of NVIDIA's here; the models preview and remote need none")
        return
    for gpu in found:
        yield ok("GPU", f"{gpu.name}, {gpu.memory / 1e9:.1f} GB, driver {gpu.driver}")
    yield _torch(found[0])


def find_gpus() -> tuple[list[Gpu], str]:
    """The GPUs of this machine, and what is wrong with their driver."""
    try:
        done = subprocess.run(
            _QUERY, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False
        )
    except FileNotFoundError:
        return [], ""
    except (OSError, subprocess.TimeoutExpired) as exc:
        return [], f"nvidia-smi gives no answer ({type(exc).__name__})"
    said = " ".join((done.stdout + done.stderr).split())[:200]
    if done.returncode != 0:
        return [], f"nvidia-smi ends with {done.returncode}: {said}"
    try:
        return [_gpu(line) for line in done.stdout.splitlines() if line.strip()], ""
    except ValueError:
        return [], f"nvidia-smi says something else than asked: {said}"


def _gpu(line: str) -> Gpu:
    name, mebibytes, driver = (part.strip() for part in line.rsplit(",", 2))
    return Gpu(name.removeprefix("NVIDIA "), int(mebibytes) * 1024**2, driver)


def _torch(gpu: Gpu) -> Finding:
    """Asked in a process of its own: a driver that hangs takes its caller along."""
    install = "pip install -c constraints.txt 'stillreel[models]', a build of torch for CUDA"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH],
            capture_output=True, text=True, timeout=TORCH_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        fix = "restart the machine; if that does not help, install NVIDIA's driver again"
        return failed("torch", f"does not come up within {TORCH_SECONDS:g} s", fix)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
        return warning("torch", f"cannot be imported ({last}); AI models cannot run here", install)
    name, cuda, available = json.loads(done.stdout)
    if not cuda:
        return failed("torch", f"{name} is a build for the CPU, beside a {gpu.name}", install)
    if not available:
        fix = f"install a driver that CUDA {cuda} takes; it is {gpu.driver} now"
        return failed("torch", f"{name} for CUDA {cuda} does not see the {gpu.name}", fix)
    return ok("torch", f"{name} for CUDA {cuda} sees the GPU")
