"""The whole way from a photo to an MP4 with tiny weights: the command line, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from stillreel import cli
from tests.models.shots import tiny_image


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all commands: its database is made once."""
    return tmp_path_factory.mktemp("home")


def stillreel(
    folder: Path, home: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own, run in `folder`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"STILLREEL_HOME": str(home), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, "-m", "stillreel.cli", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def receipt_of(home: Path, made: dict[str, Any]) -> dict[str, Any]:
    (path,) = home.glob(f"**/outputs/{made['job_id']}/receipt.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("model", "options", "size", "frames"),
    [
        ("wan-2.2", ["--duration", "0.2"], (1280, 704), 9),
        ("ltx-2", ["--duration", "0.3", "--width", "256", "--height", "256"], (256, 256), 9),
        pytest.param(
            "ltx-2.5",
            ["--duration", "0.3", "--width", "256", "--height", "256"],
            (256, 256),
            9,
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_photo_becomes_a_video(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    home: Path,
    model: str,
    options: list[str],
    size: tuple[int, int],
    frames: int,
) -> None:
    fixture = {"wan-2.2": "wan_folder", "ltx-2": "ltx_folder", "ltx-2.5": "ltx25_folder"}[model]
    weights: Path = request.getfixturevalue(fixture)
    tiny_image(640, 480).save(tmp_path / "photo.png")
    order = ["photo.png", "--prompt", "waves", "--model", model, "--seed", "3", *options]
    done = stillreel(tmp_path, home, "generate", *order, "--json", MODEL_PATH=str(weights))
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    with av.open(made["video"]) as movie:
        stream = movie.streams.video[0]
        assert (stream.width, stream.height) == size
        assert len(list(movie.decode(stream))) == frames
        rates = {"wan-2.2": [], "ltx-2": [24000], "ltx-2.5": [48000]}[model]
        assert [stream.rate for stream in movie.streams.audio] == rates
    receipt = receipt_of(home, made)
    assert receipt["model"]["name"] == model
    assert receipt["model"]["plan"] == "cpu"
    assert receipt["took"]["infer_seconds"].keys() >= {"text", "denoise", "load", "gpu"}


def test_a_model_without_weights_is_refused_at_once_with_what_to_run(
    tmp_path: Path, home: Path
) -> None:
    order = ["--prompt", "waves", "--model", "wan-2.2", "--preset", "fast"]
    done = stillreel(tmp_path, home, "generate", *order, MODEL_PATH=str(tmp_path))
    assert done.returncode == cli.EXIT_USAGE
    assert "FastWan2.2-TI2V-5B-FullAttn" in done.stderr
    assert "stillreel models pull wan-2.2" in done.stderr
    assert len(done.stderr.splitlines()) == 1
