"""What is sent to a remote server, what its answers mean, and what of them a caller may read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from stillreel.errors import RemoteError
from stillreel.job import Shot
from stillreel.models.remote_calls import LONGEST_WAIT, Answer, Calls, said, wait_seconds
from stillreel.models.remote_shapes import SHAPES, State, parameters_of, values_of, whole_seconds
from stillreel.settings import REMOTE_VALUES, InferenceSettings
from tests.fake_backend import make_shot

OPENAI, REPLICATE = SHAPES["openai"], SHAPES["replicate"]


def settings(**values: Any) -> InferenceSettings:
    return InferenceSettings.model_validate({"remote_url": "http://gpu-7:30000/v1", **values})


def shot(**change: Any) -> Shot:
    size = {"width": 1280, "height": 720, "crop_width": 1280, "crop_height": 720}
    return make_shot("a lake", frames=121).model_copy(update={**size, "seed": 7, **change})


def sent(image: Any = None, *, of: Shot | None = None, **options: Any) -> dict[str, Any]:
    chosen = settings(**options)
    values = values_of(of or shot(), chosen.remote_model)
    return parameters_of(chosen, {**values, "image": image})


def test_every_name_that_parameters_may_hold_has_a_value() -> None:
    assert {*values_of(shot(), ""), "image"} == set(REMOTE_VALUES)


def test_an_order_goes_out_as_open_servers_take_it() -> None:
    assert sent(b"PNG", of=shot(negative_prompt="fog"), remote_model="wan") == {
        "model": "wan",
        "prompt": "a lake",
        "negative_prompt": "fog",
        "seconds": 5,
        "size": "1280x720",
        "fps": 24,
        "seed": 7,
        "input_reference": b"PNG",
    }


def test_what_an_order_does_not_have_is_left_out() -> None:
    assert set(sent()) == {"prompt", "seconds", "size", "fps", "seed"}


def test_parameters_of_the_operator_win_and_null_leaves_one_out() -> None:
    given = {
        "fps": None,
        "num_frames": "{frames}",
        "input_reference": None,
        "image_reference": {"image_url": "{image}"},
        "extra_params": {"tiled": True, "words": ["{prompt}", "plain {prompt}"]},
    }
    found = sent(b"PNG", remote_parameters=given)
    assert "fps" not in found
    assert found["num_frames"] == 121
    assert found["image_reference"] == {"image_url": b"PNG"}
    assert found["extra_params"] == {"tiled": True, "words": ["a lake", "plain {prompt}"]}
    assert "image_reference" not in sent(None, remote_parameters=given)


def test_a_form_holds_texts_json_and_the_image() -> None:
    files = OPENAI.create(
        {"prompt": "a\nlake", "seconds": 5, "hd": True, "x": {"image": b"P"}, "file": b"PNG"}, ""
    ).files
    assert files == [
        ("prompt", (None, "a\nlake")),
        ("seconds", (None, "5")),
        ("hd", (None, "true")),
        ("x", (None, '{"image": "data:image/png;base64,UA=="}')),
        ("file", ("image.png", b"PNG", "image/png")),
    ]


@pytest.mark.parametrize(
    ("model", "path", "version"),
    [
        ("owner/name", "models/owner/name/predictions", None),
        ("owner/name:abc", "predictions", "owner/name:abc"),
        ("deadbeef", "predictions", "deadbeef"),
        ("deployments/owner/name", "deployments/owner/name/predictions", None),
    ],
)
def test_replicates_models_are_called_where_they_are(
    model: str, path: str, version: str | None
) -> None:
    create = REPLICATE.create({"prompt": "a lake", "image": b"PNG"}, model)
    assert create.path == path
    assert create.body is not None
    assert create.body.get("version") == version
    assert create.body["input"]["image"] == "data:image/png;base64,UE5H"


def test_a_large_image_goes_to_replicates_files_first() -> None:
    assert REPLICATE.upload(bytes(256 * 1024)) is None
    create = REPLICATE.upload(bytes(256 * 1024 + 1))
    assert create
    assert create.path == "files"
    assert OPENAI.upload(bytes(10_000_000)) is None


@pytest.mark.parametrize(
    ("frames", "seconds"), [(13, 1), (24, 1), (25, 1), (26, 2), (121, 5), (122, 6), (1, 1)]
)
def test_whole_seconds_are_asked_for(frames: int, seconds: int) -> None:
    assert whole_seconds(shot(frames=frames)) == seconds


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((1280, 704), "16:9"), ((720, 1280), "9:16"), ((640, 640), "1:1"), ((640, 480), "4:3")],
)
def test_the_nearest_usual_aspect_ratio_is_named(size: tuple[int, int], ratio: str) -> None:
    wide, high = size
    assert values_of(shot(crop_width=wide, crop_height=high), "")["aspect_ratio"] == ratio


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("queued", State.QUEUED),
        ("in_progress", State.RUNNING),
        ("Processing", State.RUNNING),
        ("a word of tomorrow", State.RUNNING),
        ("completed", State.DONE),
        ("failed", State.FAILED),
        ("cancelled", State.FAILED),
        ("deleted", State.FAILED),
    ],
)
def test_words_of_openai_shaped_servers(status: str, state: State) -> None:
    assert OPENAI.read({"id": "v_1", "status": status}).state is state


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("starting", State.QUEUED),
        ("processing", State.RUNNING),
        ("succeeded", State.DONE),
        ("failed", State.FAILED),
        ("canceled", State.FAILED),
        ("aborted", State.FAILED),
    ],
)
def test_words_of_replicate(status: str, state: State) -> None:
    assert REPLICATE.read({"id": "p1", "status": status}).state is state


@pytest.mark.parametrize(
    ("progress", "percent"),
    [(0, 0), (40, 40), (99.9, 99), (250, 100), (-3, 0), (None, 0), ("50", 0), (True, 0)],
)
def test_only_a_number_is_a_progress(progress: Any, percent: int) -> None:
    seen = OPENAI.read({"id": "v", "status": "in_progress", "progress": progress})
    assert seen.percent == percent


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"status": "queued"},
        {"id": "v"},
        {"id": "..", "status": "queued"},
        {"id": "a/../b", "status": "queued"},
        {"id": "x?y", "status": "queued"},
        {"id": 7, "status": ""},
        {"id": "v" * 301, "status": "queued"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_answer_without_an_order_is_none(shape: Any, body: Any) -> None:
    with pytest.raises(RemoteError, match="STILLREEL_REMOTE_URL"):
        shape.read(body)


@pytest.mark.parametrize(
    ("output", "places"),
    [
        ("https://a/1", ("https://a/1",)),
        (["https://a/x.png", "https://a/v.mp4?s=1"], ("https://a/v.mp4?s=1", "https://a/x.png")),
        ({"thumb": "https://a/t.jpg", "video": {"url": "https://a/v.mp4"}}, None),
        ("data:video/mp4;base64,AA==", ("data:video/mp4;base64,AA==",)),
        ("file:///etc/passwd", ()),
        ("words", ()),
        (None, ()),
        (5, ()),
    ],
    ids=str,
)
def test_the_film_is_found_in_any_output(output: Any, places: tuple[str, ...] | None) -> None:
    found = REPLICATE.read({"id": "p", "status": "succeeded", "output": output}).places
    assert found == (places if places is not None else ("https://a/v.mp4", "https://a/t.jpg"))


def test_a_film_in_a_bucket_is_the_second_place() -> None:
    body = {"id": "v", "status": "completed", "url": "https://b/v.mp4", "cost": {"usd": 0.5}}
    seen = OPENAI.read(body)
    assert seen.places == ("videos/v/content", "https://b/v.mp4")
    assert seen.usd == 0.5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"code": "x", "message": "y"}}, ("x", "y")),
        ({"error": {"type": "t", "message": None}}, ("t", "")),
        ({"error": "y"}, ("", "y")),
        ({"detail": "y"}, ("", "y")),
        ({"detail": [{"loc": ["body", "size"], "msg": "bad"}]}, ("", "body.size: bad")),
        ({"title": "t", "detail": "d", "code": "c"}, ("c", "d")),
        ({"message": "m"}, ("", "m")),
        ("text", ("", "")),
        (None, ("", "")),
    ],
    ids=str,
)
def test_errors_of_every_kind_are_understood(body: Any, expected: tuple[str, str]) -> None:
    assert said(body) == expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "999999"}, LONGEST_WAIT),
        ({"retry-after-ms": "250"}, 0.25),
        ({"openai-poll-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
    ids=str,
)
def test_a_pause_is_as_long_as_the_server_says(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert wait_seconds(httpx.Headers(headers)) == seconds


def test_a_pause_may_be_given_as_a_date() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert wait_seconds({"retry-after": at}) == pytest.approx(60, abs=3)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Size must be 720x1280.", "Size must be 720x1280."),
        ("key sk-secret is wrong", "key (key) is wrong"),
        ("see http://10.0.0.7:9000/x?sig=abc now", "see (address) now"),
        ("cannot reach 10.0.0.7:9000", "cannot reach (address)"),
        ("no file /srv/models/wan/config.json here", "no file (path) here"),
        ("one\n\ttwo\x1b[31m three", "one two[31m three"),
        (None, ""),
    ],
)
def test_what_a_server_says_is_made_safe(text: Any, clean: str) -> None:
    assert Calls(settings(remote_key="sk-secret")).clean(text) == clean


def test_a_long_reason_is_cut() -> None:
    assert len(Calls(settings()).clean("word " * 50_000)) == 300


@pytest.mark.parametrize(
    ("status", "body", "kind", "retryable"),
    [
        (400, {"error": {"message": "bad size"}}, "remote_refused", False),
        (422, {"detail": "no"}, "remote_refused", False),
        (400, {"error": {"code": "moderation_blocked"}}, "content_refused", False),
        (403, {"error": {"message": "violates our content policy"}}, "content_refused", False),
        (401, {}, "remote_account_refused", False),
        (402, {"title": "Insufficient credit"}, "remote_account_refused", False),
        (403, {}, "remote_account_refused", False),
        (404, {}, "remote_refused", False),
        (429, {}, "remote_unavailable", True),
        (429, {"error": {"code": "insufficient_quota"}}, "remote_account_refused", False),
        (500, {}, "remote_unavailable", True),
        (503, {}, "remote_unavailable", True),
        (307, {}, "remote_refused", False),
    ],
)
def test_each_status_is_an_error_of_ours(
    status: int, body: Any, kind: str, retryable: bool
) -> None:
    error = Calls(settings()).refusal(Answer(status, httpx.Headers(), body))
    assert (error.code, error.retryable) == (kind, retryable)
    assert str(status) in error.message
