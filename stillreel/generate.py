"""One video here and now: the real flow in this process, with a model server of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import httpx
import stamina

from stillreel import prefect_env
from stillreel.errors import (
    InferenceServerAway,
    JobFailed,
    ModelUnavailable,
    OutputUnwritable,
    StillreelError,
)
from stillreel.host import inference_argv
from stillreel.images import encode_png, open_picture
from stillreel.inference.client import answers, socket_path
from stillreel.job import JobSpec, Video, job_id_of, spec_of
from stillreel.keys import input_key
from stillreel.models.registry import MODELS, get_model, is_available, load_backend
from stillreel.models.shots import check
from stillreel.models.weights import find_weights
from stillreel.process import end_tree, with_parent
from stillreel.progress import Listener, listening
from stillreel.project import FLOW_ENTRYPOINT, load_flow
from stillreel.scene import draw_scene
from stillreel.settings import Settings, get_settings
from stillreel.storage import Storage, open_storage

START_SECONDS = 120.0
"""A model server that does not answer by then is given up; it loads no model at its start."""

_EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
}


@dataclass(frozen=True)
class Made:
    """A video made on this machine."""

    video: str
    poster: str
    flow_run_id: str
    job_id: str
    seconds: float
    width: int
    height: int
    size: int
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """This as plain JSON data."""
        return asdict(self)


def draw_image() -> bytes:
    """The scene that the project draws itself, as PNG."""
    return encode_png(draw_scene(1920, 1080))


def generate(
    image: bytes | None,
    values: Mapping[str, Any],
    output: Path,
    *,
    settings: Settings,
    listener: Listener,
    source: Path | None = None,
) -> Made:
    """Make one video and put it at `output`, the poster beside it.

    `source` is the file that `image` was read from; it is never written. Everything that can be
    refused is refused before anything is started.
    """
    spec = spec_of(values)
    content_type = ""
    if image is not None:
        spec, content_type = _with_image(spec, image, settings)
    check(spec, get_model(spec.model))
    _check_model(spec, settings)
    poster = output.with_name(f"{output.stem}-poster.jpg")
    _check_outputs(output, poster, source=source)
    storage = open_storage(settings.storage, settings.host.home)
    if image is not None:
        storage.put_bytes(spec.image_key, image, content_type=content_type)
    prefect_env.apply(prefect_env.local_run_env(settings))
    with _inference_server(settings), listening(listener):
        run_id, video = _run_flow(spec)
    _take(storage, video, output, poster)
    return Made(
        video=str(output),
        poster=str(poster),
        flow_run_id=run_id,
        job_id=job_id_of(run_id),
        seconds=video.seconds,
        width=video.width,
        height=video.height,
        size=video.size,
        warnings=video.warnings,
    )


def _with_image(spec: JobSpec, image: bytes, settings: Settings) -> tuple[JobSpec, str]:
    picture = open_picture(image, settings.fetch)
    digest = hashlib.sha256(image).hexdigest()[:32]
    key = input_key(f"local-{digest}", _EXTENSIONS.get(picture.format, "img"))
    return spec.model_copy(update={"image_key": key}), f"image/{picture.format.lower()}"


def _check_model(spec: JobSpec, settings: Settings) -> None:
    model = get_model(spec.model)
    if is_available(model):
        preset = model.presets[spec.preset or next(iter(model.presets))]
        if model.pipelines:
            find_weights(model, settings.inference, repo_id=preset.repo_id)
        if model.elsewhere:
            load_backend(model, settings.inference).load()
        return
    here = ", ".join(model.name for model in MODELS.values() if is_available(model))
    raise ModelUnavailable(
        f"the code of the model {spec.model} is not part of this installation, which has: {here}; "
        "the AI models need an extra: pip install 'stillreel[models]'"
    )


def _check_outputs(output: Path, poster: Path, *, source: Path | None) -> None:
    if output.suffix.lower() != ".mp4":
        raise OutputUnwritable(f"{output} is no name of a video; name a file that ends with .mp4")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for target in (output, poster):
            if target.is_dir():
                raise OutputUnwritable(f"{target} is a directory; choose another --output")
            if source and target.exists() and target.samefile(source):
                raise OutputUnwritable(
                    f"{target} would be written over your image; choose another --output"
                )
        probe = output.with_name(f".{output.name}.probe")
        probe.touch()
        probe.unlink()
    except FileExistsError as exc:
        raise OutputUnwritable(
            f"{output} cannot be written: {output.parent} is a file; choose another --output"
        ) from exc
    except OSError as exc:
        raise OutputUnwritable(
            f"{output} cannot be written: {exc.strerror}; choose another --output"
        ) from exc


@contextmanager
def _inference_server(settings: Settings) -> Iterator[None]:
    """The inference server of this machine's host, else one of our own for this block."""
    if answers(socket_path(settings.host.home)):
        yield
        return
    socket = socket_path(settings.host.home, f"generate-{os.getpid()}")
    os.environ["STILLREEL_INFERENCE_SOCKET"] = str(socket)
    os.environ["STILLREEL_SERVER_WAIT_SECONDS"] = "5"  # nobody would start it again
    get_settings.cache_clear()
    with TemporaryFile() as log:
        process = subprocess.Popen(
            with_parent(inference_argv(socket)), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            _wait_until_ready(process, socket)
            yield
        except StillreelError as exc:
            if process.poll() is None:
                raise
            raise InferenceServerAway(
                f"the model server ended with code {process.returncode}; "
                f"its last line: {_last_line(log)}"
            ) from exc
        finally:
            end_tree(process.pid, grace=5)
            if socket.exists():
                socket.unlink()


def _wait_until_ready(process: subprocess.Popen[bytes], socket: Path) -> None:
    for attempt in stamina.retry_context(
        on=InferenceServerAway,
        attempts=None,
        timeout=START_SECONDS,
        wait_initial=0.1,
        wait_max=0.3,
    ):
        with attempt:
            if not answers(socket) and process.poll() is None:
                raise InferenceServerAway("the model server does not answer at its start")
    if process.poll() is not None:
        raise InferenceServerAway


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _run_flow(spec: JobSpec) -> tuple[str, Video]:
    flow = load_flow(FLOW_ENTRYPOINT)
    try:
        state = flow(**spec.model_dump(), return_state=True)
    except (httpx.HTTPError, RuntimeError) as exc:  # Prefect's own: the flow's are in its state
        raise StillreelError(
            "Prefect cannot be reached; check PREFECT_API_URL and its server, or unset it, and "
            "Prefect starts a server of its own"
        ) from exc
    run_id = str(state.state_details.flow_run_id)
    result = state.result(raise_on_failure=False)
    if isinstance(result, Video):
        return run_id, result
    if isinstance(result, StillreelError):
        raise result
    raise JobFailed(f"run {run_id} ended {state.name}: {state.message or 'no reason given'}")


def _take(storage: Storage, video: Video, output: Path, poster: Path) -> None:
    try:
        storage.get_file(video.key, output)
        storage.get_file(video.poster_key, poster)
    except OutputUnwritable as exc:  # the hours of a GPU are not lost with it
        raise OutputUnwritable(f"{exc.message} The video is stored under {video.key}.") from exc
