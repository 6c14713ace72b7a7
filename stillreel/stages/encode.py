"""Encode: from stored latents to the files of a finished video on this host."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from stillreel.encoder import encode_video
from stillreel.inference.client import connect
from stillreel.inference.entry import DecodeOrder, Entry
from stillreel.job import Clip, JobSpec, Latents, Phase, Prepared, Stage
from stillreel.nvenc import encoder_for
from stillreel.progress import report
from stillreel.receipt import without_texts
from stillreel.settings import HostSettings, Settings
from stillreel.storage import Storage
from stillreel.workdir import job_dir


def encode(
    job_id: str,
    run_id: str,
    execution: int,
    spec: JobSpec,
    prepared: Prepared,
    latents: Latents,
    *,
    storage: Storage,
    settings: Settings,
    job_round: int = 1,
) -> Clip:
    """The encoded video, poster and teaser of a job.

    The inference server decodes into a spool at its own speed while the frames are encoded here.
    File names carry the execution, so that a stale process cannot write into its successor's.
    What this execution has encoded already is taken as it is.
    """
    started = time.monotonic()
    shot = prepared.shot
    folder = job_dir(job_id, settings=settings)
    note = folder / f"clip-{execution}.json"
    if made := _read_note(note, settings):
        return made
    path = folder / Path(latents.key).name
    if not path.exists():
        storage.get_file(latents.key, path)
    order = DecodeOrder(
        shot=shot,
        digest=latents.sha256,
        latents_path=str(path),
        spool_dir=str(folder / f"spool-{execution}"),
        round=job_round,
        execution=execution,
    )
    crop = shot.crop_width, shot.crop_height
    encoder = encoder_for(spec.codec, crop, wanted=settings.host.nvenc)
    gpu: dict[str, float] = {}
    warnings: list[str] = []

    def on_entry(entry: Entry) -> None:
        gpu.update(entry.seconds)
        warnings[:] = entry.warnings

    with (
        connect(settings, run_id) as client,
        client.decode(run_id, order, on_entry=on_entry) as decoded,
    ):
        encoded = encode_video(
            decoded,
            folder,
            stem=f"clip-{execution}",
            fps=shot.fps,
            crop=crop,
            codec=spec.codec,
            encoder=encoder,
            quality=spec.quality,
            threads=settings.host.encode_threads,
            metadata=_describe(
                job_id,
                without_texts(spec, embed_prompt=settings.host.embed_prompt),
                prepared,
                encoder,
            ),
            on_frame=lambda n, of: report(Stage.ENCODE, Phase.DECODE, n, of),
            sign=_signer(settings.host, shot.model_version),
        )
    clip = Clip(
        host=settings.host.host_name,
        video_path=str(encoded.video),
        poster_path=str(encoded.poster),
        teaser_path=str(encoded.teaser),
        sha256=encoded.sha256,
        size=encoded.size,
        width=encoded.width,
        height=encoded.height,
        fps=shot.fps,
        frames=encoded.frames,
        codec=spec.codec,
        encoder=encoded.encoder,
        has_audio=encoded.has_audio,
        decode_gpu_seconds=gpu.get("gpu", 0.0),
        encode_seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )
    with suppress(OSError):  # it only spares the next try of this execution the work
        note.write_text(clip.model_dump_json())
    return clip


def is_there(clip: Clip, *, settings: Settings) -> bool:
    """Whether the files of a clip are on this host."""
    paths = (clip.video_path, clip.poster_path, clip.teaser_path)
    return clip.host == settings.host.host_name and all(Path(path).exists() for path in paths)


def _read_note(note: Path, settings: Settings) -> Clip | None:
    try:
        clip = Clip.model_validate_json(note.read_bytes())
    except (FileNotFoundError, ValidationError):  # none yet, or half of one
        return None
    return clip if is_there(clip, settings=settings) else None


def _signer(host: HostSettings, model: str) -> Callable[[Path], None] | None:
    """What writes Content Credentials into the video, where they are configured."""
    if not host.c2pa_cert:
        return None
    from stillreel.credentials import sign_video  # what it imports costs every other job time

    return partial(sign_video, host=host, model=model)


def _describe(job_id: str, spec: JobSpec, prepared: Prepared, encoder: str) -> dict[str, str]:
    shot = prepared.shot
    facts = (
        f"stillreel {job_id} model={shot.model_version} seed={shot.seed} steps={shot.steps} "
        f"encoder={encoder}"
    )
    if not spec.embed_prompt:
        return {"comment": facts}
    return {"title": spec.prompt[:200], "comment": f"{spec.prompt}\n{facts}".strip()}
