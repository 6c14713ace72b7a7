"""The vocabulary: orders that cannot be are refused by name, ids and digests stay the same."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stillreel.errors import RequestRejected
from stillreel.job import (
    DURATION_LIMIT,
    PROMPT_LIMIT,
    SEED_LIMIT,
    JobSpec,
    frames_for,
    job_id_of,
    seed_of,
    spec_of,
)
from tests.fake_backend import make_shot


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"duration": 0}, "duration: .*greater than 0"),
        ({"duration": -1}, "duration: .*greater than 0"),
        ({"duration": 1e9}, "duration: .*less than or equal to 30"),
        ({"duration": math.nan}, "duration: "),
        ({"duration": math.inf}, "duration: "),
        ({"duration": "long"}, "duration: "),
        ({"prompt": "x" * 10_000}, f"prompt: .*at most {PROMPT_LIMIT} characters"),
        ({"prompt": "a\x00b"}, "prompt: .*NUL"),
        ({"negative_prompt": "a\x00b"}, "negative_prompt: .*NUL"),
        ({"prompt": "\ud800"}, "prompt: "),
        ({"image_key": "outputs/x.png"}, "image_key: must be a key under inputs/"),
        ({"image_key": "inputs/../outputs/x.png"}, "image_key: must be a key under inputs/"),
        (
            {"model": "sora"},
            "model: .*'preview', 'wan-2.2', 'ltx-2', 'ltx-2.3', 'ltx-2.5' or",
        ),
        ({"codec": "vp9"}, "codec: .*'h264' or 'av1'"),
        ({"quality": "best"}, "quality: "),
        ({"width": -2}, "width: "),
        ({"width": 4097}, "width: "),
        ({"width": 1.5}, "width: "),
        ({"fps": 61}, "fps: "),
        ({"seed": -2}, "seed: "),
        ({"seed": SEED_LIMIT + 1}, "seed: "),
        ({"steps": 201}, "steps: "),
        ({"owner": "../other"}, "owner: "),
        ({"webhook_url": "h" * 2049}, "webhook_url: "),
        ({"typo": 1}, "typo: Extra inputs are not permitted"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestRejected, match=words) as caught:
        spec_of(values)
    assert len(caught.value.message.splitlines()) == 1
    assert "x" * 100 not in caught.value.message


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(RequestRejected, match=r"duration: .*; seed: .*; codec: "):
        spec_of({"duration": 0, "seed": -5, "codec": "none"})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"duration": 1e-9},
        {"duration": DURATION_LIMIT, "seed": SEED_LIMIT, "steps": 200, "fps": 60},
        {"prompt": "x" * PROMPT_LIMIT},
        {"prompt": "Ünïcödé 雪 🎬"},
        {"image_key": "inputs/a..b/c.png"},
    ],
    ids=["nothing", "shortest", "largest numbers", "longest prompt", "unicode", "dots"],
)
def test_an_order_within_its_bounds_survives_json(values: dict[str, Any]) -> None:
    spec = spec_of(values)
    assert spec_of(spec.to_json()) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_texts_are_stripped_and_the_order_cannot_be_changed() -> None:
    spec = spec_of({"prompt": "  zoom \n"})
    assert spec.prompt == "zoom"
    with pytest.raises(ValidationError, match="frozen"):
        spec.prompt = "pan"  # pyright: ignore[reportAttributeAccessIssue]


@given(st.uuids())
def test_a_run_without_a_key_of_ours_is_named_by_its_id(run_id: UUID) -> None:
    assert job_id_of(run_id) == job_id_of(str(run_id)) == f"job_{run_id.hex}"
    assert job_id_of(run_id, "scheduled 2025-01-01T00:00") == f"job_{run_id.hex}"
    assert job_id_of(run_id, "job_../../etc/passwd") == f"job_{run_id.hex}"
    assert job_id_of(run_id, "job_0123abcd") == "job_0123abcd"
    assert job_id_of(run_id, job_id_of(run_id)) == job_id_of(run_id)


@given(st.text())
def test_a_seed_is_one_of_the_allowed(text: str) -> None:
    assert 0 <= seed_of(text) <= SEED_LIMIT
    assert seed_of(text) == seed_of(text)


@given(
    duration=st.floats(1e-3, DURATION_LIMIT),
    fps=st.sampled_from([24, 25, 30, 50, 60]),
    step=st.sampled_from([1, 4, 8]),
)
def test_frames_cover_the_duration_on_the_grid(duration: float, fps: int, step: int) -> None:
    frames = frames_for(duration, fps, step)
    assert (frames - 1) % step == 0
    assert frames - 1 >= duration * fps - 1e-6
    assert frames - 1 - step < duration * fps


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"warnings": ("odd",)}, True),
        ({"crop_width": 30, "crop_height": 14}, True),
        ({"prompt": "other"}, False),
        ({"seed": 2}, False),
        ({"steps": 4}, False),
        ({"width": 64}, False),
        ({"model_version": "fake-2"}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_digest_depends_on_what_inference_depends_on(change: dict[str, Any], same: bool) -> None:
    shot = make_shot("sea")
    other = shot.model_copy(update=change)
    assert (shot.digest("image") == other.digest("image")) is same
    assert shot.digest("image") != shot.digest("other image")


def test_a_digest_is_the_same_in_another_process() -> None:
    code = "from tests.fake_backend import make_shot; print(make_shot('sea').digest('image'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == make_shot("sea").digest("image")


def test_a_digest_is_that_of_stored_latents_where_a_later_field_is_not_given() -> None:
    shot = make_shot("sea")
    before = {
        "model": "preview", "model_version": "fake-1", "preset": "standard", "prompt": "sea",
        "negative_prompt": "", "width": 32, "height": 16, "fps": 24, "frames": 5, "steps": 3,
        "seed": 1, "audio": False,
    }  # fmt: skip
    text = repr(sorted(before.items())) + "image"
    assert shot.digest("image") == hashlib.sha256(text.encode()).hexdigest()[:32]
    for change in ({"camera": "pan left"}, {"style_negative": "ducks"}):
        assert shot.model_copy(update=change).digest("image") != shot.digest("image")


def test_an_order_that_waits_since_before_styles_is_an_order() -> None:
    later = ("style", "camera")
    before = {name: v for name, v in JobSpec(prompt="sea").to_json().items() if name not in later}
    assert spec_of(before) == JobSpec(prompt="sea", style="", camera="")


@pytest.mark.parametrize(
    ("own", "style", "default", "read"),
    [
        ("", "", "", ""),
        ("", "", "noise", "noise"),
        ("ducks", "", "noise", "ducks"),
        ("", "text", "noise", "noise, text"),
        ("ducks", "text", "noise", "ducks, text"),
        ("", "text", "", "text"),
    ],
)
def test_a_style_adds_to_the_negative_prompt_that_holds(
    own: str, style: str, default: str, read: str
) -> None:
    shot = make_shot().model_copy(update={"negative_prompt": own, "style_negative": style})
    assert shot.negative_text(default) == read
