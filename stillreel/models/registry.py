"""The models this project knows, and the way to the code that runs one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

from stillreel.errors import ModelUnavailable
from stillreel.job import ModelName
from stillreel.models import ltx2_plans
from stillreel.models.base import Backend, ModelSpec, Preset, Repository
from stillreel.models.ltx2_layouts import LORA
from stillreel.models.ltx2_weights import PARTS, UPSAMPLER
from stillreel.models.memory import MemoryPlan
from stillreel.settings import InferenceSettings


def _files(*parts: str) -> tuple[str, ...]:
    """Of a pipeline folder, what `from_pretrained` reads of these parts, and the licence."""
    return ("model_index.json", "LICENSE*", "tokenizer/*", *_weights(*parts))


def _weights(*parts: str) -> tuple[str, ...]:
    return tuple(f"{part}/*.{kind}" for part in parts for kind in ("json", "safetensors"))


WAN_FILES = _files("scheduler", "text_encoder", "transformer", "vae")
NEWER_LTX_FILES = tuple(
    # beside the shards lie the same connectors once more, in one file
    "connectors/*-of-*.safetensors" if pattern == "connectors/*.safetensors" else pattern
    for pattern in _files(*PARTS)
)
LTX_2 = ModelSpec(
    name="ltx-2",
    title="LTX-2 (video with audio)",
    version="ltx-2-19b-3",
    repo_id="Lightricks/LTX-2",
    licence="LTX-2 Community License",
    default_size=(1920, 1080),
    grid=64,  # two stages: the first at half the size, itself a multiple of 32
    frame_step=8,
    fps=(24, 25, 30),
    max_seconds=30.0,
    native_seconds=20.0,  # as far as its positions reach (pos_embed_max_pos of its transformer)
    presets={
        "standard": Preset(
            11, "Distilled, two stages: 8 steps at half size and 3 at full.", steps_fixed=True
        ),
        "one-stage": Preset(8, "Distilled, 8 steps at full size.", steps_fixed=True),
        "dev": Preset(40, "The full weights with the official guidance: 4 times the work."),
        "dev-two-stage": Preset(
            43,
            "40 guided steps at half size, then 3 distilled ones at full.",
            steps_fixed=True,
        ),
    },
    text_to_video=True,
    audio=True,
    stall_seconds=600.0,
    backend="stillreel.models.ltx2:Ltx2Backend",
    min_side=256,
    suggested=((1280, 720), (1920, 1080), (2560, 1440), (3840, 2160)),
    max_pixels=3840 * 2176,
    pipelines=("LTX2Pipeline", "LTX2ImageToVideoPipeline"),
    repositories=(
        Repository(
            "Lightricks/LTX-2",
            "LTX-2 Community License, and the Gemma Terms for its text encoder",
            # beside the folders lie the same weights once more, in single files
            files=(*_files(*PARTS, UPSAMPLER), LORA),
            revision="47da56e2ad66ce4125a9922b4a8826bf407f9d0a",
        ),
    ),
    plans=ltx2_plans.PLANS,
)
LTX_2_3 = replace(
    LTX_2,
    name="ltx-2.3",
    title="LTX-2.3 (video with audio)",
    version="ltx-2.3-22b-1",
    repo_id="diffusers/LTX-2.3-Distilled-Diffusers",
    presets={
        "standard": replace(
            LTX_2.presets["standard"], beside=("dg845/LTX-2.3-Spatial-Upsampler-Diffusers",)
        ),
        "one-stage": LTX_2.presets["one-stage"],
        "dev": replace(LTX_2.presets["dev"], steps=30, repo_id="diffusers/LTX-2.3-Diffusers"),
    },
    repositories=(
        Repository(
            "diffusers/LTX-2.3-Distilled-Diffusers",
            "LTX-2 Community License, and the Gemma Terms for its text encoder",
            files=NEWER_LTX_FILES,
            revision="432e0d3c2d1769aaa4d295f9243f7062bf6b47ee",
        ),
        Repository(
            "diffusers/LTX-2.3-Diffusers",
            "LTX-2 Community License, and the Gemma Terms for its text encoder",
            files=NEWER_LTX_FILES,
            revision="8eee8edcf067e838b843f926ec4d4cc9b2be1aaf",
        ),
        Repository(
            "dg845/LTX-2.3-Spatial-Upsampler-Diffusers",
            "LTX-2 Community License",
            files=("model_index.json", "LICENSE*", *_weights(UPSAMPLER)),
            pipelines=("LTX2LatentUpsamplePipeline",),
        ),
    ),
    plans=ltx2_plans.NEWER_PLANS,
)
LTX_2_5 = replace(
    LTX_2,
    name="ltx-2.5",
    title="LTX-2.5 (video with audio)",
    version="ltx-2.5-22b-1",
    repo_id="Lightricks/LTX-2.5-Diffusers",
    licence="LTX-2.x Community License",
    presets={
        "standard": LTX_2.presets["standard"],
        "one-stage": LTX_2.presets["one-stage"],
        "dev": replace(LTX_2.presets["dev"], steps=30, files=_weights("transformer_full")),
    },
    repositories=(
        Repository(
            "Lightricks/LTX-2.5-Diffusers",
            "LTX-2.x Community License, and the Gemma Terms for its text encoder",
            files=(*NEWER_LTX_FILES, *_weights(UPSAMPLER)),
            revision="426936f8b22dc28e4def61e515478b0b7e4a53cc",
            gate="accept its terms",
        ),
    ),
    plans=ltx2_plans.NEWER_PLANS,
)

MODELS: dict[ModelName, ModelSpec] = {
    "preview": ModelSpec(
        name="preview",
        title="Preview (camera move, no AI)",
        version="preview-1",
        repo_id="",
        licence="Apache-2.0",
        default_size=(1280, 720),
        grid=2,
        frame_step=1,
        fps=(24, 25, 30, 50, 60),
        max_seconds=30.0,
        presets={"standard": Preset(8, "A camera move over the image; the steps are for show.")},
        text_to_video=True,
        audio=False,
        stall_seconds=120.0,
        backend="stillreel.models.preview:PreviewBackend",
        min_side=16,
        oversample=1.5,
        reads_prompt=False,
    ),
    "wan-2.2": ModelSpec(
        name="wan-2.2",
        title="WAN 2.2 TI2V-5B",
        version="wan-2.2-ti2v-5b-1",
        repo_id="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        licence="Apache-2.0",
        default_size=(1280, 704),
        grid=32,
        frame_step=4,
        fps=(24,),
        max_seconds=5.0,
        presets={
            "standard": Preset(50, "The official settings: 50 steps with guidance 5."),
            "fast": Preset(
                3,
                "The distilled weights FastWan2.2-TI2V-5B-FullAttn, without guidance.",
                steps_fixed=True,
                repo_id="FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers",
            ),
        },
        text_to_video=True,
        audio=False,
        stall_seconds=600.0,
        backend="stillreel.models.wan22:Wan22Backend",
        sizes=((1280, 704), (704, 1280)),
        min_side=256,
        pipelines=("WanPipeline", "WanImageToVideoPipeline", "WanDMDPipeline"),
        repositories=(
            Repository(
                "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
                "Apache-2.0",
                files=WAN_FILES,
                revision="b8fff7315c768468a5333511427288870b2e9635",
                gate="none",
            ),
            Repository(
                "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers",
                "Apache-2.0",
                files=WAN_FILES,
                revision="3e187042a324f6f5fb68fd22110a78725253de8f",
            ),
        ),
        # Derived, not yet measured: transformer 10.0 GB, VAE 2.8 in float32, text encoder 11.4;
        # the rest counted on the shapes of the real layers: 6.2 for a forward of 27280 tokens,
        # 19.4 for decoding a latent frame of 1280x704, 0.8 for a prompt; a tenth on top.
        plans=(
            MemoryPlan(
                "resident",
                "Everything stays on the GPU.",
                resident_bytes=24_200_000_000,
                bytes_per_token=250_000,
                decode_bytes=45_600_000_000,
                text_bytes=25_100_000_000,
            ),
            MemoryPlan(
                "text-first",
                "The text encoder is on the GPU for new prompts only.",
                resident_bytes=12_800_000_000,
                bytes_per_token=250_000,
                decode_bytes=34_200_000_000,
                text_bytes=22_300_000_000,
            ),
            MemoryPlan(
                "one-by-one",
                "The transformer makes room for the text encoder and for decoding.",
                resident_bytes=12_800_000_000,
                bytes_per_token=250_000,
                decode_bytes=23_500_000_000,
                text_bytes=15_100_000_000,
            ),
            MemoryPlan(
                "tiled",
                "As one-by-one, and decodes in blended tiles.",
                resident_bytes=12_800_000_000,
                bytes_per_token=250_000,
                decode_bytes=9_000_000_000,
                text_bytes=15_100_000_000,
            ),
        ),
    ),
    "ltx-2": LTX_2,
    "ltx-2.3": LTX_2_3,
    "ltx-2.5": LTX_2_5,
    "remote": ModelSpec(
        name="remote",
        title="Remote (a video server elsewhere)",
        version="remote-1",
        repo_id="",
        licence="that of the server's model",
        default_size=(1280, 720),
        grid=2,
        frame_step=1,
        fps=(24, 16, 25, 30),
        max_seconds=30.0,
        presets={
            "standard": Preset(
                100, "As the server does it; the steps are its percent.", steps_fixed=True
            )
        },
        text_to_video=True,
        audio=True,
        stall_seconds=1800.0,  # a silent server works on one video, or on those before it
        backend="stillreel.models.remote:RemoteBackend",
        elsewhere=True,
    ),
}
"""All models by name. The first preset and the first fps of a model are its defaults.

