"""The whole job on the real Prefect engine: what it makes, keeps, repeats, refuses and tells."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import av
import boto3
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from moto.server import ThreadedMotoServer
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Failed, Pending
from prefect.utilities.callables import parameter_schema

from stillreel import hooks
from stillreel.credentials import read_credentials
from stillreel.errors import (
    ImageError,
    RequestRejected,
    StaleExecution,
    StillreelError,
    StorageUnavailable,
)
from stillreel.execution import Execution, assert_current, current_execution
from stillreel.job import JobSpec, Prepared, Video
from stillreel.jobs import marks
from stillreel.models.styles import get_styles
from stillreel.settings import get_settings
from stillreel.storage import Storage
from tasks.cache_keys import host_task_key, task_key
from tests.certificates import SIGNER, write_certificate
from tests.fake_backend import make_shot
from tests.receiver import Exchange, Receiver, answer, receiver

from .conftest import (
    SECONDS,
    Job,
    MakeJob,
    block_outputs,
    forget_inference,
    new_job,
    png,
    read_json,
    work_dir,
)

SECRET = "whsec_dGhpcyBpcyBub3QgYSByZWFsIHNlY3JldA=="
ORDER = ["fetch-image", "infer", "encode", "upload", "notify"]


def names(runs: list[TaskRun]) -> list[str]:
    """The names of tasks, without the part that is the run's own."""
    return [run.name.rpartition("-")[0] for run in runs]


def states(runs: list[TaskRun]) -> list[str]:
    return [f"{name} {run.state_name}" for name, run in zip(names(runs), runs, strict=True)]


def reason(state: State[Any]) -> StillreelError:
    """The error that a failed run ended with."""
    assert state.is_failed(), state
    error = state.result(raise_on_failure=False)
    assert isinstance(error, StillreelError)
    return error


# --- what is made -----------------------------------------------------------------------------


def test_an_image_becomes_the_video_that_was_asked_for(
    make_job: MakeJob, storage: Storage, image_key: str
) -> None:
    job = make_job(image_key=image_key, prompt="slow zoom in", width=160, height=90, fps=30)
    video = job.video()
    assert names(job.task_runs(5)) == ORDER
    with av.open(BytesIO(storage.get_bytes(video.key)), "r") as movie:
        stream = movie.streams.video[0]
        frames = sum(len(packet.decode()) for packet in movie.demux(stream))
        assert (stream.width, stream.height, stream.codec.name) == (160, 90, "h264")
        assert (frames, stream.average_rate) == (16, 30)
        assert movie.metadata["title"] == "slow zoom in"
    with Image.open(BytesIO(storage.get_bytes(video.poster_key))) as poster:
        assert (poster.size, poster.format) == ((160, 90), "JPEG")
    with av.open(BytesIO(storage.get_bytes(video.teaser_key))) as teaser:
        assert teaser.streams.video[0].frames > 1
    assert not work_dir(job).exists()
    assert job.run.name == "preview: slow zoom in"


def test_the_camera_goes_where_the_order_says_and_the_receipt_tells_all_of_it(
    make_job: MakeJob, storage: Storage
) -> None:
    """A bright bar in the middle goes right while the camera pans left."""
    picture, bar = Image.new("L", (160, 90)), Image.new("L", (6, 90), 255)
    picture.paste(bar, (77, 0))
    file = BytesIO()
    picture.save(file, "PNG")
    storage.put_bytes("inputs/test/bar.png", file.getvalue(), content_type="image/png")
    job = make_job(
        image_key="inputs/test/bar.png",
        prompt="zoom in",
        style="noir",
        camera="Pan-Left, fast",
        negative_prompt="ducks",
    )
    video = job.video()
    with av.open(BytesIO(storage.get_bytes(video.key)), "r") as movie:
        frames = [frame.to_ndarray(format="gray") for frame in movie.decode(video=0)]
    places = [int(frame.mean(axis=0).argmax()) for frame in frames]
    assert places == sorted(places)
    assert places[0] < 64 < places[-1]  # the middle of 128 pixels
    receipt = read_json(storage, video.receipt_key)
    asked = receipt["input"]
    assert (asked["style"], asked["camera"]) == ("noir", "fast pan left")
    assert asked["model_prompt"] == asked["prompt"] == "zoom in"
    assert [warning.partition(" ")[0] for warning in receipt["warnings"]] == ["preview"] * 2
    assert job.run.parameters["camera"] == "Pan-Left, fast"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"style": "none of these"}, "no style 'none of these'; choose one of: cinematic"),
        ({"camera": "fly"}, "no motion 'fly' of the camera; choose one of: static"),
    ],
)
def test_a_name_that_no_host_knows_ends_the_job_with_those_it_knows(
    make_job: MakeJob, values: dict[str, str], words: str
) -> None:
    assert words in reason(make_job(prompt="a boat", **values).execute()).message


