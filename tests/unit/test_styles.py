"""Styles come from a file of ours and the operator's, whose mistakes are all named at once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillreel.errors import RequestRejected, SettingsInvalid
from stillreel.models.motions import MOTIONS, read_camera
from stillreel.models.registry import MODELS
from stillreel.models.styles import OWN_FILE, find_style, get_styles, read_styles

SEPIA = """
[sepia]
title = "Sepia"
description = "Brown."
prompt = "{prompt} In brown."
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The operator's file, still to be written."""
    path = tmp_path / "styles.toml"
    monkeypatch.setenv("STILLREEL_STYLES", str(path))
    return path


def test_our_own_styles_are_distinct_and_complete() -> None:
    styles = read_styles(OWN_FILE)
    assert len(styles) >= 10
    for name in ("title", "description", "prompt", "negative_prompt", "sound"):
        texts = [getattr(style, name) for style in styles.values()]
        assert all(texts), name
        assert len(set(texts)) == len(texts), name
    for style in styles.values():
        assert style.prompt.startswith("{prompt} "), "an order may have no prompt"
        assert style.camera == str(read_camera(style.camera))
        assert len(style.prompt) < 600, "WAN 2.2 reads 512 tokens, the caller's words included"
        assert set(style.settings) <= set(MODELS)


def test_an_operator_adds_styles_and_replaces_ours(write: Path) -> None:
    write.write_text(SEPIA + SEPIA.replace("sepia", "noir"))
    assert [*get_styles()] == [*read_styles(OWN_FILE), "sepia"]
    assert find_style("noir").title == find_style("SEPIA").title == "Sepia"


def test_without_a_file_of_the_operators_there_are_ours() -> None:
    assert get_styles() == read_styles(OWN_FILE)
    with pytest.raises(RequestRejected, match=r"no style 'sepia'.*cinematic.*leave style out"):
        find_style("sepia")


def test_every_mistake_is_named_at_once_with_what_is_allowed(write: Path) -> None:
    write.write_text(
        """
        loose = 1
        ["Bad Name"]
        title = "T"
        description = "D"
        prompt = "{prompt}"
        [lacks]
        title = "T"
        [places]
        title = ""
        description = 3
        prompt = "{promt} and {prompt}"
        [twice]
        title = "T"
        description = "D"
        prompt = "{prompt} {prompt}"
        camera = "fly away"
        colour = "red"
        [nul]
        title = "T"
        description = "D"
        prompt = "{prompt} \\u0000"
        [models]
        title = "T"
        description = "D"
        prompt = "{prompt}"
        [models.settings.ltx-2]
        preset = "turbo"
        [models.settings."wan-2.2"]
        preset = "fast"
        steps = 4
        fps = 30
        [unknown]
        title = "T"
        description = "D"
        prompt = "{prompt}"
        [unknown.settings.sora]
        fps = 24
        """
    )
    with pytest.raises(SettingsInvalid) as caught:
        get_styles()
    message = caught.value.message
    for words in (
        f"STILLREEL_STYLES: {write} has 13 mistake(s)",
        "loose stands outside of a style",
        "'Bad Name' is no name of a style; use 1 to 40 of a-z",
        "lacks: description: Field required",
        "lacks: prompt: Field required",
        "places: title: ",
        "places: description: Input should be a valid string",
        "places: prompt: holds '{promt}'",
        "twice: prompt: needs {prompt} exactly once",
        "twice: camera: There is no motion 'fly away'",
        "twice: colour: Extra inputs are not permitted",
        "nul: prompt: contains the NUL character",
        "ltx-2 has no preset 'turbo'; it has: standard, ",
        "fast of wan-2.2 always takes 3 steps, not 4",
        "wan-2.2 does not make 30 frames per second; it makes: 24",
        "unknown: settings.sora",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("a = [", "Invalid value"),
        (SEPIA * 2, "declare"),
        (b"\xff", "utf-8"),
    ],
    ids=["missing", "broken", "twice", "binary"],
)
def test_a_file_that_cannot_be_read_is_a_wrong_setting(
    write: Path, text: str | bytes | None, says: str
) -> None:
    if text is not None:
        write.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SettingsInvalid, match=rf"(?s)STILLREEL_STYLES: .*cannot be read.*{says}"):
        get_styles()


@pytest.mark.parametrize("command", ["styles", "up", "generate"])
def test_commands_tell_mistakes_at_their_start(write: Path, command: str, tmp_path: Path) -> None:
    from stillreel.cli import app

    write.write_text("[x]\n")
    caught = CliRunner().invoke(app, [command]).exception
    assert isinstance(caught, SettingsInvalid)
    assert "3 mistake(s)" in caught.message


def test_the_styles_of_this_machine_are_listed_without_an_api(
    write: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillreel.cli import app

    write.write_text(SEPIA)
    monkeypatch.setenv("STILLREEL_API_URL", "http://127.0.0.1:1")
    done = CliRunner().invoke(app, ["styles", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [style["name"] for style in found["styles"]] == [*get_styles()]
    assert [motion["name"] for motion in found["motions"]] == [*MOTIONS]
    assert found["speeds"] == ["slow", "fast"]
    shown = CliRunner().invoke(app, ["styles"]).stdout
    assert "sepia         -" in shown
    assert "pan left" in shown


def test_the_page_lists_our_styles_and_its_example_is_a_good_file(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "styles.md").read_text()
    listed = re.findall(r"^\| `([a-z-]+)` \| (.+) \| `(.+)` \|$", page, re.MULTILINE)
    ours = [(name, s.description, s.camera) for name, s in read_styles(OWN_FILE).items()]
    assert listed == ours
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "styles.toml").write_text(example)
    assert [*read_styles(tmp_path / "styles.toml")] == ["sunset"]
    motions = re.findall(r"`([a-z ]+)`", page[page.index("| Axis") : page.index("One motion")])
    assert motions == [*MOTIONS]
