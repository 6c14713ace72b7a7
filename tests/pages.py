"""What the documentation has people type: its pages, their blocks of code, and each command."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "adr", ROOT / "infra", ROOT / "convex")
    for path in folder.glob("*.md")
)
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "shell")
PROGRAMS = ("python", "ts", "tsx", "js")


@dataclass(frozen=True)
class Step:
    """One command of a page as a shell takes it, or a whole program."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


@cache
def steps() -> tuple[Step, ...]:
    """Every command and program of the pages, in their order."""
    return tuple(step for path in PAGES for step in _steps(path))


def _steps(path: Path) -> Iterator[Step]:
    page, text = str(path.relative_to(ROOT)), path.read_text()
    for found in FENCE.finditer(text):
        language, block = found[1], found[2]
        line = text.count("\n", 0, found.start()) + 2
        if language in PROGRAMS:
            yield Step(page, line, language, block)
        elif language in SHELLS:
            for start, command in _commands(block):
                yield Step(page, line + start, "sh", command)


def _commands(block: str) -> Iterator[tuple[int, str]]:
    """The commands of a block, each with all its lines, and where it starts."""
    lines: list[str] = []
    for number, line in enumerate(block.splitlines()):
        if not lines and (not line.strip() or line.lstrip().startswith("#")):
            continue
        lines.append(line)
        text = "\n".join(lines)
        if not line.rstrip().endswith(("\\", "|")) and _is_whole(text):
            yield number + 1 - len(lines), text.strip()
            lines = []
    assert not lines, f"no shell takes this: {lines}"


def _is_whole(text: str) -> bool:
    if not re.search(r"['\"(]|^ *(for|while|if)\b", text):
        return True
    asked = subprocess.run(["bash", "-n", "-c", text], capture_output=True, check=False)
    return asked.returncode == 0
