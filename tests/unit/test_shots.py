"""Orders become exact numbers, or are refused with what is allowed instead."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stillreel.errors import RequestRejected
from stillreel.job import JobSpec, Shot, seed_of
from stillreel.models import shots
from stillreel.models.registry import MODELS

PREVIEW, WAN, LTX = MODELS["preview"], MODELS["wan-2.2"], MODELS["ltx-2"]
LANDSCAPE, PORTRAIT, SQUARE = (1600, 900), (900, 1600), (1000, 1000)
IMAGE: dict[str, Any] = {"image_key": "inputs/a/input.png"}


def _order(fields: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate(fields)


def _resolve(
    model: str = "preview",
    image_size: tuple[int, int] | None = LANDSCAPE,
    job_id: str = "job_12345678",
    original_sha256: str = "",
    **fields: Any,
) -> Shot:
    spec = _order({"model": model} | (IMAGE if image_size else {}) | fields)
    return shots.resolve(
        spec, MODELS[spec.model], job_id=job_id, image_size=image_size,
        original_sha256=original_sha256,
    )  # fmt: skip


def _sizes(shot: Shot) -> tuple[tuple[int, int], tuple[int, int]]:
    return (shot.width, shot.height), (shot.crop_width, shot.crop_height)


@pytest.mark.parametrize(
    ("model", "image", "asked", "generated", "delivered"),
    [
        ("preview", LANDSCAPE, (0, 0), (1280, 720), (1280, 720)),
        ("preview", PORTRAIT, (0, 0), (720, 1280), (720, 1280)),
        ("preview", SQUARE, (0, 0), (1280, 720), (1280, 720)),
        ("preview", None, (0, 0), (1280, 720), (1280, 720)),
        ("preview", LANDSCAPE, (640, 352), (640, 352), (640, 352)),
        ("preview", LANDSCAPE, (641, 353), (640, 352), (640, 352)),
        ("preview", SQUARE, (500, 0), (500, 500), (500, 500)),
        ("preview", PORTRAIT, (0, 1600), (900, 1600), (900, 1600)),
        ("preview", None, (640, 0), (640, 360), (640, 360)),
        ("wan-2.2", PORTRAIT, (0, 0), (704, 1280), (704, 1280)),
        ("wan-2.2", LANDSCAPE, (1280, 720), (1280, 704), (1280, 704)),
        ("wan-2.2", LANDSCAPE, (720, 1280), (704, 1280), (704, 1280)),
        ("ltx-2", LANDSCAPE, (0, 0), (1920, 1088), (1920, 1080)),
        ("ltx-2", PORTRAIT, (0, 0), (1088, 1920), (1080, 1920)),
        ("ltx-2", LANDSCAPE, (1000, 500), (1024, 512), (1000, 500)),
    ],
)
def test_sizes_follow_the_order_the_image_and_the_model(
    model: str,
    image: tuple[int, int] | None,
    asked: tuple[int, int],
    generated: tuple[int, int],
    delivered: tuple[int, int],
) -> None:
    shot = _resolve(model, image, prompt="a lake", width=asked[0], height=asked[1])
    assert _sizes(shot) == (generated, delivered)
    differs = asked not in ((0, 0), delivered) and 0 not in asked
    assert any("instead of" in warning for warning in shot.warnings) is differs


@given(
    st.sampled_from(sorted(MODELS)), st.integers(0, 4096), st.integers(0, 4096),
    st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)),
)  # fmt: skip
def test_every_size_is_refused_or_deliverable(
    model: str, width: int, height: int, image: tuple[int, int]
) -> None:
    try:
        shot = _resolve(model, image, width=width, height=height)
    except RequestRejected:
        return
    facts = MODELS[shot.model]
    assert shot.width % facts.grid == shot.height % facts.grid == 0
    assert shot.crop_width % 2 == shot.crop_height % 2 == 0
    assert 0 <= shot.width - shot.crop_width < facts.grid
    assert 0 <= shot.height - shot.crop_height < facts.grid
    assert shot.width * shot.height <= facts.max_pixels
    assert not facts.sizes or (shot.width, shot.height) in facts.sizes


@pytest.mark.parametrize(
    ("model", "fields", "frames", "warned"),
    [
        ("preview", {"duration": 5}, 121, False),
        ("preview", {"duration": 2.5, "fps": 50}, 126, False),
        ("preview", {"duration": 0.1}, 4, True),
        ("preview", {"duration": 1e-9}, 1, False),
        ("wan-2.2", {"duration": 5}, 121, False),
        ("wan-2.2", {"duration": 1.1}, 29, True),
        ("ltx-2", {"duration": 5}, 121, False),
        ("ltx-2", {"duration": 5, "fps": 25}, 129, True),
        ("ltx-2", {"duration": 30}, 721, False),
        ("ltx-2.5", {"duration": 30, "fps": 30}, 905, True),
        ("ltx-2", {"duration": 10, "fps": 30}, 305, True),
    ],
)
def test_frames_cover_the_duration_and_a_longer_video_is_told(
    model: str, fields: dict[str, Any], frames: int, warned: bool
) -> None:
    shot = _resolve(model, **fields)
    assert shot.frames == frames
    assert any("lasts" in warning for warning in shot.warnings) is warned


def test_what_is_left_out_comes_from_the_model() -> None:
    shot = _resolve("wan-2.2", audio=True)
    assert (shot.preset, shot.steps, shot.fps, shot.audio) == ("standard", 50, 24, False)
    assert shot.model_version == WAN.version
    assert _resolve("wan-2.2", preset="fast").steps == 3
    assert _resolve("wan-2.2", steps=20).steps == 20
    assert _resolve("ltx-2", steps=11).steps == 11
    assert _resolve("ltx-2").audio
    assert not _resolve("ltx-2", audio=False).audio


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "preview", "image_key": ""}, "neither an image nor a prompt"),
        ({"model": "preview", "preset": "best"}, r"no preset 'best'.*standard"),
        ({"model": "wan-2.2", "preset": "best"}, r"no preset 'best'.*standard, fast"),
        ({"model": "wan-2.2", "fps": 25}, r"25 frames per second.*one of: 24"),
        ({"model": "preview", "fps": 23}, r"one of: 24, 25, 30, 50, 60"),
        ({"model": "wan-2.2", "duration": 5.01}, r"5\.01 s are too long.*at most 5 s"),
        ({"model": "ltx-2", "steps": 12}, r"standard of ltx-2 always takes 11 steps, not 12"),
        ({"model": "wan-2.2", "preset": "fast", "steps": 4}, r"always takes 3 steps"),
        ({"model": "preview", "width": 15, "height": 64}, r"15x64.*16 to 4096"),
        ({"model": "ltx-2", "width": 255}, r"256 to 4096"),
        ({"model": "preview", "width": 4096, "height": 4096}, r"4096x4096 is too large"),
        ({"model": "ltx-2", "width": 3842, "height": 2160}, r"too large for ltx-2.*8355840"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_an_image_is_seen(
    fields: dict[str, Any], message: str
) -> None:
    spec = _order(IMAGE | fields)
    with pytest.raises(RequestRejected, match=message):
        shots.check(spec, MODELS[spec.model])


@pytest.mark.parametrize("model", MODELS)
def test_a_plain_order_passes_the_check(model: str) -> None:
    for fields in (IMAGE, {"image_url": "https://a.example/b.png"}, {"prompt": "a lake"}):
        spec = _order({"model": model} | fields)
        shots.check(spec, MODELS[spec.model])


@pytest.mark.parametrize("side", ["width", "height"])
def test_one_large_side_is_judged_with_the_other_that_the_image_gives(side: str) -> None:
    spec = _order({"model": "ltx-2", side: 3840} | IMAGE)
    shots.check(spec, LTX)
    with pytest.raises(RequestRejected, match="3840x3840 is too large"):
        shots.resolve(spec, LTX, job_id="job_12345678", image_size=SQUARE)


@pytest.mark.parametrize("image", [(10_000, 10), (10, 1000)], ids=["too low", "too high"])
def test_an_extreme_image_does_not_derive_an_impossible_side(image: tuple[int, int]) -> None:
    with pytest.raises(RequestRejected, match="leave both out"):
        _resolve(image_size=image, width=100)


def test_a_prompt_alone_needs_a_model_that_can_and_those_are_named() -> None:
    model = replace(WAN, text_to_video=False)
    spec = JobSpec(model="wan-2.2", prompt="a lake")
    with pytest.raises(RequestRejected, match=r"needs an image.*preview, wan-2\.2, ltx-2"):
        shots.check(spec, model)
    shots.check(spec.model_copy(update=IMAGE), model)


def test_a_seed_that_is_given_is_kept_and_another_depends_on_the_job_alone() -> None:
    assert _resolve(seed=0).seed == 0
    assert _resolve(seed=2**32 - 1).seed == 2**32 - 1
    assert _resolve().seed == seed_of("job_12345678")
    assert _resolve().seed == _resolve(prompt="another").seed
    assert _resolve().seed != _resolve(job_id="job_87654321").seed


def test_reuse_gives_equal_orders_of_different_jobs_equal_digests() -> None:
    first = _resolve(reuse=True, original_sha256="a", prompt="a lake")
    second = _resolve(reuse=True, original_sha256="a", prompt="a lake", job_id="job_87654321")
    assert first.digest("a") == second.digest("a")
    others = [
        _resolve(reuse=True, original_sha256="b", prompt="a lake"),
        _resolve(reuse=True, original_sha256="a", prompt="a sea"),
        _resolve(reuse=True, original_sha256="a", prompt="a lake", duration=4),
        _resolve(reuse=True, original_sha256="a", prompt="a lake", steps=9),
    ]
    assert len({shot.seed for shot in [first, *others]}) == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"duration": 0}, {"duration": -1}, {"duration": 1e9}, {"duration": 30.1},
        {"duration": math.nan}, {"duration": math.inf},
        {"prompt": "a" * 4001}, {"prompt": "a" * 10_000}, {"prompt": "a\x00b"},
        {"prompt": "\ud83c"}, {"negative_prompt": "\udf05"}, {"preset": "\x00"},
        {"width": -1}, {"width": 4097}, {"height": 10**9}, {"fps": 61}, {"fps": -1},
        {"seed": -2}, {"seed": 2**32}, {"steps": 201}, {"steps": -1},
        {"model": "sora"}, {"owner": "a b"}, {"unknown": 1},
        {"image_key": "outputs/a.png"}, {"image_key": "inputs/../secret"},
    ],
    ids=repr,
)  # fmt: skip
def test_an_order_out_of_bounds_cannot_be_made(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _order(fields)


@pytest.mark.parametrize(
    "prompt",
    ["", "🌅 sunrise 👩‍🚀", "日本の湖", "a" * 4000],
    ids=["none", "emoji", "kanji", "long"],
)
def test_every_other_prompt_is_kept_as_it_is(prompt: str) -> None:
    assert _resolve(prompt=prompt).prompt == prompt
