"""`stillreel generate`: what is refused at once and clearly, and one video from start to end."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import av
import pytest
from PIL import Image

from stillreel import cli

from .conftest import png


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`run("generate", ...)` is the command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["stillreel", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return call


def bomb() -> bytes:
    """A PNG whose header says 30000 x 30000."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + png()[33:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"hello", "not an image"),
        (png()[:200], "damaged or cut off"),
        (bomb(), "too many pixels"),
    ],
    ids=["0 bytes", "text", "truncated", "bomb"],
)
def test_a_bad_image_is_refused_in_one_line(
    run: Run, tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "in.png").write_bytes(data)
    refused(run("generate", "in.png"), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.png"], "there is no file missing.png"),
        (["."], "is a directory"),
        (["in.png", "--scene"], "not both"),
        ([], "neither an image nor a prompt"),
        (["in.png", "--duration", "0"], "duration"),
        (["in.png", "--duration", "-1"], "duration"),
        (["in.png", "--duration", "1e9"], "duration"),
        (["in.png", "--duration", "nan"], "duration"),
        (["in.png", "--prompt", "x" * 10_000], "prompt"),
        (["in.png", "--model", "sora"], "'preview', 'wan-2.2' or 'ltx-2'"),
        (["in.png", "--codec", "vp9"], "codec"),
        (["in.png", "--width", "8"], "not a size"),
        (["in.png", "--fps", "23"], "choose one of"),
        (["in.png", "--duration", "0", "--codec", "vp9"], "; codec"),
        (["in.png", "-o", "in.png/out.mp4"], "in.png is a file"),
        (["in.png", "-o", "/proc/nowhere/out.mp4"], "cannot be written"),
    ],
    ids=lambda value: " ".join(value)[:40] or "nothing" if isinstance(value, list) else "",
)
def test_a_wrong_order_is_refused_in_one_line(
    run: Run, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "in.png").write_bytes(png())
    refused(run("generate", *arguments), words)


def refused(outcome: Outcome, words: str) -> None:
    assert outcome.code == cli.EXIT_USAGE
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert len(outcome.err) < 600
    assert outcome.err.startswith("error (")
    assert outcome.out == ""
    assert list(Path().glob("*.mp4")) == []


def test_an_unknown_option_is_wrong_use(run: Run) -> None:
    outcome = run("generate", "--nonsense")
    assert outcome.code == cli.EXIT_USAGE
    assert "No such option" in outcome.err


def test_wrong_settings_are_told_all_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_LIMIT", "0")
    monkeypatch.setenv("STILLREEL_HOST_PRICE", "-1")
    outcome = run("generate", "--scene")
    assert outcome.code == cli.EXIT_SETTINGS
    assert "STILLREEL_LIMIT" in outcome.err
    assert "STILLREEL_HOST_PRICE" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("command", ["host", "deploy"])
def test_what_needs_a_prefect_server_says_so(run: Run, command: str) -> None:
    outcome = run(command)
    assert outcome.code == cli.EXIT_SETTINGS
    assert "PREFECT_API_URL is not set" in outcome.err


def test_version_and_help_work(run: Run) -> None:
    assert run("version").out.strip().count(".") == 2
    assert "generate" in run("--help").out


def test_one_command_makes_one_video(tmp_path: Path) -> None:
    """From a home that is empty, without a server of any kind."""
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    arguments = ["photo.jpg", "--prompt", "slow zoom in", "--duration", "0.5", "--json"]
    argv = [sys.executable, "-m", "stillreel.cli", "generate", *arguments]
    env = os.environ | {"STILLREEL_HOME": str(tmp_path / "home")}
    env = {name: value for name, value in env.items() if not name.startswith("PREFECT_")}
    size = ["--width", "129", "--height", "72"]
    done = subprocess.run(
        [*argv, *size], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["video"] == str(tmp_path / "photo.mp4")
    with av.open(made["video"]) as movie:
        stream = movie.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (128, 72, 13)
    with Image.open(BytesIO(Path(made["poster"]).read_bytes())) as poster:
        assert poster.size == (128, 72)
    assert "note: The video is 128x72 instead of 129x72" in done.stderr
    assert [line.split()[-1] for line in done.stderr.splitlines() if "%" in line] == [
        "fetch",
        "infer",
        "encode",
        "upload",
        "notify",
    ]
    assert "Traceback" not in done.stderr
