"""The remote model against a whole video server on loopback, which is as bad as it is told."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillreel.errors import (
    ContentRefused,
    InferenceAbandoned,
    InferenceCancelled,
    InferenceFailed,
    InferenceInterrupted,
    InferenceStalled,
    ModelUnavailable,
    RemoteAccountRefused,
    RemoteError,
    RemoteOutcomeUnknown,
    RemoteRefused,
    RemoteUnavailable,
    RemoteVideoLost,
    RemoteVideoUnusable,
    StillreelError,
)
from stillreel.images import encode_png
from stillreel.inference.entry import DecodeOrder, InferenceOrder, Kind, State
from stillreel.inference.latents import read_arrays, read_facts, write_latents
from stillreel.inference.runner import Runner
from stillreel.job import Phase, Shot
from stillreel.models import remote
from stillreel.models.base import Generated, Resumable
from stillreel.models.registry import configured, get_model, load_backend
from stillreel.models.weights import has_weights
from stillreel.settings import InferenceSettings
from tests.fake_backend import make_shot
from tests.receiver import answer, receiver
from tests.video_server import KEY, SECONDS, VideoServer, make_film, video_server

StartServer = Callable[..., VideoServer]
EACH_SHAPE = pytest.mark.parametrize("shape", ["openai", "replicate"])
ENDING = {"openai": "/videos", "replicate": "/predictions"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.02)


@pytest.fixture
def start() -> Iterator[StartServer]:
    with ExitStack() as stack:
        yield lambda **told: stack.enter_context(video_server(**told))


def shot(prompt: str = "a lake", *, frames: int = 24, **change: Any) -> Shot:
    size = {"width": 64, "height": 48, "crop_width": 64, "crop_height": 48, "steps": 100}
    return make_shot(prompt, model="remote", frames=frames).model_copy(update={**size, **change})


class Desk:
    """A backend with settings of its own, and the note that it goes by."""

    def __init__(self, server: VideoServer | str, folder: Path, **options: Any) -> None:
        url = server if isinstance(server, str) else server.url
        shape = options.get("remote_shape", "openai")
        values = {
            "remote_url": url,
            "remote_key": KEY,
            "remote_poll_seconds": 0.1,
            "remote_model": "owner/name" if shape == "replicate" else "wan",
            **options,
        }
        self.settings = InferenceSettings.model_validate(values)
        self.spec = get_model("remote")
        backend = load_backend(self.spec, self.settings)
        assert isinstance(backend, Resumable)
        self.backend = backend
        self.note = folder / "job_1" / "digest.note.json"
        self.steps: list[tuple[Phase, int]] = []
        self.raises: Callable[[Phase, int], Exception | None] = lambda *_: None

    def on_step(self, phase: Phase, step: int, steps: int) -> None:
        assert steps == 100
        if self.steps[-1:] != [(phase, step)]:
            self.steps.append((phase, step))
        if error := self.raises(phase, step):
            raise error

    def make(self, image: Image.Image | None = None, of: Shot | None = None) -> Generated:
        return self.backend.resume(of or shot(), image, self.on_step, self.note)

    def fails(self, kind: type[StillreelError], match: str | None = None) -> StillreelError:
        with pytest.raises(kind, match=match) as caught:
            self.make()
        assert type(caught.value) is kind
        assert KEY not in str(caught.value)
        assert "127.0.0.1" not in caught.value.message
        return caught.value


# --- all is well ------------------------------------------------------------------------------


@EACH_SHAPE
def test_the_film_that_came_back_is_kept_and_played(
    start: StartServer, tmp_path: Path, shape: str
) -> None:
    server = start(film=make_film(sound=True))
    desk = Desk(server, tmp_path, remote_shape=shape)
    image = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    made = desk.make(image)
    assert made.arrays["video"].tobytes() == server.film
    assert (made.dtype, made.warnings, made.usd) == ("uint8", (), 0.0)
    path = tmp_path / "latents.safetensors"
    write_latents(path, shot(), made)
    decoded = desk.backend.decode(shot(audio=True), read_arrays(path))
    frames = np.concatenate(list(decoded.chunks))
    assert frames.shape == (decoded.frames, 72, 64) == (24, 72, 64)
    assert np.diff(frames[:, :48].mean(axis=(1, 2))).min() > 5
    assert decoded.audio is not None
    assert decoded.audio.shape == (48000, 2)
    again = desk.backend.decode(shot(audio=False), read_arrays(path))
    assert again.audio is None
    assert np.array_equal(np.concatenate(list(again.chunks)), frames)
    job = server.only_job()
    if shape == "openai":
        assert job.image == encode_png(image)
        assert job.fields == {
            "model": "wan",
            "prompt": "a lake",
            "seconds": "1",
            "size": "64x48",
            "fps": "24",
            "seed": "1",
        }
    else:
        assert set(job.fields["input"]) == {"prompt", "image"}
    assert all(call.headers["authorization"] == f"Bearer {KEY}" for call in server.calls)


def test_progress_is_what_the_server_counts_and_never_falls(
    start: StartServer, tmp_path: Path
) -> None:
    told = ["queued", "queued", 10, 40, 40, 25, 100]
    steps = [("queued", 0) if n == "queued" else ("in_progress", n) for n in told]
    desk = Desk(start(steps=(*steps, ("completed", 100))), tmp_path)
    desk.make()
    denoise = [(Phase.DENOISE, n) for n in (10, 40, 99)]
    assert desk.steps == [(Phase.QUEUED, 0), *denoise]


@EACH_SHAPE
def test_what_the_server_calls_other_is_told_as_a_warning(
    start: StartServer, tmp_path: Path, shape: str
) -> None:
    server = start(film=make_film(128, 128, fps=12, frames=6))
    desk = Desk(server, tmp_path, remote_shape=shape)
    made = desk.make()
    assert [w.split(";")[0].split(":")[0] for w in made.warnings] == [
        "The remote server made 128x128 instead of 64x48",
        "The remote server made 12 frames per second instead of 24",
        "The remote server's video lasts 0.50 s instead of 1.00 s.",
    ]
    decoded = desk.backend.decode(shot(), made.arrays)
    assert (decoded.width, decoded.height, decoded.frames) == (64, 64, 12)
    assert sum(len(chunk) for chunk in decoded.chunks) == 12


@pytest.mark.parametrize(
    ("prices", "says", "usd"),
    [
        ({}, {}, 0.0),
        ({"remote_price": 0.25}, {}, 0.25),
        ({"remote_price": 0.2, "remote_price_per_second": 0.1}, {"cost": {"usd": 9}}, 0.3),
        ({}, {"cost": {"usd": 0.0123}}, 0.0123),
        ({}, {"cost": {"usd": "much"}}, 0.0),
    ],
)
def test_the_price_is_the_operators_else_what_the_server_says(
    start: StartServer,
    tmp_path: Path,
    prices: dict[str, float],
    says: dict[str, Any],
    usd: float,
) -> None:
    made = Desk(start(extra=says), tmp_path, **prices).make()
    assert made.usd == pytest.approx(usd)


def test_a_large_image_is_brought_to_replicate_first(start: StartServer, tmp_path: Path) -> None:
    server = start()
    noise = np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8)
    Desk(server, tmp_path, remote_shape="replicate").make(Image.fromarray(noise))
    assert server.files["f1"] == encode_png(Image.fromarray(noise))
    assert server.only_job().fields["input"]["image"] == f"{server.url}/files/f1"


def test_the_server_says_how_long_to_wait(start: StartServer, tmp_path: Path) -> None:
    server = start(headers={"openai-poll-after-ms": "20"})
    Desk(server, tmp_path, remote_poll_seconds=60).make()
    assert len(server.of("GET", "/videos-1")) == 0
    assert len(server.of("GET", "/video-1")) == 3


# --- nothing is paid twice --------------------------------------------------------------------


@pytest.mark.parametrize("end", [InferenceInterrupted, InferenceAbandoned])
@EACH_SHAPE
def test_the_order_is_on_disk_before_it_is_waited_for_and_found_again(
    start: StartServer, tmp_path: Path, shape: str, end: type[StillreelError]
) -> None:
    server = start(steps=(("in_progress", 30),))
    desk = Desk(server, tmp_path, remote_shape=shape)
    desk.raises = lambda phase, _: end() if phase is Phase.DENOISE else None
    desk.fails(end)
    assert server.of("DELETE") == server.of("POST", "/cancel") == []
    assert not server.only_job().cancelled
    server.finish()
    made = Desk(server, tmp_path, remote_shape=shape).make()  # another process, the same note
    assert made.arrays["video"].tobytes() == server.film
    assert len(server.of("POST", ENDING[shape])) == 1


@EACH_SHAPE
def test_an_order_whose_answer_was_lost_is_not_sent_again_by_itself(
    start: StartServer, tmp_path: Path, shape: str
) -> None:
    server = start(creates=["drop"], idempotent=False)
    desk = Desk(server, tmp_path, remote_shape=shape)
    error = desk.fails(RemoteOutcomeUnknown, "paid twice")
    assert not error.retryable
    assert len(server.jobs) == 1
    desk.make()  # somebody has looked, and tries the job again
    first, second = server.of("POST", ENDING[shape])
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


@EACH_SHAPE
def test_a_server_that_honours_the_key_is_sent_the_order_again(
    start: StartServer, tmp_path: Path, shape: str
) -> None:
    server = start(creates=["drop", 409, 500])
    Desk(server, tmp_path, remote_shape=shape, remote_idempotent=True).make()
    keys = {call.headers["idempotency-key"] for call in server.of("POST", ENDING[shape])}
    assert len(server.of("POST", ENDING[shape])) == 4
    assert len(server.jobs) == len(keys) == 1


def test_the_key_is_the_same_on_every_host_and_another_for_every_attempt(
    start: StartServer, tmp_path: Path
) -> None:
    server = start(steps=(("failed", 0),))
    here, there = Desk(server, tmp_path / "here"), Desk(server, tmp_path / "there")
    for desk in (here, there, here):
        desk.fails(InferenceFailed)
    keys = [call.headers["idempotency-key"] for call in server.of("POST", "/videos")]
    assert keys[0] == keys[1] != keys[2]


def test_a_process_that_ended_while_it_ordered_leaves_a_question(
    start: StartServer, tmp_path: Path
) -> None:
    server = start()
    desk = Desk(server, tmp_path)
    remote.Note(desk.note, remote._server(desk.settings)).send()
    desk.fails(RemoteOutcomeUnknown)
    assert server.calls == []
    sure = Desk(server, tmp_path / "other", remote_idempotent=True)
    remote.Note(sure.note, remote._server(sure.settings)).send()
    sure.make()
    assert len(server.jobs) == 1


def test_an_order_at_another_server_is_left_to_itself(start: StartServer, tmp_path: Path) -> None:
    one, other = start(steps=(("in_progress", 30),)), start()
    desk = Desk(one, tmp_path)
    desk.raises = lambda phase, _: InferenceInterrupted() if phase is Phase.DENOISE else None
    desk.fails(InferenceInterrupted)
    Desk(other, tmp_path).make()
    assert (len(one.jobs), len(other.jobs)) == (1, 1)


def test_a_note_that_cannot_be_read_is_no_reason_to_order_again(
    start: StartServer, tmp_path: Path
) -> None:
    server = start()
    desk = Desk(server, tmp_path)
    desk.note.parent.mkdir()
    desk.note.write_text("{half")
    desk.fails(RemoteError, "cannot be read")
    assert server.calls == []


def test_nothing_is_ordered_that_cannot_be_noted(start: StartServer, tmp_path: Path) -> None:
    server = start()
    (tmp_path / "job_1").write_text("a file in the way")
    Desk(server, tmp_path).fails(RemoteError)
    assert server.calls == []


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        (["html"] * 3, RemoteVideoUnusable),
        (["cut"] * 3, RemoteVideoUnusable),
        ([404], RemoteVideoLost),
        ([410], RemoteVideoLost),
    ],
    ids=["html", "cut", "404", "410"],
)
def test_a_film_that_cannot_be_had_ends_the_attempt_for_good(
    start: StartServer, tmp_path: Path, faults: list[Any], kind: type[StillreelError]
) -> None:
    server = start(films=list(faults))
    desk = Desk(server, tmp_path)
    assert not desk.fails(kind).retryable
    assert len(server.of("GET", "/content")) == len(faults)
    desk.make()  # tried again by a person: only then is another one ordered
    assert len(server.jobs) == 2


@pytest.mark.parametrize("faults", [["short", "drop"], ["cut", "html"], [500, 429]], ids=str)
@EACH_SHAPE
def test_a_film_that_came_over_badly_is_fetched_again(
    start: StartServer, tmp_path: Path, faults: list[Any], shape: str
) -> None:
    server = start(films=list(faults))
    made = Desk(server, tmp_path, remote_shape=shape).make()
    assert made.arrays["video"].tobytes() == server.film
    assert len(server.jobs) == 1


def test_a_film_that_does_not_come_now_is_fetched_by_the_next_attempt(
    start: StartServer, tmp_path: Path
) -> None:
    server = start(films=["drop"] * 3)
    desk = Desk(server, tmp_path)
    assert desk.fails(RemoteUnavailable).retryable
    desk.make()
    assert len(server.jobs) == 1


# --- the server says no -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "says", "kind"),
    [
        (400, {"error": {"message": "size must be 720x1280"}}, RemoteRefused),
        (422, {"detail": [{"loc": ["body", "fps"], "msg": "too many"}]}, RemoteRefused),
        (307, {}, RemoteRefused),
        (401, {"error": {"message": f"Incorrect key: {KEY}"}}, RemoteAccountRefused),
        (402, {"title": "Insufficient credit"}, RemoteAccountRefused),
        (403, {}, RemoteAccountRefused),
        (400, {"error": {"code": "moderation_blocked", "message": "No."}}, ContentRefused),
    ],
)
@EACH_SHAPE
def test_a_refusal_is_told_and_not_repeated(
    start: StartServer,
    tmp_path: Path,
    status: int,
    says: dict[str, Any],
    kind: type[StillreelError],
    shape: str,
) -> None:
    server = start(creates=[status], says=says)
    error = Desk(server, tmp_path, remote_shape=shape).fails(kind, str(status))
    assert not error.retryable
    assert len(server.calls) == 1
    assert server.jobs == {}


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_server_is_asked_again_when_it_says(
    start: StartServer, tmp_path: Path, status: int
) -> None:
    server = start(creates=[status, status], headers={"retry-after-ms": "30"})
    Desk(server, tmp_path).make()
    assert len(server.of("POST", "/videos")) == 3
    assert len(server.jobs) == 1


def test_a_server_that_stays_full_ends_the_attempt_not_the_job(
    start: StartServer, tmp_path: Path
) -> None:
    server = start(creates=[429], headers={"Retry-After": "120"})
    error = Desk(server, tmp_path, remote_seconds=60).fails(RemoteUnavailable, "429")
    assert error.retryable
    assert server.jobs == {}


def test_a_server_that_is_not_there_ends_the_attempt_not_the_job(tmp_path: Path) -> None:
    with video_server() as gone:
        pass
    error = Desk(gone, tmp_path, remote_seconds=0.1).fails(RemoteUnavailable, "cannot be reached")
    assert error.retryable


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        ({"code": "x", "message": "out of memory at 10.0.0.7:1"}, InferenceFailed, r"\(address\)"),
        ({"code": "moderation_blocked", "message": "Blocked."}, ContentRefused, "Blocked"),
        (None, InferenceFailed, "no reason"),
    ],
)
def test_a_failed_order_says_why(
    start: StartServer, tmp_path: Path, told: Any, kind: type[StillreelError], words: str
) -> None:
    Desk(start(steps=(("failed", 0),), error=told), tmp_path).fails(kind, words)


def test_replicates_failures_are_texts(start: StartServer, tmp_path: Path) -> None:
    flagged = "The input or output was flagged as sensitive. Please try again. (E005)"
    server = start(steps=(("failed", 0),), error=flagged)
    Desk(server, tmp_path, remote_shape="replicate").fails(ContentRefused, "flagged")


@EACH_SHAPE
def test_an_order_that_somebody_cancelled_there_has_failed(
    start: StartServer, tmp_path: Path, shape: str
) -> None:
    server = start(steps=(("cancelled", 0),))
    Desk(server, tmp_path, remote_shape=shape).fails(InferenceFailed)


@EACH_SHAPE
def test_looks_that_fail_are_made_again(start: StartServer, tmp_path: Path, shape: str) -> None:
    server = start(looks=["drop", 500, 429, 404, 404])
    Desk(server, tmp_path, remote_shape=shape).make()
    assert len(server.jobs) == 1


def test_a_server_that_has_lost_the_order_ends_the_attempt(
    start: StartServer, tmp_path: Path
) -> None:
    server = start(looks=[404] * 5)
    desk = Desk(server, tmp_path)
    assert desk.fails(InferenceFailed, "restarted").retryable
    desk.make()
    assert len(server.jobs) == 2


@pytest.mark.parametrize("what", ["creates", "looks"])
def test_a_page_instead_of_an_answer_is_told(start: StartServer, tmp_path: Path, what: str) -> None:
    desk = Desk(start(**{what: ["html"]}), tmp_path)
    kind = RemoteOutcomeUnknown if what == "creates" else RemoteError
    desk.fails(kind, "STILLREEL_REMOTE_SHAPE")


# --- where the film is ------------------------------------------------------------------------


def test_another_origin_is_called_guarded_and_without_the_key(
    start: StartServer, tmp_path: Path
) -> None:
    with receiver(answer(200, make_film())) as bucket:
        server = start(films=[f"->{bucket.url}film.mp4"])
        desk = Desk(server, tmp_path)
        desk.fails(RemoteError, "STILLREEL_REMOTE_ALLOW_ADDRESSES")
        assert bucket.requests == []
        server.films.append(f"->{bucket.url}film.mp4")
        allowed = [f"127.0.0.1:{bucket.port}"]
        made = Desk(server, tmp_path, remote_allow_addresses=allowed).make()
        (fetched,) = bucket.requests
    assert made.arrays["video"].tobytes() == make_film()
    assert "authorization" not in fetched.headers
    assert len(server.jobs) == 1


def test_the_key_does_not_come_back_with_a_redirect(start: StartServer, tmp_path: Path) -> None:
    server = start()
    with receiver(answer(302, Location=f"{server.url}/films/open")) as other:
        server.films.append(f"->{other.url}")
        allowed = [f"127.0.0.1:{other.port}", f"127.0.0.1:{server.port}"]
        Desk(server, tmp_path, remote_allow_addresses=allowed).make()
    (back,) = server.of("GET", "/films/open")
    assert "authorization" not in back.headers


def test_replicates_output_elsewhere_is_fetched_without_the_key(
    start: StartServer, tmp_path: Path
) -> None:
    with receiver(answer(200, make_film())) as delivery:
        server = start(output=[f"{delivery.url}v.mp4"])
        allowed = [f"127.0.0.1:{delivery.port}"]
        Desk(server, tmp_path, remote_shape="replicate", remote_allow_addresses=allowed).make()
        (fetched,) = delivery.requests
    assert "authorization" not in fetched.headers


def test_a_film_in_the_output_itself_is_taken(start: StartServer, tmp_path: Path) -> None:
    from base64 import b64encode

    film = make_film()
    server = start(output=f"data:video/mp4;base64,{b64encode(film).decode()}")
    made = Desk(server, tmp_path, remote_shape="replicate").make()
    assert made.arrays["video"].tobytes() == film


def test_a_signed_address_that_has_ended_is_a_lost_film(start: StartServer, tmp_path: Path) -> None:
    with receiver(answer(403)) as bucket:
        server = start(films=[f"->{bucket.url}"])
        allowed = [f"127.0.0.1:{bucket.port}"]
        Desk(server, tmp_path, remote_allow_addresses=allowed).fails(RemoteVideoLost)


def test_the_bucket_of_the_server_is_the_second_place(start: StartServer, tmp_path: Path) -> None:
    with receiver(answer(200, make_film())) as bucket:
        server = start(films=[400], extra={"url": f"{bucket.url}v.mp4"})
        allowed = [f"127.0.0.1:{bucket.port}"]
        made = Desk(server, tmp_path, remote_allow_addresses=allowed).make()
    assert made.arrays["video"].tobytes() == make_film()


@pytest.mark.parametrize("fault", ["huge", None], ids=["endless", "stated"])
def test_a_huge_body_is_not_taken(start: StartServer, tmp_path: Path, fault: str | None) -> None:
    server = start(films=[fault], film=make_film() + bytes(200_000))
    desk = Desk(server, tmp_path, remote_max_bytes=100_000)
    desk.fails(RemoteError, "STILLREEL_REMOTE_MAX_BYTES")
    Desk(server, tmp_path).make()
    assert len(server.jobs) == 1


# --- an end from our side ---------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, 500, "drop", 404], ids=str)
@EACH_SHAPE
def test_a_cancel_reaches_the_server_and_its_failure_is_no_other_error(
    start: StartServer, tmp_path: Path, shape: str, fault: Any
) -> None:
    server = start(steps=(("in_progress", 30),), cancels=[fault] if fault else [])
    desk = Desk(server, tmp_path, remote_shape=shape)
    desk.raises = lambda phase, _: InferenceCancelled() if phase is Phase.DENOISE else None
    desk.fails(InferenceCancelled)
    assert server.only_job().cancelled is (fault is None)
    note = remote.Note(desk.note, remote._server(desk.settings))
    assert bool(note.remote_id) is (fault in (500, "drop"))  # then it may still run there
    made = server.of("DELETE", "/video-1") + server.of("POST", "/predi-1/cancel")
    assert len(made) == 1


def test_a_cancel_before_the_order_orders_nothing(start: StartServer, tmp_path: Path) -> None:
    server = start()
    desk = Desk(server, tmp_path)
    desk.raises = lambda *_: InferenceCancelled()
    desk.fails(InferenceCancelled)
    assert server.calls == []


def test_an_order_that_takes_too_long_is_ended(start: StartServer, tmp_path: Path) -> None:
    server = start(steps=(("in_progress", 30),))
    error = Desk(server, tmp_path, remote_seconds=0.3).fails(InferenceStalled)
    assert error.retryable
    assert server.only_job().cancelled


def test_nothing_secret_is_logged(
    start: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "stillreel")
    server = start(
        creates=[503],
        looks=[500],
        films=[500],
        says={"error": {"message": f"key {KEY} at http://10.1.2.3/x"}},
    )
    desk = Desk(server, tmp_path)
    desk.make()
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("stillreel")]
    assert ours
    assert not [text for text in ours if KEY in text or "10.1.2.3" in text]
    assert KEY not in repr(desk.settings)
    assert KEY not in desk.note.read_text()


def test_without_a_server_the_model_is_not_here() -> None:
    nowhere = InferenceSettings.model_validate({})
    spec = get_model("remote")
    assert not has_weights(spec, nowhere)
    with pytest.raises(ModelUnavailable, match="STILLREEL_REMOTE_URL"):
        load_backend(spec, nowhere).load()


def test_the_version_says_which_model_of_which_server(tmp_path: Path) -> None:
    one, other = Desk("http://a/v1", tmp_path), Desk("http://b/v1", tmp_path)
    versions = [configured(desk.spec, desk.settings).version for desk in (one, other, one)]
    assert versions[0] == versions[2] != versions[1]
    assert all(version.startswith("remote-1:wan:") for version in versions)
    preview = get_model("preview")
    assert configured(preview, one.settings) is preview


# --- behind the inference server --------------------------------------------------------------


class Running:
    """A Runner with the remote model, working in a thread until it is stopped."""

    def __init__(self, desk: Desk) -> None:
        self.runner = Runner(
            lambda name: load_backend(get_model(name), desk.settings), claim_seconds=SECONDS
        )
        self.thread = Thread(target=self.runner.run)
        self.thread.start()

    def stop(self) -> None:
        self.runner.stop()
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()

    def end(self, kind: Kind, run_id: str) -> State:
        after = -1
        while True:
            entry = self.runner.watch(kind, run_id, after=after, wait=SECONDS)
            assert entry is not None
            assert entry.version > after, "nothing happens any more"
            after = entry.version
            if not entry.state.is_live:
                assert entry.problem is None, entry.problem
                return entry.state


def test_an_inference_server_that_was_stopped_goes_on_with_the_order(
    start: StartServer, tmp_path: Path
) -> None:
    server = start(steps=(("in_progress", 30),), film=make_film(frames=24))
    desk = Desk(server, tmp_path, remote_price=0.25)
    latents = tmp_path / "job_7" / "d.safetensors"
    order = InferenceOrder(shot=shot(), digest="d", latents_path=str(latents))
    first = Running(desk)
    first.runner.start(Kind.INFERENCE, "run", order)
    server.wait_for_calls("GET", "/video-1", 2)
    first.stop()
    assert server.of("DELETE") == []
    server.finish()
    second = Running(desk)
    second.runner.start(Kind.INFERENCE, "run", order)
    assert second.end(Kind.INFERENCE, "run") is State.FINISHED
    assert len(server.jobs) == 1
    facts = read_facts(latents)
    assert (facts.usd, facts.seconds["gpu"]) == (0.25, 0.0)
    assert facts.seconds["remote"] > 0
    spool = DecodeOrder(digest="s", latents_path=str(latents), spool_dir=str(tmp_path / "spool"))
    second.runner.start(Kind.DECODE, "run", spool)
    assert second.end(Kind.DECODE, "run") is State.FINISHED
    assert (tmp_path / "spool" / "frames.raw").stat().st_size == 24 * 64 * 72
    second.stop()


def test_a_job_that_is_cancelled_here_is_cancelled_there(
    start: StartServer, tmp_path: Path
) -> None:
    server = start(steps=(("queued", 0),))
    running = Running(Desk(server, tmp_path))
    order = InferenceOrder(shot=shot(), digest="d", latents_path=str(tmp_path / "j" / "d.st"))
    running.runner.start(Kind.INFERENCE, "run", order)
    server.wait_for_calls("GET", "/video-1")
    assert running.runner.cancel(Kind.INFERENCE, "run")
    server.wait_for_calls("DELETE", "/video-1")
    running.stop()
    assert server.only_job().cancelled


def test_a_slow_film_can_be_cancelled(start: StartServer, tmp_path: Path) -> None:
    asked, ended = Event(), Event()

    def slow(exchange: Any) -> None:
        exchange.head(200, {"Content-Length": "100000"})
        asked.set()
        ended.wait(SECONDS)

    with receiver(slow) as bucket:
        server = start(films=[f"->{bucket.url}"])
        desk = Desk(server, tmp_path, remote_allow_addresses=[f"127.0.0.1:{bucket.port}"])
        desk.raises = lambda *_: InferenceCancelled() if asked.is_set() else None
        try:
            desk.fails(InferenceCancelled)
        finally:
            ended.set()
    assert server.only_job().cancelled


def test_a_job_that_was_cancelled_gets_no_folder_again(tmp_path: Path) -> None:
    """Its note is of no use any more; that a video came after all is no error either."""
    note = remote.Note(tmp_path / "job" / "note", "a server")
    note.send()
    shutil.rmtree(tmp_path / "job")
    note.take("video-1")
    note.finish()
    assert note.is_finished
    assert not (tmp_path / "job").exists()
    note.forget()
    note.send()
    assert (tmp_path / "job" / "note").exists()
