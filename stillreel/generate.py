"""One video here and now: the real flow in this process, with a model server of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillreel import prefect_env
from stillreel.errors import (
    ImageRejected,
    InferenceServerAway,
    JobFailed,
    OutputUnwritable,
    StillreelError,
)
from stillreel.host import inference_argv
from stillreel.images import encode_png, open_picture
from stillreel.inference.client import InferenceClient, socket_path
from stillreel.job import JobSpec, Video, job_id_of, spec_of
from stillreel.keys import input_key
from stillreel.models.registry import get_model
from stillreel.models.shots import check
from stillreel.process import end_tree, with_parent
from stillreel.progress import Listener, listening
from stillreel.project import FLOW_ENTRYPOINT, project_dir
from stillreel.scene import draw_scene
from stillreel.settings import Settings, get_settings
from stillreel.storage import Storage, open_storage

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


def read_image(path: Path) -> bytes:
    """The bytes of an image file; ImageRejected says what is wrong with the path."""
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise ImageRejected(f"there is no file {path}") from exc
    except IsADirectoryError as exc:
        raise ImageRejected(f"{path} is a directory; give an image file") from exc
    except OSError as exc:
        raise ImageRejected(f"{path} cannot be read: {exc.strerror}") from exc


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
) -> Made:
    """Make one video and put it at `output`, the poster beside it.

    Everything that can be refused is refused before anything is started.
    """
    spec = spec_of(values)
    content_type = ""
    if image is not None:
        spec, content_type = _with_image(spec, image, settings)
    check(spec, get_model(spec.model))
    _check_output(output)
    storage = open_storage(settings.storage, settings.host.home)
    if image is not None:
        storage.put_bytes(spec.image_key, image, content_type=content_type)
    prefect_env.apply(prefect_env.local_run_env(settings))
    with _inference_server(settings), listening(listener):
        run_id, video = _run_flow(spec)
    _take(storage, video, output)
    return Made(
        video=str(output),
        poster=str(output.with_suffix(".jpg")),
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


def _check_output(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise OutputUnwritable(f"{output} is a directory; name a file that ends with .mp4")
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
    if _answers(socket_path(settings.host.home)):
        yield
        return
    socket = socket_path(settings.host.home, f"generate-{os.getpid()}")
    os.environ["STILLREEL_INFERENCE_SOCKET"] = str(socket)
    get_settings.cache_clear()
    process = subprocess.Popen(
        with_parent(inference_argv(socket)), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield  # the first job waits for the server, see InferenceClient
    finally:
        end_tree(process.pid, grace=5)
        socket.unlink(missing_ok=True)


def _answers(socket: Path) -> bool:
    client = InferenceClient(socket, wait_for_server=0)
    try:
        client.health()
    except InferenceServerAway:
        return False
    finally:
        client.close()
    return True


def _run_flow(spec: JobSpec) -> tuple[str, Video]:
    from prefect.flows import load_flow_from_entrypoint

    directory = project_dir()
    sys.path.insert(0, str(directory))
    path, _, name = FLOW_ENTRYPOINT.partition(":")
    flow = load_flow_from_entrypoint(f"{directory / path}:{name}", use_placeholder_flow=False)
    state = flow(**spec.model_dump(), return_state=True)
    run_id = str(state.state_details.flow_run_id)
    result = state.result(raise_on_failure=False)
    if isinstance(result, Video):
        return run_id, result
    if isinstance(result, StillreelError):
        raise result
    raise JobFailed(f"run {run_id} ended {state.name}: {state.message or 'no reason given'}")


def _take(storage: Storage, video: Video, output: Path) -> None:
    try:
        storage.get_file(video.key, output)
        storage.get_file(video.poster_key, output.with_suffix(".jpg"))
    except OSError as exc:
        raise OutputUnwritable(
            f"{output} cannot be written: {exc.strerror}; the video is stored under {video.key}"
        ) from exc
