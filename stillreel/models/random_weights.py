"""Weights that are made up: a folder of any size that takes no disk, and the numbers at its load.

A hollow folder has the layout, the configurations and the names of a published one, so it is loaded
by the same code. Its weight files are holes, which read as zeros; zeros would be computed faster
than numbers are, so `load_part` fills what it loads from such a folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MARK = "RANDOM_WEIGHTS"
"""The file that tells a hollow folder from a published one."""
SPREAD = 0.02
"""Standard deviation of the numbers, small enough for the deepest network to stay finite."""
BLOCK = 1 << 24
"""So many numbers are drawn, then repeated: 19 billion of them would take minutes on a CPU."""


def save_hollow(folder: Path, pipeline: Any, networks: Mapping[str, Any]) -> None:
    """Write the folder of a pipeline, and of networks that may have no memory; bf16, on no disk."""
    folder.mkdir(parents=True)
    pipeline.save_config(folder)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    for name, network in networks.items():
        is_diffusers = hasattr(network, "save_config")
        save = network.save_config if is_diffusers else network.config.save_pretrained
        save(folder / name)
        file = "diffusion_pytorch_model.safetensors" if is_diffusers else "model.safetensors"
        _write_hollow(folder / name / file, network.state_dict())
    (folder / MARK).touch()


def is_hollow(folder: Path) -> bool:
    """Whether the weights of this folder are made up."""
    return (folder / MARK).is_file()


def fill(loaded: Any) -> None:
    """Give every network of a loaded part, or pipeline of parts, random weights, where they are."""
    import torch

    blocks: dict[torch.dtype, Tensor] = {}
    for network in _networks(loaded):
        for name, parameter in network.named_parameters():
            if parameter.ndim < 2:
                parameter.data.fill_(0 if name.endswith("bias") else 1)
            elif parameter.device.type == "cuda":
                parameter.data.normal_(std=SPREAD)
            else:
                if parameter.dtype not in blocks:
                    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
                    blocks[parameter.dtype] = (noise * SPREAD).to(parameter.dtype)
                # Not in place: that would read the file.
                parameter.data = _repeated(blocks[parameter.dtype], parameter)


def _networks(loaded: Any) -> Iterator[Any]:
    import torch

    parts: Iterable[Any] = getattr(loaded, "components", {}).values() or (loaded,)
    yield from (part for part in parts if isinstance(part, torch.nn.Module))


def _repeated(block: Tensor, like: Tensor) -> Tensor:
    import torch

    made = torch.empty(like.shape, dtype=like.dtype)
    for part in made.view(-1).split(len(block)):
        part.copy_(block[: len(part)])
    return made


def _write_hollow(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of holes, but for what has values: the few numbers of its buffers."""
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    values: dict[int, bytes] = {}
    end = 0
    for name, tensor in tensors.items():
        known = not tensor.is_meta
        begin, end = end, end + tensor.numel() * (4 if known else 2)
        kind = "F32" if known else "BF16"
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        if known:
            values[begin] = tensor.to(torch.float32).numpy().tobytes()
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + end)
        for offset, data in values.items():
            file.seek(start + offset)
            file.write(data)
