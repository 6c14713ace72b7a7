"""The receipt says what a job took, in numbers that were measured."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.job import Clip, JobSpec, Latents, Prepared, SourceImage
from stillreel.receipt import cost_usd, gpu_seconds, write_receipt
from tests.fake_backend import make_shot

AT = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
SOURCE = SourceImage(
    key="inputs/job/source.png", width=32, height=16, sha256="fitted", original_sha256="original"
)
CLIP = Clip(
    host="gpu-1",
    video_path="/files/clip.mp4",
    poster_path="/files/clip.jpg",
    teaser_path="/files/clip-teaser.mp4",
    sha256="abc",
    size=1000,
    width=32,
    height=16,
    fps=24,
    frames=48,
    codec="h264",
    encoder="libx264",
    has_audio=False,
    decode_gpu_seconds=2.0,
    encode_seconds=3.21098,
)


def latents(**change: Any) -> Latents:
    values: dict[str, Any] = {
        "key": "latents/job/digest.safetensors",
        "sha256": "def",
        "size": 10,
        "seconds": {"load": 1.5, "denoise": 7.12345, "gpu": 10.0},
        "dtype": "bfloat16",
        "plan": "text-first",
        "warnings": ("Out of memory at first.",),
        "host": "gpu-1",
        "host_price": 0.66,
    }
    return Latents.model_validate(values | change)


def receipt(**change: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "spec": JobSpec(prompt="slow zoom"),
        "prepared": Prepared(shot=make_shot("slow zoom"), source=SOURCE, seconds=0.12345),
        "latents": latents(),
        "clip": CLIP,
    } | change
    return write_receipt(
        "job_1",
        values["spec"],
        values["prepared"],
        values["latents"],
        values["clip"],
        upload_seconds=0.5,
        execution=2,
        completed_at=AT,
        objects={"video": "outputs/job_1/output.mp4"},
    )


def test_what_a_server_elsewhere_charges_is_part_of_the_cost() -> None:
    elsewhere = latents(seconds={"remote": 60.0, "gpu": 0.0}, remote_usd=0.5)
    cost = receipt(latents=elsewhere)["cost"]
    assert cost["remote_usd"] == 0.5
    assert cost["usd"] == pytest.approx(0.5 + 2.0 * 0.66 / 3600, abs=1e-6)
    assert receipt()["cost"]["remote_usd"] == 0.0


def test_a_receipt_is_json_and_says_what_was_made_of_what() -> None:
    made = json.loads(json.dumps(receipt()))
    assert made["job_id"] == "job_1"
    assert made["completed_at"] == "2025-01-02T03:04:05.000+00:00"
    assert made["model"] == {
        "name": "preview",
        "version": "fake-1",
        "preset": "standard",
        "steps": 3,
        "seed": 1,
        "dtype": "bfloat16",
        "plan": "text-first",
    }
    assert made["input"] == {
        "prompt": "slow zoom",
        "style": None,
        "camera": None,
        "model_prompt": "slow zoom",
        "image_sha256": "original",
    }
    assert made["video"]["video"] == "outputs/job_1/output.mp4"
    assert (made["video"]["seconds"], made["video"]["frames"]) == (2.0, 48)
    assert (made["video"]["codec"], made["video"]["encoder"]) == ("h264", "libx264")


def test_a_receipt_has_the_time_of_each_stage_and_the_cost() -> None:
    made = receipt()
    assert made["took"] == {
        "fetch_seconds": 0.123,
        "infer_seconds": {"load": 1.5, "denoise": 7.123, "gpu": 10.0},
        "encode_seconds": 3.211,
        "upload_seconds": 0.5,
        "gpu_seconds": 12.0,
        "execution": 2,
    }
    assert made["cost"] == {
        "host": "gpu-1",
        "usd_per_hour": 0.66,
        "remote_usd": 0.0,
        "usd": 0.0022,
        "reused_from": "",
    }


def test_a_receipt_shows_no_path_of_the_host() -> None:
    assert "/files/" not in json.dumps(receipt())


def test_a_prompt_that_is_not_to_be_embedded_is_not_in_the_receipt() -> None:
    made = receipt(spec=JobSpec(prompt="secret words", embed_prompt=False))
    assert made["input"]["prompt"] is None
    assert "secret words" not in json.dumps(made)


def test_a_prompt_alone_has_no_image() -> None:
    made = receipt(prepared=Prepared(shot=make_shot("slow zoom")))
    assert made["input"]["image_sha256"] is None


def test_reused_latents_cost_their_decode_only() -> None:
    reused = latents(seconds={"gpu": 0.0}, reused_from="job_0")
    assert gpu_seconds(reused, CLIP) == 2.0
    assert receipt(latents=reused)["cost"]["reused_from"] == "job_0"


@given(seconds=st.floats(0, 10**6), price=st.floats(0, 1000))
def test_the_cost_is_the_time_at_the_price(seconds: float, price: float) -> None:
    assert cost_usd(seconds, price) == pytest.approx(seconds * price / 3600, abs=1e-6)


def test_a_receipt_warns_of_what_the_shot_the_model_and_the_decode_could_not_do() -> None:
    shot = make_shot().model_copy(update={"warnings": ("A little longer.",)})
    clip = CLIP.model_copy(update={"warnings": ("In tiles.",)})
    made = receipt(prepared=Prepared(shot=shot), clip=clip)
    assert made["warnings"] == ["A little longer.", "Out of memory at first.", "In tiles."]


@pytest.mark.parametrize("embed", [True, False])
def test_style_camera_and_what_was_read_are_as_private_as_the_prompt(embed: bool) -> None:
    shot = make_shot("A boat. The camera pans left.").model_copy(update={"camera": "pan left"})
    spec = JobSpec(prompt="A boat", style="noir", camera="Pan-Left", embed_prompt=embed)
    told = receipt(spec=spec, prepared=Prepared(shot=shot, source=SOURCE))["input"]
    assert told.pop("image_sha256") == "original"
    assert told == {
        "prompt": "A boat" if embed else None,
        "style": "noir" if embed else None,
        "camera": "pan left" if embed else None,
        "model_prompt": "A boat. The camera pans left." if embed else None,
    }
