"""What the documentation names is there: commands parse, targets, settings and links exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from stillreel.cli import app
from stillreel.settings_docs import settings_page
from tests.pages import FENCE, PAGES, ROOT, SHELLS
from tests.stack import free_port

RUNS = re.compile(r"^<!-- runs -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENDS = {"|", ">", "<", ";", "&&", "||", "&"}
NOT_SETTINGS = {
    "STILLREEL_HOME_",
    # Of scripts and images, which read no settings.
    "STILLREEL_HOST_HOURS",
    "STILLREEL_IDLE_MINUTES",
}


@dataclass(frozen=True)
class Command:
    """Something that a page has people type; one in a sentence may leave its arguments out."""

    page: str
    words: tuple[str, ...]
    is_whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands(program: str) -> Iterator[Command]:
    """Every command of this program in the pages."""
    for path in PAGES:
        text, page = path.read_text(), str(path.relative_to(ROOT))
        for language, block in FENCE.findall(text):
            if language in SHELLS:
                for line in block.replace("\\\n", " ").splitlines():
                    if words := _call(line, program):
                        yield Command(page, words, is_whole=True)
        for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text)):
            if span.startswith(f"{program} ") and (words := _call(_bare(span), program)):
                yield Command(page, words, is_whole=False)


def _bare(span: str) -> str:
    """Without the brackets around what may be left out."""
    return span.replace("[", "").replace("]", "")


def _call(line: str, program: str) -> tuple[str, ...]:
    """The words after the program, without what is before it in a line, and after it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        words = list(lexer)
    except ValueError:  # a quotation that goes on in the next line
        words = line.split()
    names = {program, f".venv/bin/{program}"}
    start = next((n for n, word in enumerate(words) if word in names), None)
    before = words[:start]
    if start is None or not all("=" in word or word == "sudo" for word in before):
        return ()
    rest = words[start + 1 :]
    end = next((n for n, word in enumerate(rest) if word in ENDS), len(rest))
    return tuple(rest[:end])


@cache
def command_line() -> Any:
    """The whole command line; building it takes a while."""
    return typer.main.get_command(app)


def complaint(command: Command) -> str:
    """What the command line has against this command; empty where it takes it.

    Typer has a click of its own in some releases, so click's classes are told by what they have.
    """
    found = command_line()
    context = found.context_class(found, info_name="stillreel")
    words = list(command.words)
    while hasattr(found, "get_command") and words and not words[0].startswith("-"):
        name = words.pop(0)
        inner = found.get_command(context, name)
        if inner is None:
            return f"no command {name}"
        context = inner.context_class(inner, parent=context, info_name=name)
        found = inner
    known = {option for param in found.params for option in param.opts} | {"--help", "-h"}
    if hasattr(found, "get_command"):  # its options act at once: one of them installs completion
        return "" if set(words) <= known else f"no option {words[0]}"
    if {"--help", "-h"} & set(words):
        return ""
    try:
        found.make_context(found.name, words, parent=context.parent)
    except Exception as exc:  # of either click
        kind = type(exc).__name__
        in_part = ("MissingParameter", "BadOptionUsage") if not command.is_whole else ()
        if kind in in_part:
            return ""
        return f"{kind}: {exc}"
    return ""


def test_commands_are_found_and_wrong_ones_noticed() -> None:
    assert len(list(commands("stillreel"))) > 60
    wrong = [("submitt",), ("up", "--poool", "g5"), ("models", "pull")]
    assert all(complaint(Command("", words, is_whole=True)) for words in wrong)
    assert _call('A=1 stillreel submit "a b" -o x.mp4 && ls # why', "stillreel") == (
        *("submit", "a b", "-o", "x.mp4"),
    )


def test_every_command_of_the_pages_is_one_of_the_command_line() -> None:
    wrong = {str(each): said for each in commands("stillreel") if (said := complaint(each))}
    assert wrong == {}


def leaves(command: Any = None, name: str = "stillreel") -> Iterator[tuple[str, Any]]:
    """Every command that is no group, with its whole name."""
    command = command or command_line()
    if not hasattr(command, "commands"):
        yield name, command
        return
    for inner, found in command.commands.items():
        yield from leaves(found, f"{name} {inner}")


SERVES = {"up", "host", "server", "control", "api", "keeper"}
"""Commands that run until they are stopped, and print no result."""


def test_the_help_of_every_command_has_an_example_that_is_right() -> None:
    wrong: dict[str, str] = {}
    for name, command in leaves():
        example = re.search(r"Example: (.+(?:\n\S.*)*)", command.help or "")
        needs_none = not [param for param in command.params if "--json" not in param.opts]
        if not example and not needs_none:
            wrong[name] = "has none"
        elif example:
            words = _call(" ".join(example[1].split()), "stillreel")
            said = complaint(Command("", words, is_whole=True))
            is_ours = " ".join(("stillreel", *words)).startswith(name)
            if said or not is_ours:
                wrong[name] = said or f"is of another command: {words}"
    assert wrong == {}


def test_every_command_that_gives_a_result_gives_it_as_json_too() -> None:
    there = dict(leaves())
    assert {"stillreel submit", "stillreel doctor", "stillreel fleet list"} <= set(there)
    without = {
        name.removeprefix("stillreel ")
        for name, command in there.items()
        if not any("--json" in param.opts for param in command.params)
    }
    assert without == SERVES | {"project-dir"}


def test_every_make_target_of_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for each in commands("make") for word in each.words if "=" not in word}
    assert {"demo", "test", "up"} <= targets
    assert {"demo", "test"} <= named
    assert named - targets == set()


def test_every_setting_of_the_pages_exists() -> None:
    there = set(re.findall(r"\bSTILLREEL_[A-Z0-9_]+\b", settings_page())) | NOT_SETTINGS
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in PAGES
        for name in re.findall(r"\bSTILLREEL_[A-Z0-9_]+\b(?!\*)", path.read_text())
        if name not in there
    }
    assert wrong == set()


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that a code host gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        number = next(n for n in range(100) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def test_every_anchor_of_a_link_is_a_heading() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {target}#{anchor}"
        for path in PAGES
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text())
        if "://" not in target
        and (page := path.parent / target if target else path).suffix == ".md"
        and anchor not in anchors(page)
    ]
    assert broken == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page}" not in index} == set()


def test_examples_that_need_no_services_run(tmp_path: Path) -> None:
    """In the order of the pages; docs/api.md has a test of its own, beside an API."""
    blocks = [
        f"echo '--- {path.name}' >&2\n{block}"
        for path in PAGES
        if path.name != "api.md"
        for block in RUNS.findall(path.read_text())
    ]
    assert blocks
    Image.linear_gradient("L").resize((160, 90)).convert("RGB").save(tmp_path / "photo.jpg")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "STILLREEL_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "\n".join(["set -euo pipefail", *blocks])],
        cwd=tmp_path,
        env={
            **kept,
            "PATH": path,
            "HOME": str(tmp_path),
            "STILLREEL_HOME": str(tmp_path / "home"),
            "STILLREEL_API_PORT": str(free_port()),  # others may listen on the usual ones
            "STILLREEL_PREFECT_PORT": str(free_port()),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
