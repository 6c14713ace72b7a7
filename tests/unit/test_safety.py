"""The safety check: what it is shown, what its answers mean, and that no answer allows nothing."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from textwrap import dedent

import av
import numpy as np
import pytest
from av import VideoFrame
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stillreel.errors import ContentRefused, EncodeFailed, SettingsInvalid, StillreelError
from stillreel.job import Clip, JobSpec, Prepared, SourceImage
from stillreel.safety import (
    FRAMES,
    REASON_LIMIT,
    SIDE_LIMIT,
    SafetyUnavailable,
    check_clip,
    check_order,
    clean_reason,
    sample_frames,
)
from stillreel.settings import get_settings
from stillreel.storage import Storage, open_storage
from tests.fake_backend import make_shot
from tests.receiver import Answer, answer, drip_body, endless, hang, receiver, redirect, reset

JOB = "job_0123456789abcdef"
SPEC = JobSpec(prompt="a cat", negative_prompt="dogs", model="preview", owner="acme")
PROMPT_ONLY = Prepared(shot=make_shot("a cat"))
ALLOW = answer(body=b'{"allow": true}')
Check = Callable[[], None]


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("STILLREEL_STORAGE_DIR", str(tmp_path / "storage"))
    settings = get_settings()
    get_settings.cache_clear()
    return open_storage(settings.storage, settings.host.home)


@pytest.fixture
def check(storage: Storage) -> Check:
    """The check before the inference of an order that is a prompt alone."""
    return lambda: check_order(JOB, SPEC, PROMPT_ONLY, storage=storage, settings=get_settings())


@pytest.fixture
def ask_url(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def set_url(url: str) -> None:
        monkeypatch.setenv("STILLREEL_SAFETY_URL", url)
        get_settings.cache_clear()

    return set_url


@pytest.fixture
def ask_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`ask_function("return {'allow': True}")` is the body of the operator's function."""

    def define(body: str, name: str = "operators_check:check") -> None:
        source = f"import time, threading\nasked = []\ndef check(question):\n    {body}\n"
        (tmp_path / "operators_check.py").write_text(dedent(source))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "operators_check", raising=False)
        monkeypatch.setenv("STILLREEL_SAFETY_CALLABLE", name)
        get_settings.cache_clear()

    return define


def prepared_with(storage: Storage, width: int, height: int) -> Prepared:
    """An order with a picture that is stored."""
    buffer = BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    storage.put_bytes("inputs/test/source.png", buffer.getvalue(), content_type="image/png")
    source = SourceImage(
        key="inputs/test/source.png", width=width, height=height, sha256="a", original_sha256="b"
    )
    return Prepared(shot=make_shot("a cat"), source=source)


