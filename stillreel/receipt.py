"""The receipt: what a job took and what its result is; stored last, it completes the job."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from stillreel import __version__
from stillreel.job import Clip, JobSpec, Latents, Prepared, Shot


def without_texts(spec: JobSpec, *, embed_prompt: bool) -> JobSpec:
    """The order as file and receipt may tell of it: this host may leave all prompts out."""
    return spec if embed_prompt else spec.model_copy(update={"embed_prompt": False})


def cost_usd(gpu_seconds: float, host_price: float) -> float:
    """US$ of the GPU time at the host's price per hour."""
    return round(gpu_seconds * host_price / 3600, 6)


def gpu_seconds(latents: Latents, clip: Clip) -> float:
    """Seconds that this job alone held the GPU; 0 for the inference of reused latents."""
    return latents.seconds.get("gpu", 0.0) + clip.decode_gpu_seconds


def write_receipt(
    job_id: str,
    spec: JobSpec,
    prepared: Prepared,
    latents: Latents,
    clip: Clip,
    *,
    upload_seconds: float,
    execution: int,
    completed_at: datetime,
    objects: dict[str, str],
) -> dict[str, Any]:
    """The receipt of a finished job as JSON data."""
    shot = prepared.shot
    gpu = gpu_seconds(latents, clip)
    return {
        "job_id": job_id,
        "completed_at": completed_at.isoformat(timespec="milliseconds"),
        "stillreel": __version__,
        "model": {
            "name": shot.model,
            "version": shot.model_version,
            "preset": shot.preset,
            "steps": shot.steps,
            "seed": shot.seed,
            "dtype": latents.dtype,
            "plan": latents.plan,
        },
        "input": {
            **texts(spec, shot),
            "image_sha256": prepared.source.original_sha256 if prepared.source else None,
        },
        "video": {
            **objects,
            "sha256": clip.sha256,
            "size": clip.size,
            "width": clip.width,
            "height": clip.height,
            "fps": clip.fps,
            "frames": clip.frames,
            "seconds": clip.seconds,
            "codec": clip.codec,
            "encoder": clip.encoder,
            "audio": clip.has_audio,
        },
        "warnings": [*shot.warnings, *latents.warnings, *clip.warnings],
        "took": {
            "fetch_seconds": round(prepared.seconds, 3),
            "infer_seconds": {name: round(value, 3) for name, value in latents.seconds.items()},
            "encode_seconds": round(clip.encode_seconds, 3),
            "upload_seconds": round(upload_seconds, 3),
            "gpu_seconds": round(gpu, 3),
            "execution": execution,
        },
        "cost": {
            "host": latents.host,
            "usd_per_hour": latents.host_price,
            "remote_usd": latents.remote_usd,
            "usd": round(cost_usd(gpu, latents.host_price) + latents.remote_usd, 6),
            "reused_from": latents.reused_from,
        },
    }


def texts(spec: JobSpec, shot: Shot) -> dict[str, str | None]:
    """What the caller said, and what the model read of it; nothing where it is to be kept out."""
    if not spec.embed_prompt:
        return dict.fromkeys(("prompt", "style", "camera", "model_prompt"))
    return {
        "prompt": spec.prompt,
        "style": spec.style or None,
        "camera": shot.camera or None,
        "model_prompt": shot.prompt,
    }
