"""Which encoder makes a video, and that one which does not open here is found out by opening it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stillreel import nvenc
from stillreel.encoder import encode_video
from stillreel.errors import EncodeFailed
from stillreel.job import Codec
from stillreel.models.base import Decoded
from stillreel.nvenc import NVENC, distrust_nvenc, encoder_for, has_nvenc, nvenc_options

HD = (1920, 1080)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvenc, "_known", {})


@pytest.fixture(scope="module")
def no_gpu() -> None:
    """These tests are about machines without NVENC; tests/gpu has those about the others."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU of NVIDIA, which may have NVENC")


@pytest.mark.parametrize(
    ("codec", "size", "wanted", "works", "encoder"),
    [
        ("h264", HD, True, True, NVENC),
        ("h264", HD, True, False, "libx264"),
        ("h264", HD, False, True, "libx264"),
        ("av1", HD, True, True, "libsvtav1"),
        ("h264", (4096, 146), True, True, NVENC),
        ("h264", (4098, 2160), True, True, "libx264"),
        ("h264", (256, 144), True, True, "libx264"),
    ],
)
def test_nvenc_makes_what_it_can_where_it_is_wanted(
    codec: Codec, size: tuple[int, int], wanted: bool, works: bool, encoder: str
) -> None:
    assert encoder_for(codec, size, wanted=wanted, works=lambda: works) == encoder


@pytest.mark.parametrize(("codec", "wanted"), [("h264", False), ("av1", True)])
def test_nothing_is_tried_where_it_would_not_be_used(codec: Codec, wanted: bool) -> None:
    def works() -> bool:
        raise AssertionError("it was tried")

    assert encoder_for(codec, HD, wanted=wanted, works=works) != NVENC


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_fails_to_open_once_and_x264_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        assert encoder_for("h264", HD, wanted=True) == "libx264"
    assert caplog.text.count("NVENC does not work here") == 1


@pytest.mark.usefixtures("no_gpu")
def test_a_video_that_it_fails_on_is_an_error_and_the_next_try_is_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(nvenc._known, NVENC, True)  # it worked when it was tried
    size = (160, 160)
    assert encoder_for("h264", size, wanted=True) == NVENC
    with pytest.raises(EncodeFailed):
        encode(tmp_path, size, NVENC)
    assert list(tmp_path.iterdir()) == []
    assert encoder_for("h264", size, wanted=True) == "libx264"
    assert encode(tmp_path, size, "libx264") == "libx264"


def test_what_is_distrusted_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    distrust_nvenc()
    assert not has_nvenc()


def test_a_library_without_it_is_a_machine_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvenc, "NVENC", "h264_of_nobody")
    assert not has_nvenc()


def test_the_quality_is_on_the_scale_of_x264_and_no_bit_rate_caps_it() -> None:
    options = nvenc_options(20)
    assert (options["rc"], options["cq"], options["b"]) == ("vbr", "20", "0")


def encode(folder: Path, size: tuple[int, int], encoder: str) -> str:
    frames = np.zeros((2, size[1], size[0], 3), np.uint8)
    decoded = Decoded(*size, 2, iter([frames]))
    made = encode_video(decoded, folder, stem="clip", fps=24, crop=size, encoder=encoder)
    return made.encoder