def make_clip(folder: Path, *, frames: int = 20, width: int = 64, height: int = 48) -> Clip:
    """A real video that gets brighter from black to white."""
    path = folder / "clip.mp4"
    with av.open(str(path), "w") as movie:
        stream = movie.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            grey = round(255 * number / max(frames - 1, 1))
            frame = VideoFrame.from_ndarray(np.full((height, width, 3), grey, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 24)
            movie.mux(stream.encode(frame))
        movie.mux(stream.encode())
    return Clip(
        host="here",
        video_path=str(path),
        poster_path=str(path),
        teaser_path=str(path),
        sha256="",
        size=path.stat().st_size,
        width=width,
        height=height,
        fps=24,
        frames=frames,
        codec="h264",
        has_audio=False,
        decode_gpu_seconds=0.0,
        encode_seconds=0.0,
    )


def picture(text: str) -> Image.Image:
    return Image.open(BytesIO(b64decode(text, validate=True)))


# --- what is asked ----------------------------------------------------------------------------


def test_nobody_is_asked_unless_the_operator_wants_it(check: Check, tmp_path: Path) -> None:
    check()
    nothing = make_clip(tmp_path).model_copy(update={"video_path": "nowhere"})
    check_clip(JOB, SPEC, nothing, settings=get_settings())


def test_before_inference_the_order_is_shown(check: Check, ask_url: Callable[[str], None]) -> None:
    with receiver(ALLOW) as endpoint:
        ask_url(f"{endpoint.url}check?key=1")
        check()
    [asked] = endpoint.requests
    assert (asked.method, asked.path) == ("POST", "/check?key=1")
    assert asked.headers["content-type"] == "application/json"
    assert json.loads(asked.body) == {
        "when": "before",
        "job_id": JOB,
        "owner": "acme",
        "model": "preview",
        "prompt": "a cat",
        "negative_prompt": "dogs",
        "image_base64": None,
    }


@pytest.mark.parametrize(
    ("size", "shown"), [((160, 90), (160, 90)), ((2560, 1440), (SIDE_LIMIT, 720))]
)
def test_the_prepared_image_is_shown_not_larger_than_needed(
    storage: Storage,
    ask_url: Callable[[str], None],
    size: tuple[int, int],
    shown: tuple[int, int],
) -> None:
    prepared = prepared_with(storage, *size)
    with receiver(ALLOW) as endpoint:
        ask_url(endpoint.url)
        check_order(JOB, SPEC, prepared, storage=storage, settings=get_settings())
    image = picture(json.loads(endpoint.requests[0].body)["image_base64"])
    assert (image.format, image.size) == ("PNG", shown)


def test_after_encoding_frames_of_the_whole_video_are_shown(
    tmp_path: Path, ask_url: Callable[[str], None]
) -> None:
    clip = make_clip(tmp_path, frames=48)
    with receiver(ALLOW) as endpoint:
        ask_url(endpoint.url)
        check_clip(JOB, SPEC, clip, settings=get_settings())
    asked = json.loads(endpoint.requests[0].body)
    assert (asked["when"], asked["job_id"], asked["prompt"]) == ("after", JOB, "a cat")
    assert (asked["seconds"], asked["width"], asked["height"]) == (2.0, 64, 48)
    images = [picture(text) for text in asked["frames_base64"]]
    assert {(image.format, image.size) for image in images} == {("JPEG", (64, 48))}
    greys = [np.asarray(image).mean() for image in images]
    assert len(greys) == FRAMES
    assert greys == sorted(greys)
    assert greys[0] < 10
    assert greys[-1] > 245


@pytest.mark.parametrize("frames", [1, 2, 5, 7, 100])
def test_a_video_of_any_length_has_frames_to_show(tmp_path: Path, frames: int) -> None:
    clip = make_clip(tmp_path, frames=frames)
    assert len(sample_frames(Path(clip.video_path), frames)) == min(frames, FRAMES)


def test_a_video_that_cannot_be_read_is_encoded_again(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(EncodeFailed):
        sample_frames(tmp_path / "clip.mp4", 5)


# --- what an answer means ---------------------------------------------------------------------


def test_what_is_refused_is_refused_with_its_reason(
    check: Check, ask_url: Callable[[str], None]
) -> None:
    with receiver(
        answer(body=b'{"allow": false, "reason": "shows\\n a  real person\\u0000"}')
    ) as e:
        ask_url(e.url)
        with pytest.raises(ContentRefused, match=r": shows a real person$") as refused:
            check()
    assert not refused.value.retryable


@pytest.mark.parametrize("more", ["", ', "reason": null', ', "reason": 7', ', "reason": " \\n"'])
def test_a_refusal_needs_no_reason(check: Check, ask_url: Callable[[str], None], more: str) -> None:
    with receiver(answer(body=f'{{"allow": false{more}}}'.encode())) as endpoint:
        ask_url(endpoint.url)
        with pytest.raises(ContentRefused) as refused:
            check()
    assert refused.value.message == ContentRefused().message


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(answer(body=b"{}"), id="no word"),
        pytest.param(answer(body=b'{"allow": "true"}'), id="text"),
        pytest.param(answer(body=b'{"allow": 1}'), id="number"),
        pytest.param(answer(body=b'{"allow": null}'), id="null"),
        pytest.param(answer(body=b"true"), id="bare"),
        pytest.param(answer(body=b"[true]"), id="list"),
        pytest.param(answer(body=b""), id="empty"),
        pytest.param(answer(body=b"\xff\xfe"), id="no text"),
        pytest.param(answer(body=b"[" * 9000), id="deep"),
        pytest.param(answer(body=b'{"allow": true}' + b" " * 10_000), id="long"),
        pytest.param(answer(201, b'{"allow": true}'), id="201"),
        pytest.param(answer(204), id="204"),
        pytest.param(answer(403, b'{"allow": true}'), id="403"),
        pytest.param(answer(500, b'{"allow": true}'), id="500"),
        pytest.param(redirect("/elsewhere"), id="redirect"),
        pytest.param(reset, id="reset"),
        pytest.param(endless, id="endless"),
        pytest.param(hang, id="hang"),
        pytest.param(drip_body, id="drip"),
    ],
)
def test_what_is_no_answer_allows_nothing_and_may_be_asked_again(
    check: Check, ask_url: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, bad: Answer
) -> None:
    monkeypatch.setenv("STILLREEL_SAFETY_SECONDS", "0.5")
    with receiver(bad) as endpoint:
        ask_url(f"{endpoint.url}?key=very-secret")
        with pytest.raises(SafetyUnavailable) as unanswered:
            check()
    assert unanswered.value.retryable
    assert len(endpoint.requests) == 1
    assert "secret" not in unanswered.value.message
    assert "127.0.0.1" not in unanswered.value.message


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://user:secret@127.0.0.1:9", "http://["]
)
def test_an_endpoint_that_cannot_be_called_allows_nothing(
    check: Check, ask_url: Callable[[str], None], url: str
) -> None:
    ask_url(url)
    with pytest.raises(SafetyUnavailable) as unanswered:
        check()
    assert "secret" not in unanswered.value.message


