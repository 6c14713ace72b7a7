"""The parts of WAN 2.2 TI2V-5B: which of them are loaded, and where each lies in each phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from stillreel.errors import ModelUnavailable
from stillreel.models.base import ModelSpec
from stillreel.models.memory import MemoryPlan
from stillreel.models.torch_backend import dtype_on, empty_cache, pick_device
from stillreel.models.weights import find_weights, load_part, read_config
from stillreel.settings import InferenceSettings

Phase = Literal["text", "denoise", "decode"]

CHANNELS = 48
"""Of its latents; the other models of the family have 16 or 36, under the same class name."""

_ALL = frozenset({"text_encoder", "transformer", "vae"})
_ONE_BY_ONE: dict[Phase, frozenset[str]] = {
    "text": frozenset({"text_encoder", "vae"}),
    "denoise": frozenset({"transformer", "vae"}),
    "decode": frozenset({"vae"}),
}
PLACES: dict[str, dict[Phase, frozenset[str]]] = {
    "resident": {"text": _ALL, "denoise": _ALL, "decode": _ALL},
    "text-first": {
        "text": frozenset({"text_encoder", "transformer"}),
        "denoise": frozenset({"transformer", "vae"}),
        "decode": frozenset({"transformer", "vae"}),
    },
    "one-by-one": _ONE_BY_ONE,
    "tiled": _ONE_BY_ONE,
    "cpu": _ONE_BY_ONE,
}
"""What lies on the device in each phase of a plan. The rest waits in the memory of the host, but
for the text encoder, which is dropped and read again when there is a new prompt."""


class Wan22Weights:
    """The transformer of one preset at a time, the VAE, and the text encoder while it is needed."""

    def __init__(self, spec: ModelSpec, settings: InferenceSettings) -> None:
        self.device = pick_device()
        self.dtype = dtype_on(self.device)
        self._spec = spec
        self._settings = settings
        self._preset = ""
        self._folders: dict[str, Path] = {}
        self._parts: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._parts[name]

    def find_any(self) -> str:
        """The first preset whose weights are on this host; raises ModelUnavailable for none."""
        missing: list[ModelUnavailable] = []
        for name in self._spec.presets:
            try:
                self.folder_of(name)
            except ModelUnavailable as exc:
                missing.append(exc)
            else:
                return name
        raise missing[0]

    def folder_of(self, preset: str) -> Path:
        """The pipeline folder of a preset; raises ModelUnavailable for none, or another WAN's."""
        if preset in self._folders:
            return self._folders[preset]
        repo_id = self._spec.presets[preset].repo_id
        folder = find_weights(self._spec, self._settings, repo_id=repo_id)
        channels = read_config(folder, "transformer").get("in_channels")
        if channels != CHANNELS:
            raise ModelUnavailable(
                f"The weights found for the model {self._spec.name} are another WAN's: their "
                f"transformer takes {channels} channels, that of TI2V-5B {CHANNELS}. Run: "
                f"stillreel models pull {self._spec.name}, or set MODEL_PATH to the right folder."
            )
        return self._folders.setdefault(preset, folder)

    def use(self, preset: str) -> None:
        """Have the transformer of this preset in memory, and the VAE that all of them share."""
        if preset == self._preset:
            return
        import torch
        from diffusers import AutoencoderKLWan, WanTransformer3DModel

        folder = self.folder_of(preset)
        self._preset = ""
        self._parts.pop("transformer", None)
        empty_cache(self.device)
        self._parts["transformer"] = load_part(
            WanTransformer3DModel, folder, "transformer", torch_dtype=self.dtype
        )
        if "vae" not in self._parts:  # its authors run it in float32, whatever the rest runs in
            self._parts["vae"] = load_part(
                AutoencoderKLWan, folder, "vae", torch_dtype=torch.float32
            )
        self._preset = preset

    def use_text_encoder(self) -> Any:
        """The text encoder on the device, as a pipeline that can do nothing but encode."""
        from diffusers import WanPipeline
        from transformers import AutoTokenizer, UMT5EncoderModel

        folder = self._folders[self._preset]
        if "text_encoder" not in self._parts:
            # Straight onto the device: a host of 16 GB may hold the transformer at this time.
            self._parts["text_encoder"] = load_part(
                UMT5EncoderModel,
                folder,
                "text_encoder",
                dtype=self.dtype,
                device_map={"": self.device},
            )
        pipeline: Any = WanPipeline
        return pipeline(
            tokenizer=load_part(AutoTokenizer, folder, "tokenizer"),
            text_encoder=self._parts["text_encoder"],
            vae=None,
            scheduler=None,
        )

    def place(self, phase: Phase, plan: MemoryPlan) -> None:
        """Move what this phase needs onto the device, once the rest has left it."""
        here = PLACES[plan.name][phase]
        if "text_encoder" not in here:
            self._parts.pop("text_encoder", None)
        for name in self._parts.keys() - here:
            self._parts[name].to("cpu")
        empty_cache(self.device)
        for name in self._parts.keys() & here:
            self._parts[name].to(self.device)

    def close(self) -> None:
        """Drop everything."""
        self._parts.clear()
        self._preset = ""
        empty_cache(self.device)
