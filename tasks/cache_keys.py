"""Cache keys that are the same in a new process, on another host and in the next release.

docs/adr/0009 tells why they are ours.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from prefect.context import TaskRunContext
from pydantic import BaseModel

from stillreel.settings import get_settings

VERSIONS = {"fetch-image": 2, "infer": 2, "encode": 2, "upload": 2, "notify": 2}
"""By task. Raise a number when the result of the task changes its meaning, and only then: jobs
that are half done when a release comes do the task again."""

_PASSING = ("execution", "clip")
"""Arguments that differ between executions of one job although its result does not."""


def task_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """One key per task, run and inputs: an execution that comes later finds what is finished.

    Prefect's own INPUTS + RUN_ID has no task in it, so two tasks with equal inputs would share a
    result; its DEFAULT changes with the task's source, so a redeploy would repeat an inference.
    """
    name = context.task.name
    inputs = {key: _plain(value) for key, value in parameters.items() if key not in _PASSING}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
    return f"{name}-{VERSIONS[name]}-{context.task_run.flow_run_id}-{digest}"


def host_task_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """The same, on one host: what lies on a host's disk is of no use elsewhere."""
    return f"{task_key(context, parameters)}-{get_settings().host.host_name}"


def _plain(value: Any) -> Any:
    """A value as JSON data without what is as it is by default.

    So a field that a release adds changes no key, and neither does a class that moves.
    """
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    return value
