"""NVENC on a GPU that has it: opens, and makes a video of as many frames as it was given."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from stillreel.encoder import encode_video
from stillreel.models.base import Decoded
from stillreel.nvenc import NVENC, has_nvenc

SIZE, FRAMES = (640, 352), 48


def test_a_gpu_that_has_it_makes_a_whole_video(tmp_path: Path) -> None:
    if not has_nvenc():
        pytest.skip("needs a GPU with NVENC, for example an A10G; an A100 or H100 has none")
    noise = np.random.default_rng(1).integers(0, 255, (FRAMES, SIZE[1], SIZE[0], 3), np.uint8)
    decoded = Decoded(*SIZE, FRAMES, iter([noise]))
    made = encode_video(decoded, tmp_path, stem="clip", fps=24, crop=SIZE, encoder=NVENC)
    assert (made.encoder, made.width, made.height) == (NVENC, *SIZE)
    with av.open(made.video) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.color_range == 1
        assert sum(1 for _ in container.decode(stream)) == FRAMES
