"""The arithmetic of a video, counted on networks without memory, and what a GPU can do of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillreel.job import Shot
from stillreel.models.base import ModelSpec
from stillreel.models.ltx2_stages import STAGES, Stage, steps_of
from stillreel.models.weights import read_config

if TYPE_CHECKING:
    import torch

TERA = 1e12

PEAKS: Mapping[str, float] = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 790,
    "A100": 312,
    "A10G": 70,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""TFLOP/s in bf16, dense, by a part of the name that torch gives. From NVIDIA's data sheets, where
they give numbers with sparsity the half of them; A10G 70 is AWS' own; H200 790 is what our other
estimates take, less than the 989 of its sheet. A longer name goes before one that is part of it."""


@dataclass(frozen=True)
class Steps:
    """Denoising steps of one size."""

    count: int
    flops: float
    """Of one step."""


@dataclass(frozen=True)
class Work:
    """The floating-point operations of one video, without its prompt's."""

    denoise: tuple[Steps, ...]
    decode: float

    @property
    def denoise_flops(self) -> float:
        """Of all steps."""
        return sum(part.count * part.flops for part in self.denoise)

    @property
    def flops(self) -> float:
        """Of all of it."""
        return self.denoise_flops + self.decode


def peak_of(gpu: str) -> float | None:
    """TFLOP/s of the GPU that torch calls so; None where this is not known."""
    return next((peak for name, peak in PEAKS.items() if name in gpu), None)


def measured_peak(device: torch.device) -> float:
    """TFLOP/s that a large bf16 product of matrices reaches here: for a GPU that is not known."""
    import time

    import torch

    side, times = 8192, 20
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        torch.mm(left, left)
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        torch.mm(left, left)
    torch.cuda.synchronize(device)
    return 2 * side**3 * times / (time.perf_counter() - begin) / TERA


def work_of(spec: ModelSpec, shot: Shot, folder: Path) -> Work:
    """What `shot` takes on the networks of a pipeline folder, of which only the facts are read."""
    return {"wan-2.2": _wan, "ltx-2": _ltx}[spec.name](spec, shot, folder)


def _wan(spec: ModelSpec, shot: Shot, folder: Path) -> Work:
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    frames, height, width = (shot.frames - 1) // 4 + 1, shot.height // 16, shot.width // 16
    vae = _empty(AutoencoderKLWan, folder, "vae")
    latents = torch.empty(1, vae.config.z_dim, frames, height, width, device="meta")

    def forward(transformer: Any) -> float:
        text = torch.empty(1, 512, transformer.config.text_dim, device="meta")
        times = torch.empty(1, frames * height * width // 4, device="meta")
        return _count(
            lambda: transformer(hidden_states=latents, timestep=times, encoder_hidden_states=text)
        )

    def decode(count: int) -> float:
        return _count(lambda: vae.decode(latents[:, :, :count]))

    guided = 1 if spec.presets[shot.preset].steps_fixed else 2
    step = guided * _all_layers(WanTransformer3DModel, folder, forward)
    return Work((Steps(shot.steps, step),), _extended(decode, 2, frames))


def _ltx(_: ModelSpec, shot: Shot, folder: Path) -> Work:
    import torch
    from diffusers import AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel

    vae = _empty(AutoencoderKLLTX2Video, folder, "vae")
    stages = STAGES[shot.preset]
    frames, height, width = (shot.frames - 1) // 8 + 1, shot.height // 32, shot.width // 32

    def step(stage: Stage) -> float:
        def forward(transformer: Any) -> float:
            inputs = _ltx_inputs(transformer, shot, 2 if stage.half else 1)
            return _count(lambda: transformer(**inputs))

        return (4 if stage.guided else 1) * _all_layers(
            LTX2VideoTransformer3DModel, folder, forward
        )

    denoise = tuple(
        Steps(count, step(stage))
        for stage, count in zip(stages, steps_of(stages, shot.steps), strict=True)
    )
    latents = torch.empty(1, vae.config.latent_channels, frames, height, width, device="meta")
    return Work(denoise, _count(lambda: vae.decode(latents, None)))


def _ltx_inputs(transformer: Any, shot: Shot, share: int) -> dict[str, Any]:
    """A forward from an image, as the pipeline does it: each token has its own time."""
    import torch

    config = transformer.config
    frames = (shot.frames - 1) // 8 + 1
    height, width = shot.height // 32 // share, shot.width // 32 // share
    audio = round(shot.seconds * 25)
    tokens = frames * height * width
    wide = config.num_attention_heads * config.attention_head_dim
    narrow = config.audio_num_attention_heads * config.audio_attention_head_dim
    texts = (config.caption_channels,) * 2 if config.use_prompt_embeddings else (wide, narrow)
    empty = {
        "hidden_states": (1, tokens, config.in_channels),
        "audio_hidden_states": (1, audio, config.audio_in_channels),
        "encoder_hidden_states": (1, 1024, texts[0]),
        "audio_encoder_hidden_states": (1, 1024, texts[1]),
        "timestep": (1, tokens),
        "audio_timestep": (1,),
        "sigma": (1,),
        "video_coords": (1, 3, tokens, 2),
        "audio_coords": (1, 1, audio, 2),
    }
    inputs = {name: torch.empty(shape, device="meta") for name, shape in empty.items()}
    sizes = {"num_frames": frames, "height": height, "width": width, "audio_num_frames": audio}
    return {**inputs, **sizes, "fps": float(shot.fps)}


def _all_layers(kind: Any, folder: Path, count: Callable[[Any], float]) -> float:
    """What `count` would give for the folder's transformer, whose layers are all alike."""

    def with_layers(layers: int) -> float:
        return count(_empty(kind, folder, "transformer", num_layers=layers))

    return _extended(with_layers, 1, read_config(folder, "transformer")["num_layers"])


def _extended(count: Callable[[int], float], known: int, last: int) -> float:
    """What `count` gives for `last`, where each one after `known` adds the same."""
    if last <= known:
        return count(last)
    first = count(known)
    return first + (last - known) * (count(known + 1) - first)


def _empty(kind: Any, folder: Path, part: str, **changes: int) -> Any:
    import torch

    with torch.device("meta"):
        return kind.from_config({**read_config(folder, part), **changes}).eval()


def _count(forward: Callable[[], object]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        forward()
    return float(counter.get_total_flops())
