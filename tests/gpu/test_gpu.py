"""LTX-2 and WAN 2.2 in their real sizes: memory under caps, time over the floor, and behaviour."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stillreel.models.bench import case_of, measure
from stillreel.models.floors import measured_peak, peak_of
from stillreel.models.memory import GB
from stillreel.models.registry import MODELS
from stillreel.terminal import say
from tests.gpu.checks import check_cancel, check_decode, check_fallback, check_seed, loaded

pytestmark = [
    pytest.mark.filterwarnings("default"),  # drivers and kernels have warnings of their own
    pytest.mark.timeout(600),
]

WAN = MODELS["wan-2.2"]
BAR = 2.5
Cap = Callable[[float], None]
Record = Callable[[str, dict[str, Any]], None]


@pytest.fixture(scope="module")
def wan_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODEL_PATH with WAN 2.2 in its real size, which takes no disk."""
    from stillreel.models.architectures import build_real

    root = tmp_path_factory.mktemp("weights")
    build_real("wan-2.2", root / WAN.repo_id.rpartition("/")[2], preset="standard")
    return root


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / "home"))


SMALL = case_of(WAN, size=(256, 256), seconds=0.5, steps=3).shot


def test_the_seed_cancel_and_a_later_decode(gpu: Any, wan_path: Path, tmp_path: Path) -> None:
    with closing(loaded(WAN, wan_path)) as backend:
        made = check_seed(backend, SMALL)
        check_cancel(backend, SMALL, made)
    check_decode(WAN, wan_path, SMALL, made, tmp_path)


def test_a_real_shortage_of_memory_falls_back_to_a_leaner_plan(wan_path: Path, cap: Cap) -> None:
    """All of WAN 2.2 at once takes 24 GB, one by one 14."""
    cap(20)
    check_fallback(WAN, wan_path, SMALL)


@pytest.mark.parametrize(
    ("model", "preset", "gigabytes"),
    [
        ("wan-2.2", "fast", 24),
        ("wan-2.2", "fast", 40),
        ("wan-2.2", "fast", 0),
        ("ltx-2", "standard", 40),
        ("ltx-2", "standard", 24),
    ],
)
def test_five_seconds_fit_and_take_little_more_than_the_floor(
    gpu: Any, cap: Cap, record: Record, model: Any, preset: str, gigabytes: int
) -> None:
    import torch

    name = torch.cuda.get_device_name(gpu)
    peak = peak_of(name) or measured_peak(gpu)
    cap(gigabytes)
    case = case_of(MODELS[model], preset=preset)
    measured = measure(case, "random", repeat=1, tell=say)
    facts = measured.to_json(peak=peak, price=0)
    record(f"{model}-{gigabytes or 'all'}gb", {"cap_gb": gigabytes, **facts})
    if gigabytes:
        assert measured.runs[0].reserved <= gigabytes * GB
    assert not facts["warnings"], "the first plan did not suffice"
    assert measured.ratio(peak) <= BAR
