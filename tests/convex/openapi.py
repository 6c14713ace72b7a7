"""`python -m tests.convex.openapi`: writes convex/src/api/openapi.ts anew from the API itself."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "convex"
TYPES = PACKAGE / "src" / "api" / "openapi.ts"
PREFIX = "/api/v1/"
EVENTS = "/api/v1/jobs/{job_id}/events"
"""A stream; OpenAPI can say no more of it than that it is text."""


def document() -> dict[str, Any]:
    """What the client in TypeScript uses of the API's OpenAPI document: answers that are no errors.

    Errors all have the one shape `Problem`, which stays among the schemas.
    """
    from stillreel.api.app import create_app
    from stillreel.settings import get_settings

    whole = create_app(get_settings()).openapi()
    paths = {
        path: {method: _without_errors(operation) for method, operation in operations.items()}
        for path, operations in whole["paths"].items()
        if path.startswith(PREFIX) and path != EVENTS
    }
    return whole | {"paths": paths}


def write_types(path: Path) -> None:
    """Types of that document at `path`."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "openapi.json")
        source.write_text(json.dumps(document()))
        command = ["npx", "--no-install", "openapi-typescript", str(source), "--output", str(path)]
        subprocess.run(command, cwd=PACKAGE, check=True, capture_output=True)


def _without_errors(operation: dict[str, Any]) -> dict[str, Any]:
    taken = {status: said for status, said in operation["responses"].items() if status[0] == "2"}
    return operation | {"responses": taken}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"STILLREEL_HOME": home, "PREFECT_HOME": home, "STILLREEL_API_KEY": "none"}
        write_types(TYPES)
