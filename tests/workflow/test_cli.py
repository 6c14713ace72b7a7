"""`stillreel generate`: what is refused at once and clearly, and one video from start to end."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import av
import pytest
import typer
from PIL import Image

from stillreel import cli
from stillreel.errors import (
    DeploymentInvalid,
    DiskFull,
    ImageFetchFailed,
    ImageTooLarge,
    JobFailed,
    ModelUnavailable,
    OutputUnwritable,
    RequestRejected,
    SettingsInvalid,
    StillreelError,
    StorageRefused,
    StorageUnavailable,
)

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
        (
            ["in.png", "--model", "sora"],
            "'preview', 'wan-2.2', 'ltx-2', 'ltx-2.3', 'ltx-2.5' or",
        ),
        (["in.png", "--codec", "vp9"], "codec"),
        (["in.png", "--width", "8"], "not a size"),
        (["in.png", "--fps", "23"], "choose one of"),
        (["in.png", "--duration", "0", "--codec", "vp9"], "; codec"),
        (["/dev/zero"], "is a device"),
        (["in.png", "-o", "out.mkv"], "ends with .mp4"),
        (["photo-poster.jpg", "-o", "photo.mp4"], "over your image"),
        (["in.png", "-o", "in.png/out.mp4"], "in.png is a file"),
        (["in.png", "-o", "/proc/nowhere/out.mp4"], "cannot be written"),
    ],
    ids=lambda value: " ".join(value)[:40] or "nothing" if isinstance(value, list) else "",
)
def test_a_wrong_order_is_refused_in_one_line(
    run: Run, tmp_path: Path, arguments: list[str], words: str
) -> None:
    for name in ("in.png", "photo-poster.jpg"):
        (tmp_path / name).write_bytes(png())
    refused(run("generate", *arguments), words)
    assert (tmp_path / "photo-poster.jpg").read_bytes() == png()


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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestRejected, cli.EXIT_USAGE),
        (ImageTooLarge, cli.EXIT_USAGE),
        (OutputUnwritable, cli.EXIT_USAGE),
        (ModelUnavailable, cli.EXIT_USAGE),
        (SettingsInvalid, cli.EXIT_SETTINGS),
        (DeploymentInvalid, cli.EXIT_SETTINGS),
        (StorageRefused, cli.EXIT_SETTINGS),
        (StorageUnavailable, cli.EXIT_FAILED),
        (ImageFetchFailed, cli.EXIT_FAILED),
        (DiskFull, cli.EXIT_FAILED),
        (JobFailed, cli.EXIT_FAILED),
    ],
)
def test_the_exit_code_says_whose_turn_it_is(error: type[StillreelError], code: int) -> None:
    assert cli.exit_code(error()) == code


def test_what_nobody_foresaw_is_one_line_and_a_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def surprise(_: object) -> NoReturn:
        raise IndexError("a\nsurprise")

    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path))
    monkeypatch.setattr(typer, "echo", surprise)
    outcome = run("version")
    assert outcome.code == cli.EXIT_FAILED
    [line] = outcome.err.splitlines()
    assert line.startswith("error (internal): IndexError: a surprise; this is a bug")
    [file] = tmp_path.glob("error-*.txt")
    assert line.endswith(str(file))
    assert "Traceback" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("command", [["up"], ["generate", "--prompt", "zoom in"], ["host"]])
def test_a_home_that_cannot_be_made_is_a_wrong_setting(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / "file" / "home"))
    outcome = run(*command)
    assert outcome.code == cli.EXIT_SETTINGS
    assert "STILLREEL_HOME" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def command_line(
    tmp_path: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own, whose home is `home`."""
    env = os.environ | {"STILLREEL_HOME": str(tmp_path / "home")}
    env = {name: value for name, value in env.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "stillreel.cli", *arguments],
        cwd=tmp_path,
        env=env | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_server_that_cannot_start_fails_the_video_at_once(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "run").write_text("where its socket should be")
    done = command_line(tmp_path, "generate", "--scene")
    assert done.returncode == cli.EXIT_FAILED
    assert "the model server ended with code 1; its last line: FileExistsError" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.glob("*.mp4")) == []


@pytest.mark.parametrize("command", [["deploy"], ["generate", "--scene"]])
def test_a_prefect_server_that_is_away_is_told_in_one_line(
    tmp_path: Path, command: list[str]
) -> None:
    with socket.socket() as probe:  # bound, but nobody listens
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/api"
        done = command_line(tmp_path, *command, PREFECT_API_URL=url)
    assert done.returncode == cli.EXIT_FAILED
    assert "check PREFECT_API_URL" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "words"),
    [(["--style", "sepia"], "no style 'sepia'"), (["--camera", "fly"], "no motion 'fly'")],
    ids=["style", "camera"],
)
def test_an_unknown_style_or_motion_is_refused_in_one_line(
    run: Run, option: list[str], words: str
) -> None:
    done = run("generate", "--prompt", "a boat", *option)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_version_and_help_work(run: Run) -> None:
    assert run("version").out.strip().count(".") == 2
    assert "generate" in run("--help").out


def test_one_command_makes_one_video(tmp_path: Path) -> None:
    """From a home that is empty, without a server of any kind."""
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    photo = (tmp_path / "photo.jpg").read_bytes()
    arguments = ["photo.jpg", "--prompt", "slow zoom in", "--duration", "0.5", "--json"]
    size = ["--width", "129", "--height", "72"]
    done = command_line(tmp_path, "generate", *arguments, *size)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["video"] == str(tmp_path / "photo.mp4")
    assert made["poster"] == str(tmp_path / "photo-poster.jpg")
    assert (tmp_path / "photo.jpg").read_bytes() == photo
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
