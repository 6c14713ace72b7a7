"""Where the project's flows, tasks and prefect.yaml are: this clone, or their copy in the wheel."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

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


def load_flow(entrypoint: str) -> Any:
    """The flow at this entrypoint, in a clone as in an installed wheel."""
    from prefect.flows import load_flow_from_entrypoint

    directory = project_dir()
    sys.path.insert(0, str(directory))
    return load_flow_from_entrypoint(str(directory / entrypoint), use_placeholder_flow=False)
