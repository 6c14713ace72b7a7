"""Where the project's flows, tasks and prefect.yaml are: this clone, or their copy in the wheel."""

from __future__ import annotations

import os
from pathlib import Path

FLOW_ENTRYPOINT = "flows/generate_video.py:generate_video"


def project_dir() -> Path:
    """The directory that holds `flows`, `tasks` and `prefect.yaml`."""
    package = Path(__file__).resolve().parent
    clone = package.parent
    return clone if (clone / "flows" / "generate_video.py").exists() else package / "project"


def enter() -> dict[str, str]:
    """Prefect pull step: make the project the working directory of this flow run."""
    directory = str(project_dir())
    os.chdir(directory)
    return {"directory": directory}
