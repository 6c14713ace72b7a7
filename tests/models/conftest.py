"""The models' code on tiny networks with random weights, made on the spot; nothing is downloaded.

torch is imported inside functions, so that a machine without it can say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from pytest_socket import socket_allow_hosts

_LOOPBACK = ["127.0.0.1", "::1", "localhost"]


def pytest_runtest_setup() -> None:
    socket_allow_hosts(_LOOPBACK, allow_unix_socket=True)


@pytest.fixture(scope="session", autouse=True)
def torch_is_here(require: Callable[[str, bool], None]) -> None:
    """Without the extra `models` there is nothing to test."""
    packages = ("torch", "diffusers", "transformers", "accelerate", "ftfy", "peft")
    missing = [name for name in packages if find_spec(name) is None]
    require(f"the extra `models` ({', '.join(missing)})", not missing)


@pytest.fixture(scope="session", autouse=True)
def few_threads(torch_is_here: None) -> Iterator[None]:
    """Networks this small get slower with each thread more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def wan_folder(torch_is_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of WAN 2.2's layout, as the hub has it; do not write into it."""
    from stillreel.models import tiny_wan

    return tiny_wan.build(tmp_path_factory.mktemp("weights") / "Wan2.2-TI2V-5B-Diffusers")


@pytest.fixture(scope="session")
def ltx_folder(torch_is_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of LTX-2's layout, as the hub has it; do not write into it."""
    from stillreel.models import tiny_ltx2

    return tiny_ltx2.build(tmp_path_factory.mktemp("weights") / "LTX-2")


@pytest.fixture(scope="session")
def ltx25_folder(torch_is_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of LTX-2.5's layout, as the hub has it; do not write into it."""
    from stillreel.models import tiny_ltx2

    folder = tmp_path_factory.mktemp("weights") / "LTX-2.5-Diffusers"
    return tiny_ltx2.build(folder, layout="2.5", layers=30)