def test_the_results_are_small_json(make_job: MakeJob) -> None:
    job = make_job(prompt="pan left")
    state = job.execute()
    for stored in (job.run.state, *(run.state for run in job.task_runs(5))):
        assert stored
        record = Path(str(stored.data.storage_key)).read_bytes()
        assert len(record) < 5000
        assert stored.data.serializer.type == "json"
        assert isinstance(json.loads(record), dict)
    assert isinstance(state.result(), Video)


def test_the_receipt_says_what_was_made(
    make_job: MakeJob, storage: Storage, image_key: str
) -> None:
    job = make_job(image_key=image_key, prompt="tilt up", seed=11)
    video = job.video()
    receipt = read_json(storage, video.receipt_key)
    assert receipt["job_id"] == job.job_id
    assert receipt["model"]["seed"] == 11
    assert receipt["input"]["prompt"] == "tilt up"
    assert receipt["video"]["sha256"] == video.sha256
    assert receipt["video"]["frames"] == 13
    assert receipt["took"]["execution"] == 1
    infer_gpu = receipt["took"]["infer_seconds"]["gpu"]
    assert receipt["took"]["gpu_seconds"] > infer_gpu > 0  # the decode has taken some as well
    assert receipt["video"]["video"] == f"outputs/{job.job_id}/output.mp4"