@given(st.text(max_size=2000))
def test_a_reason_is_one_short_line_of_printable_text(reason: str) -> None:
    cleaned = clean_reason(reason)
    assert len(cleaned) <= REASON_LIMIT
    assert cleaned.isprintable()
    cleaned.encode()


# --- a function of the operator's own ---------------------------------------------------------


def test_a_function_is_asked_the_same(check: Check, ask_function: Callable[..., None]) -> None:
    ask_function("asked.append(question); return {'allow': question['prompt'] == 'a cat'}")
    check()
    import operators_check  # pyright: ignore[reportMissingImports]

    [asked] = operators_check.asked
    assert (asked["when"], asked["owner"], asked["image_base64"]) == ("before", "acme", None)


def test_a_function_refuses_with_its_reason(
    check: Check, ask_function: Callable[..., None]
) -> None:
    ask_function("return {'allow': False, 'reason': 'no cats'}")
    with pytest.raises(ContentRefused, match="no cats"):
        check()


@pytest.mark.parametrize(
    "body",
    [
        "return None",
        "return True",
        "raise RuntimeError('very secret')",
        "threading.Event().wait(20)",
    ],
)
def test_a_function_that_gives_no_answer_allows_nothing(
    check: Check, ask_function: Callable[..., None], monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setenv("STILLREEL_SAFETY_SECONDS", "0.3")
    ask_function(body)
    with pytest.raises(SafetyUnavailable) as unanswered:
        check()
    assert "secret" not in unanswered.value.message


@pytest.mark.parametrize(
    "name",
    ["nothing_like_it:check", "operators_check:nothing", "operators_check", ":x", "json:dumps:x"],
)
def test_a_function_that_is_not_there_is_a_wrong_setting(
    check: Check, ask_function: Callable[..., None], name: str
) -> None:
    ask_function("return {'allow': True}", name)
    with pytest.raises(SettingsInvalid, match="STILLREEL_SAFETY_CALLABLE"):
        check()


def test_what_is_no_function_is_a_wrong_setting(
    check: Check, ask_function: Callable[..., None]
) -> None:
    ask_function("return None", "operators_check:asked")
    with pytest.raises(SettingsInvalid, match="not a function"):
        check()


@pytest.mark.parametrize(
    ("function", "endpoint_allows", "error"),
    [(True, True, None), (True, False, ContentRefused), (False, True, ContentRefused)],
)
def test_with_both_configured_both_have_to_allow(
    check: Check,
    ask_url: Callable[[str], None],
    ask_function: Callable[..., None],
    function: bool,
    endpoint_allows: bool,
    error: type[StillreelError] | None,
) -> None:
    ask_function(f"return {{'allow': {function}}}")
    with receiver(answer(body=json.dumps({"allow": endpoint_allows}).encode())) as endpoint:
        ask_url(endpoint.url)
        if error is None:
            check()
        else:
            with pytest.raises(error):
                check()
    assert len(endpoint.requests) == function
