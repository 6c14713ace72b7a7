"""The real architectures with random weights on a real GPU: `make test-gpu`.

Not part of `make test`. On an H100 it should take about eight minutes (estimated, not measured).
With GPU_RESULTS set to a folder, each measurement is also written there as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillreel.models.memory import GB
from stillreel.terminal import say


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Any:
    """The first GPU; without one there is nothing to see here."""
    torch = pytest.importorskip("torch", reason="needs the extra `models`")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA, which this machine does not have")
    return torch.device("cuda:0")


@pytest.fixture
def cap(gpu: Any) -> Iterator[Callable[[float], None]]:
    """`cap(24)` lets this process take 24 GB of the GPU until the test ends; 0 is all of it."""
    import gc

    import torch

    from stillreel.models.torch_backend import cap_memory

    def set_cap(gigabytes: float) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info(gpu)
        cap_memory(gpu, int(gigabytes * GB) or total)

    yield set_cap
    set_cap(0)


@pytest.fixture(scope="session")
def record() -> Callable[[str, dict[str, Any]], None]:
    """`record(name, facts)` prints facts and, with GPU_RESULTS, writes them to NAME.json."""
    from stillreel.cli_bench import describe_machine

    machine = describe_machine()
    folder = os.environ.get("GPU_RESULTS")

    def keep(name: str, facts: dict[str, Any]) -> None:
        text = json.dumps({"machine": machine, **facts}, indent=2)
        say(f"{name}: {text}")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.json").write_text(text)

    return keep