def test_a_host_with_a_certificate_signs_what_it_makes(
    make_job: MakeJob, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = write_certificate(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    monkeypatch.setenv("STILLREEL_C2PA_CERT", str(chain))
    monkeypatch.setenv("STILLREEL_C2PA_KEY", str(key))
    get_settings.cache_clear()
    video = make_job(prompt="zoom").video()
    path = tmp_path / "output.mp4"
    storage.get_file(video.key, path)
    found = read_credentials(path)
    assert found
    assert (found.is_intact, found.signer) == (True, SIGNER)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == video.sha256


def test_a_job_shows_its_video_poster_facts_and_all_of_its_progress(make_job: MakeJob) -> None:
    job = make_job(prompt="zoom", width=129)
    video = job.video()
    artifacts = job.artifacts()
    assert artifacts["progress"].data == 100
    page = str(artifacts["result"].data)
    assert page.startswith("![poster](data:image/jpeg;base64,")
    assert f"/{video.key}`" in page
    assert "| 128 x 72, 0.54 s at 24 fps" in page
    assert f"| {video.warnings[0]} |" in page
    assert "129x72" in video.warnings[0]


def test_a_prompt_alone_is_enough_and_an_equal_seed_is_an_equal_picture(
    make_job: MakeJob, storage: Storage
) -> None:
    videos = [make_job(prompt="zoom", seed=seed).video() for seed in (1, 1, 2)]
    first, second, third = (storage.get_bytes(video.poster_key) for video in videos)
    assert first == second
    assert first != third


# --- what is not repeated ---------------------------------------------------------------------


def test_a_second_execution_takes_what_is_finished(make_job: MakeJob) -> None:
    """The first execution dies in upload, the second goes on there."""
    job = make_job(prompt="zoom")
    obstacle = block_outputs(job)
    reason(job.execute())
    assert states(job.task_runs(4))[:3] == [
        "fetch-image Completed",
        "infer Completed",
        "encode Completed",
    ]
    obstacle.unlink()
    assert forget_inference(job)
    video = job.video()
    assert states(job.task_runs(9))[4:] == [
        "fetch-image Cached",
        "infer Cached",
        "encode Cached",
        "upload Completed",
        "notify Completed",
    ]
    assert not forget_inference(job)  # nobody asked for it again
    assert video.size > 0


def test_encode_is_repeated_where_its_files_are_gone_and_upload_is_not(
    make_job: MakeJob, storage: Storage
) -> None:
    job = make_job(prompt="zoom")
    before = job.video()
    stored = storage.head(before.key)
    assert not work_dir(job).exists()
    after = job.video()
    assert states(job.task_runs(11))[5:] == [
        "fetch-image Cached",
        "infer Cached",
        "encode Cached",
        "encode Completed",
        "upload Cached",
        "notify Cached",
    ]
    assert after == before
    assert storage.head(before.key) == stored


def test_another_host_encodes_again_and_infers_nothing(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(prompt="zoom")
    obstacle = block_outputs(job)
    reason(job.execute())
    obstacle.unlink()
    forget_inference(job)
    shutil.rmtree(work_dir(job))
    monkeypatch.setenv("STILLREEL_HOST_NAME", "another-host")
    get_settings.cache_clear()
    job.video()
    assert states(job.task_runs(9))[4:] == [
        "fetch-image Cached",
        "infer Cached",
        "encode Completed",
        "upload Completed",
        "notify Completed",
    ]
    assert not forget_inference(job)


def test_latents_that_were_stored_before_a_death_are_found(
    make_job: MakeJob, storage: Storage
) -> None:
    """A host stored the latents and died before Prefect knew; all else is gone with it."""
    job, other = make_job(prompt="zoom"), make_job(prompt="zoom")
    job.video()
    [stored] = storage.list(f"latents/{job.job_id}/")
    key = stored.key.replace(job.job_id, other.job_id)
    storage.put_bytes(key, storage.get_bytes(stored.key), content_type=stored.content_type)
    before = read_json(storage, f"outputs/{job.job_id}/receipt.json")["took"]["infer_seconds"]
    receipt = read_json(storage, other.video().receipt_key)
    assert receipt["took"]["infer_seconds"] == before


def test_the_key_of_a_step_is_the_same_in_another_process() -> None:
    run_id = uuid4()
    code = (
        "import sys\n"
        "sys.path.insert(0, '.')\n"
        "from tests.workflow.test_generate_video import some_keys\n"
        f"print('|'.join(some_keys('{run_id}')))\n"
    )
    env = os.environ | {"PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip().split("|") == some_keys(str(run_id))


def test_keys_differ_by_task_run_and_inputs_and_not_by_execution_or_round() -> None:
    run_id = str(uuid4())
    base = some_keys(run_id)
    assert len(set(base)) == len(base)
    assert not set(base) & set(some_keys(str(uuid4())))
    assert some_keys(run_id, execution=2, number=2) == base
    assert set(some_keys(run_id, prompt="other")) & set(base) == set()


def some_keys(
    run_id: str, *, execution: int = 1, number: int = 1, prompt: str = "zoom"
) -> list[str]:
    """The keys of two tasks with equal inputs, and of one on this host."""
    parameters = {
        "execution": Execution(run_id, "job_1", execution, number),
        "spec": JobSpec(prompt=prompt),
        "prepared": Prepared(shot=make_shot(prompt)),
    }
    contexts: list[Any] = [
        SimpleNamespace(
            task=SimpleNamespace(name=name), task_run=SimpleNamespace(flow_run_id=run_id)
        )
        for name in ("infer", "encode")
    ]
    return [
        *(task_key(context, parameters) for context in contexts),
        host_task_key(contexts[0], parameters),
    ]


# --- reuse ------------------------------------------------------------------------------------


def reuse_note(video: Video, storage: Storage) -> tuple[str, float]:
    receipt = read_json(storage, video.receipt_key)
    return receipt["cost"]["reused_from"], receipt["took"]["infer_seconds"]["gpu"]


def test_an_equal_job_takes_the_stored_latents(
    make_job: MakeJob, storage: Storage, image_key: str
) -> None:
    values = {"image_key": image_key, "prompt": "reuse me", "reuse": True, "seed": -1}
    first, second = make_job(**values), make_job(**values)
    assert reuse_note(first.video(), storage)[0] == ""
    assert reuse_note(second.video(), storage) == (first.job_id, 0.0)
    assert not forget_inference(second)


@pytest.fixture(scope="module")
def stored(prefect_api: None, inference_server: None) -> dict[str, Any]:
    """The values of a job whose latents are stored."""
    values = {"prompt": "stored", "reuse": True}
    new_job(**values).video()
    return values


@pytest.mark.parametrize(
    "change",
    [{"prompt": "another"}, {"seed": 8}, {"owner": "somebody"}, {"reuse": False}],
    ids=["prompt", "seed", "owner", "not asked for"],
)
def test_a_job_that_is_not_equal_infers_itself(
    make_job: MakeJob, storage: Storage, stored: dict[str, Any], change: dict[str, Any]
) -> None:
    reused_from, gpu_seconds = reuse_note(make_job(**(stored | change)).video(), storage)
    assert reused_from == ""
    assert gpu_seconds > 0


def test_latents_that_have_expired_are_made_again(make_job: MakeJob, storage: Storage) -> None:
    values = {"prompt": "expired", "reuse": True}
    first = make_job(**values)
    first.video()
    [latents] = storage.list(f"latents/{first.job_id}/")
    storage.delete(latents.key)
    assert reuse_note(make_job(**values).video(), storage)[0] == ""


# --- what is refused, and what is tried again -------------------------------------------------


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def gradient(size: tuple[int, int] = (160, 90)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


def animated() -> bytes:
    return saved(gradient(), "GIF", save_all=True, append_images=[Image.new("RGB", (160, 90))])


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right: the camera was held upright
    return saved(gradient(), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"not an image at all", "not an image"),
        (saved(gradient(), "JPEG")[:600], "damaged or cut off"),
        (saved(Image.new("1", (30_000, 30_000)), "PNG"), "too many pixels"),
    ],
    ids=["0 bytes", "text", "truncated", "bomb"],
)
def test_a_bad_image_fails_at_the_first_try(
    make_job: MakeJob, storage: Storage, data: bytes, words: str
) -> None:
    storage.put_bytes("inputs/test/bad.png", data, content_type="image/png")
    job = make_job(image_key="inputs/test/bad.png")
    error = reason(job.execute())
    assert isinstance(error, ImageError)
    assert words in error.message
    [run] = job.task_runs(1)
    assert (run.state_name, run.run_count) == ("Failed", 1)


@pytest.mark.parametrize(
    ("data", "size", "warning"),
    [
        (animated(), (128, 72), "several"),
        (saved(gradient().convert("CMYK"), "JPEG"), (128, 72), ""),
        (saved(gradient((1, 1)), "PNG"), (128, 72), "tiny"),
        (rotated(), (72, 128), ""),
    ],
    ids=["animated", "cmyk", "1 pixel", "rotated by EXIF"],
)
def test_an_odd_image_becomes_a_video(
    make_job: MakeJob, storage: Storage, data: bytes, size: tuple[int, int], warning: str
) -> None:
    storage.put_bytes("inputs/test/odd", data, content_type="image/any")
    width = size[0]
    height = 0 if size[1] > size[0] else size[1]  # of an upright image: by its shape
    video = make_job(image_key="inputs/test/odd", width=width, height=height).video()
    assert (video.width, video.height) == size
    assert bool(video.warnings) is bool(warning)
    assert warning in " ".join(video.warnings)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": ""}, "neither an image nor a prompt"),
        ({"prompt": "x", "image_key": "inputs/none.png"}, "upload it first"),
        ({"prompt": "x", "image_url": "http://127.0.0.1/x.png"}, ""),
        ({"image_key": "inputs/a", "image_url": "http://a.example/"}, "keep one of them"),
        ({"prompt": "x", "preset": "ultra"}, "no preset"),
        ({"prompt": "x", "width": 8}, "not a size"),
    ],
    ids=["nothing", "no object", "private address", "two images", "preset", "size"],
)
def test_an_order_that_cannot_be_fails_at_the_first_try(
    make_job: MakeJob, values: dict[str, Any], words: str
) -> None:
    job = make_job(**values)
    error = reason(job.execute())
    assert isinstance(error, RequestRejected)
    assert words in error.message
    [run] = job.task_runs(1)
    assert run.run_count == 1


def test_a_storage_that_is_away_for_a_while_is_tried_again(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = storage_away(monkeypatch)
    job = make_job(image_key="inputs/test/late.png", prompt="zoom")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    starter = Thread(target=start_when_awaited, args=(job, server, f"http://127.0.0.1:{port}"))
    starter.start()
    try:
        video = job.video()
    finally:
        starter.join(SECONDS)
        server.stop()
    assert video.size > 0
    runs = job.task_runs(5)
    assert states(runs) == [f"{name} Completed" for name in ORDER]
    assert [run.run_count for run in runs] == [2, 1, 1, 1, 1]


def test_an_execution_that_begins_while_storage_is_away_does_nothing_that_is_finished(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect takes a result store that does not answer for one without results."""
    job = make_job(prompt="zoom")
    obstacle = block_outputs(job)
    reason(job.execute())
    with monkeypatch.context() as outage:
        storage_away(outage)
        assert isinstance(reason(job.execute()), StorageUnavailable)
    get_settings.cache_clear()
    obstacle.unlink()
    job.video()
    assert states(job.task_runs(9))[4:] == [
        "fetch-image Cached",
        "infer Cached",
        "encode Cached",
        "upload Completed",
        "notify Completed",
    ]


def storage_away(monkeypatch: pytest.MonkeyPatch) -> int:
    """Set an S3 server that does not answer; the port on which it would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "S3_BUCKET": "videos",
        "S3_REGION": "us-east-1",
        "S3_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    return port


def start_when_awaited(job: Job, server: ThreadedMotoServer, url: str) -> None:
    """Start the storage once a task has failed without it, and waits to try again."""
    with get_client(sync_client=True) as client:
        while not any(
            run.state_name == "AwaitingRetry"
            for run in client.read_task_runs(flow_run_filter=job._filter())
        ):
            Event().wait(0.1)
    server.start()
    s3 = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    s3.create_bucket(Bucket="videos")
    s3.put_object(Bucket="videos", Key="inputs/test/late.png", Body=png())
    s3.close()


# --- who is told ------------------------------------------------------------------------------


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Receiver]]:
    """Starts the receiver of all jobs of this test."""
    started: list[Receiver] = []

    def start(*answers: Any) -> Receiver:
        opened = receiver(*answers).__enter__()
        started.append(opened)
        monkeypatch.setenv("STILLREEL_WEBHOOK_URL", opened.url)
        monkeypatch.setenv("STILLREEL_WEBHOOK_SECRET", SECRET)
        get_settings.cache_clear()
        return opened

    yield start
    for opened in started:
        opened.__exit__(None, None, None)


def test_the_receiver_is_told_with_a_signature(
    make_job: MakeJob, listen: Callable[..., Receiver]
) -> None:
    heard = listen()
    job = make_job(prompt="zoom")
    video = job.video()
    [request] = heard.requests
    message = request.verify(SECRET)
    assert request.headers["webhook-id"] == f"{job.job_id}-r1"
    assert (message["job_id"], message["status"], message["error"]) == (
        job.job_id,
        "completed",
        None,
    )
    assert message["video_url"] is None  # the storage is a directory of this host
    assert message["data"]["round"] == 1
    assert message["type"] == "video.completed"
    assert message["data"]["video"]["sha256"] == video.sha256
    assert job.run.labels[marks.DELIVERED] == 1
    job.video()
    assert len(heard.requests) == 1  # a second execution tells nothing new


def test_a_receiver_that_is_dead_costs_no_video(
    make_job: MakeJob, listen: Callable[..., Receiver], storage: Storage
) -> None:
    heard = listen(answer(500))
    job = make_job(prompt="zoom")
    state = job.execute()
    assert state.is_completed()
    last = job.task_runs(5)[-1]
    assert (names([last]), last.state_name, last.run_count) == (["notify"], "Failed", 3)
    assert len(heard.requests) == 3
    assert len({request.headers["webhook-id"] for request in heard.requests}) == 1
    assert storage.head(f"outputs/{job.job_id}/receipt.json")
    assert not work_dir(job).exists()


def test_a_receiver_that_comes_back_is_told(
    make_job: MakeJob, listen: Callable[..., Receiver]
) -> None:
    heard = listen(answer(503), answer(204))
    job = make_job(prompt="zoom")
    job.video()
    assert states(job.task_runs(5))[-1] == "notify Completed"
    assert len(heard.requests) == 2


def test_a_failed_job_is_told_once_and_why(
    make_job: MakeJob, listen: Callable[..., Receiver]
) -> None:
    heard = listen()
    job = make_job(prompt="")
    error = reason(job.execute())
    [request] = heard.requests
    message = request.verify(SECRET)
    assert (message["status"], message["error"]) == ("failed", error.message)
    assert message["video_url"] is None
    assert request.headers["webhook-id"] == f"{job.job_id}-r1"


def test_an_order_that_is_refused_is_told_too(
    make_job: MakeJob, listen: Callable[..., Receiver]
) -> None:
    heard = listen()
    job = make_job(prompt="a\x00b")
    assert "NUL" in reason(job.execute()).message
    [request] = heard.requests
    assert request.verify(SECRET)["status"] == "failed"


def test_what_fails_after_the_receipt_does_not_fail_the_job(
    make_job: MakeJob, listen: Callable[..., Receiver], storage: Storage
) -> None:
    """The poster of the page is gone when the page is made, for its storage has been emptied."""
    heard = listen()
    job = make_job(prompt="zoom")
    before = job.video()
    storage.delete(before.poster_key)
    assert job.execute().is_completed()
    assert [request.verify(SECRET)["status"] for request in heard.requests] == ["completed"]


def test_nothing_is_told_of_a_run_that_fails_or_is_cancelled_after_its_receipt(
    make_job: MakeJob, listen: Callable[..., Receiver]
) -> None:
    heard = listen()
    job = make_job(prompt="zoom")
    job.video()
    for hook, state in ((hooks.tell_failed, Failed()), (hooks.cancel_work, Cancelled())):
        hook(cast(Any, None), job.run, state)
    assert len(heard.requests) == 1


@pytest.mark.parametrize("how", ["completed", "failed"])
@pytest.mark.parametrize("has_token", [True, False], ids=["run of the API", "run of the form"])
def test_where_there_is_an_api_the_keeper_tells(
    make_job: MakeJob,
    listen: Callable[..., Receiver],
    monkeypatch: pytest.MonkeyPatch,
    has_token: bool,
    how: str,
) -> None:
    """A run of the API says to it that there is news; nobody but the API tells a receiver."""
    heard = listen()
    job = make_job(prompt="zoom" if how == "completed" else "")
    if has_token:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(job.run_id, {marks.TOKEN: "the-token"})
    with receiver() as api:
        monkeypatch.setenv("STILLREEL_API_URL", api.url)
        get_settings.cache_clear()
        assert job.execute().name == how.capitalize()
    said = [json.loads(request.body) for request in api.requests]
    news = {"job_id": job.job_id, "status": how, "video_url": None}
    assert said == ([news] if has_token else [])
    assert [r.path for r in api.requests] == ["/webhook/complete"] * len(said)
    assert [r.headers["authorization"] for r in api.requests] == ["Bearer the-token"] * len(said)
    assert heard.requests == []
    assert marks.DELIVERED not in job.run.labels


def test_a_run_of_the_api_is_not_told_by_a_host_that_does_not_know_the_api(
    make_job: MakeJob, listen: Callable[..., Receiver]
) -> None:
    heard = listen()
    job = make_job(prompt="zoom")
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(job.run_id, {marks.TOKEN: "the-token"})
    job.video()
    assert heard.requests == []


def test_an_api_that_is_away_costs_no_video(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver(answer(503)) as api:
        monkeypatch.setenv("STILLREEL_API_WEBHOOK_URL", api.url)
        get_settings.cache_clear()
        job = make_job(prompt="zoom")
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(job.run_id, {marks.TOKEN: "the-token"})
        assert job.execute().is_completed()
    assert len(api.requests) == 3


# --- doors ------------------------------------------------------------------------------------


def test_the_form_of_the_flow_is_the_order() -> None:
    from flows.generate_video import generate_video

    form = parameter_schema(generate_video).model_dump()["properties"]
    order = JobSpec.model_json_schema()["properties"]
    assert list(form) == list(order)
    told = ("type", "default", "enum", "minimum", "maximum", "exclusiveMinimum", "maxLength")
    assert form["style"].pop("enum") == ["", *get_styles()]
    for name, field in order.items():
        assert {key: form[name].get(key) for key in (*told, "pattern")} == {
            key: field.get(key) for key in (*told, "pattern")
        }, name


def test_an_execution_that_is_not_the_current_one_is_stale(make_job: MakeJob) -> None:
    job = make_job(prompt="zoom")
    with pytest.raises(StaleExecution, match="not running"):
        assert_current(Execution(str(job.run_id), job.job_id, 0))
    job.video()
    with pytest.raises(StaleExecution, match="not running"):
        assert_current(Execution(str(job.run_id), job.job_id, 1))
    job.video()
    with pytest.raises(StaleExecution, match="execution 2 has taken over from 1"):
        assert_current(Execution(str(job.run_id), job.job_id, 1))


# --- the fence --------------------------------------------------------------------------------


def label(run_id: UUID, **labels: str | int) -> None:
    """Write labels as the control side does; `deadline=...` is the label `stillreel.deadline`."""
    with get_client(sync_client=True) as client:
        named = {f"stillreel.{name}": value for name, value in labels.items()}
        client.update_flow_run_labels(run_id, named)


def no_task_runs(job: Job) -> bool:
    with get_client(sync_client=True) as client:
        return not client.read_task_runs(flow_run_filter=job._filter())


PAST, FUTURE = "2026-01-01T00:00:00+00:00", "2096-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("labels", "name"),
    [({"cancelled": PAST}, "Cancelled"), ({"deadline": PAST}, "Expired")],
    ids=["cancelled", "late"],
)
def test_a_job_that_is_not_wanted_any_more_ends_without_work(
    make_job: MakeJob, labels: dict[str, str], name: str
) -> None:
    job = make_job(prompt="zoom")
    label(job.run_id, **labels)
    state = job.execute()
    assert (state.type.value, state.name) == ("CANCELLED", name)
    assert job.run.state_name == name
    assert no_task_runs(job)


@pytest.mark.parametrize(
    "labels",
    [{"cancelled": "", "deadline": ""}, {"deadline": FUTURE, "round": 2}],
    ids=["cleared by a retry", "in time"],
)
def test_a_job_that_is_wanted_is_made(make_job: MakeJob, labels: dict[str, str | int]) -> None:
    job = make_job(prompt="zoom")
    label(job.run_id, **labels)
    assert job.video().size > 0


def test_a_job_that_was_started_in_time_is_made_after_its_deadline(make_job: MakeJob) -> None:
    job = make_job(prompt="zoom")
    obstacle = block_outputs(job)
    reason(job.execute())
    obstacle.unlink()
    label(job.run_id, deadline=PAST)
    assert job.video().size > 0


def test_a_job_that_is_cancelled_while_it_is_made_stores_nothing(
    make_job: MakeJob, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wish comes while the image is fetched; the run finds it before its upload."""

    def cancel_and_answer(exchange: Exchange) -> None:
        label(jobs[0].run_id, cancelled=PAST)
        answer(200, png())(exchange)

    with receiver(cancel_and_answer) as source:
        monkeypatch.setenv("STILLREEL_ALLOW_ADDRESSES", f"127.0.0.1:{source.port}")
        get_settings.cache_clear()
        jobs = [make_job(image_url=source.url)]
        state = jobs[0].execute()
    assert (state.type.value, state.name) == ("CANCELLED", "Cancelled")
    assert states(jobs[0].task_runs(4))[-1] == "upload Failed"
    assert list(storage.list(f"outputs/{jobs[0].job_id}/")) == []
    assert not work_dir(jobs[0]).exists()


def test_a_cancel_after_the_receipt_takes_nothing_back(make_job: MakeJob, storage: Storage) -> None:
    job = make_job(prompt="zoom")
    video = job.video()
    label(job.run_id, cancelled=PAST)
    assert job.execute().is_cancelled()
    assert storage.head(video.receipt_key)


def test_an_execution_knows_its_round(prefect_api: None) -> None:
    @flow
    def tell_round() -> int:
        return current_execution().round

    with get_client(sync_client=True) as client:
        runs = [client.create_flow_run(tell_round, state=Pending()) for _ in range(2)]
        label(runs[1].id, round=3)
        runs = [client.read_flow_run(run.id) for run in runs]
    assert [run_flow(tell_round, flow_run=run) for run in runs] == [1, 3]


# --- stored images ----------------------------------------------------------------------------


def test_a_stored_image_is_taken_instead_of_the_address(
    make_job: MakeJob, storage: Storage
) -> None:
    """The newest, where the caller has put one after the first was copied."""
    job = make_job(image_url="http://10.0.0.1/gone.jpg", width=0, height=0)
    keys = [f"inputs/{job.job_id}/input.{name}" for name in ("jpg", "png")]
    storage.put_bytes(keys[0], png(160, 90), content_type="image/jpeg")
    storage.put_bytes(keys[1], png(90, 160), content_type="image/png")
    os.utime(get_settings().host.home / "storage" / keys[0], (1, 1))
    video = job.video()
    assert video.height > video.width