The commits that weights are taken from are those that other public projects name for them, at least
two each; they have not been fetched for this project yet (docs/models.md). For one none was found.
"""


def get_model(name: str) -> ModelSpec:
    """The facts of the model called `name`; raises ModelUnavailable naming the known ones."""
    if name not in MODELS:
        raise ModelUnavailable(
            f"There is no model {name[:40]!r}; choose one of: {', '.join(MODELS)}."
        )
    return MODELS[name]


def configured(spec: ModelSpec, settings: InferenceSettings) -> ModelSpec:
    """`spec` as this host runs it: what is elsewhere has the server's model in its version.

    So nobody is given the stored latents of another server, and a receipt says which it was.
    """
    if not spec.elsewhere:
        return spec
    chosen = (settings.remote_url, settings.remote_shape, settings.remote_model)
    text = json.dumps([*chosen, settings.remote_parameters], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return replace(spec, version=f"{spec.version}:{settings.remote_model or 'default'}:{digest}")


def load_backend(spec: ModelSpec, settings: InferenceSettings) -> Backend:
    """A backend of `spec`, made but not loaded; its module is imported here and nowhere else.

    Raises ModelUnavailable when this installation lacks the module or something it imports.
    """
    module, _, name = spec.backend.partition(":")
    if not is_available(spec):
        here = [other.name for other in MODELS.values() if is_available(other)]
        raise ModelUnavailable(
            f"The code of the model {spec.name} is not part of this installation, which has: "
            f"{', '.join(here)}. Install a release with it and its extra: "
            "pip install 'stillreel[models]'."
        )
    try:
        backend = getattr(import_module(module), name)
    except ImportError as exc:
        raise ModelUnavailable(
            f"The model {spec.name} needs the Python package {exc.name or 'of its own'!r}, which "
            "cannot be imported here. Install the extra: pip install 'stillreel[models]'."
        ) from exc
    return backend(spec, settings)


def is_available(spec: ModelSpec) -> bool:
    """Whether this installation has the code that runs the model; imports nothing heavy."""
    needed = ("torch", "diffusers", "transformers") if spec.pipelines else ()
    try:
        return all(find_spec(name) for name in (spec.backend.partition(":")[0], *needed))
    except ModuleNotFoundError:  # the package around the module is missing as well
        return False
