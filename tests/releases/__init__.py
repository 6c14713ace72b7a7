"""What earlier releases wrote (README.md), for tests that read it with today's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RELEASES = sorted(path for path in HERE.iterdir() if path.name[:2] == "20")


def read(path: Path) -> Any:
    """A JSON file of a release."""
    return json.loads(path.read_text())


def result(release: Path, name: str) -> Any:
    """The result of a task as Prefect stored it, decoded by today's code."""
    from prefect.results import ResultRecord

    record = ResultRecord[Any].deserialize((release / "results" / f"{name}.json").read_bytes())
    return record.result
