"""What a finished job shows in the Prefect UI: one page with everything, links where they work."""

from __future__ import annotations

import logging
from base64 import b64encode
from io import BytesIO

import httpx
from PIL import Image
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
)
from prefect.exceptions import PrefectException

from stillreel.errors import StillreelError
from stillreel.job import Latents, Prepared, Video
from stillreel.settings import Settings
from stillreel.storage import Storage, open_storage

log = logging.getLogger("stillreel.artifacts")

SMALL = (640, 640)


def artifact_key(job_id: str, name: str) -> str:
    """A key as Prefect wants it: lower case, digits and dashes; short enough for its card."""
    return f"{name}-{key_suffix(job_id)}"


def key_suffix(job_id: str) -> str:
    """What the keys of all artifacts of a job end with, and of no other."""
    return job_id[-12:].replace("_", "-")


def show_result(
    job_id: str, prepared: Prepared, latents: Latents, video: Video, *, settings: Settings
) -> None:
    """Make the artifacts of a finished job: a page with poster and facts, and links.

    The page carries a small poster itself, because links expire, and a browser follows no link to
    a local directory. The job is completed without them, so what goes wrong here is only logged.
    """
    storage = open_storage(settings.storage, settings.host.home)
    try:
        _show(job_id, _facts(prepared, latents, video), video, storage, settings)
    except (StillreelError, PrefectException, httpx.HTTPError, OSError) as exc:
        log.warning("result of %s not shown in Prefect: %s", job_id, type(exc).__name__)


def _show(
    job_id: str, facts: dict[str, str], video: Video, storage: Storage, settings: Settings
) -> None:
    seconds = settings.storage.download_url_seconds
    url = storage.download_url(video.key, seconds=seconds)
    is_reachable = url.startswith("http")
    where = f"[output.mp4]({url})" if is_reachable else f"`{url.removeprefix('file://')}`"
    create_markdown_artifact(
        f"![poster]({_small_poster(storage, video)})\n\n{where}\n\n{_table(facts)}",
        key=artifact_key(job_id, "result"),
        description="The finished video and what it took",
    )
    if not is_reachable:
        return
    create_link_artifact(
        url,
        link_text=f"output.mp4, {video.size / 1e6:.1f} MB",
        key=artifact_key(job_id, "video"),
        description="The finished video",
    )
    create_image_artifact(
        storage.download_url(video.poster_key, seconds=seconds),
        key=artifact_key(job_id, "poster"),
        description="Its first frame",
    )


def _facts(prepared: Prepared, latents: Latents, video: Video) -> dict[str, str]:
    shot = prepared.shot
    took = f"{latents.seconds.get('gpu', 0.0):.1f} s"
    return {
        "video": f"{video.width} x {video.height}, {video.seconds:.2f} s at {shot.fps} fps, "
        f"{video.size / 1e6:.1f} MB",
        "model": f"{shot.model_version}, {shot.steps} steps, seed {shot.seed}",
        "inference": f"reused from {latents.reused_from}" if latents.reused_from else took,
        "cost": _cost(latents, video),
        "warnings": "; ".join(video.warnings) or "none",
    }


def _cost(latents: Latents, video: Video) -> str:
    if video.cost_usd or latents.host_price or latents.remote_usd:
        return f"US$ {video.cost_usd:.4f}"
    setting = "STILLREEL_REMOTE_PRICE" if "remote" in latents.seconds else "STILLREEL_HOST_PRICE"
    return f"not known: {setting} is not set on this host"


def _table(facts: dict[str, str]) -> str:
    rows = (f"| {name} | {value.replace('|', '/')} |" for name, value in facts.items())
    return "\n".join(("| | |", "|---|---|", *rows))


def _small_poster(storage: Storage, video: Video) -> str:
    with Image.open(BytesIO(storage.get_bytes(video.poster_key))) as poster:
        poster.thumbnail(SMALL)
        small = BytesIO()
        poster.save(small, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{b64encode(small.getvalue()).decode()}"
