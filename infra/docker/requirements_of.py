"""Prints the requirements in pyproject.toml and of the extras that are named, a line each.

`--only NAME` prints that one alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def main(words: list[str]) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    if words[:1] == ["--only"]:
        every = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
        found = [line for line in every if re.split(r"[^\w.-]", line)[0] == words[1]]
    else:
        found = [*project["dependencies"], *(line for name in words for line in extras[name])]
    if not found:
        sys.exit(f"pyproject.toml has no requirement {' '.join(words)}")
    sys.stdout.writelines(f"{line}\n" for line in found)


if __name__ == "__main__":
    main(sys.argv[1:])
