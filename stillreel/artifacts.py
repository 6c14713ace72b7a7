"""What a finished job shows in the Prefect UI: links, the poster, and what it took."""

from __future__ import annotations

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_table_artifact,
)

from stillreel.job import Latents, Prepared, Video
from stillreel.storage import Storage


def artifact_key(job_id: str, name: str) -> str:
    """A key as Prefect wants it: lower case, digits and dashes."""
    return f"{name}-{job_id}".replace("_", "-")


def show_result(
    job_id: str,
    prepared: Prepared,
    latents: Latents,
    video: Video,
    *,
    storage: Storage,
    seconds: int,
) -> None:
    """Make the artifacts of a finished job: video link, poster, facts."""
    url = storage.download_url(video.key, seconds=seconds)
    create_link_artifact(
        url,
        link_text=f"output.mp4 ({video.size / 1e6:.1f} MB)",
        key=artifact_key(job_id, "video"),
        description="The finished video",
    )
    create_image_artifact(
        storage.download_url(video.poster_key, seconds=seconds),
        key=artifact_key(job_id, "poster"),
        description="Its first frame",
    )
    shot = prepared.shot
    facts = {
        "size": f"{video.width} x {video.height}, {video.seconds:.2f} s at {shot.fps} fps",
        "model": f"{shot.model_version}, {shot.steps} steps, seed {shot.seed}",
        "GPU": f"{latents.seconds.get('gpu', 0.0):.1f} s for inference",
        "cost": f"US$ {video.cost_usd:.4f}",
        "reused": latents.reused_from or "no",
        "warnings": "; ".join(video.warnings) or "none",
    }
    create_table_artifact(
        [{"what": name, "value": value} for name, value in facts.items()],
        key=artifact_key(job_id, "facts"),
        description="What this job took",
    )
