"""Cache keys that are the same in a new process and on another host (docs/adr/0009)."""

from __future__ import annotations

from typing import Any

from prefect.context import TaskRunContext
from prefect.utilities.hashing import hash_objects

from stillreel.settings import get_settings

VERSION = 1
"""Raise it when the result of a task changes its meaning."""

_PASSING = ("execution", "clip")
"""Arguments that differ between executions of one job although its result does not."""


def task_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """One key per task, run and inputs: an execution that comes later finds what is finished.

    Prefect's own INPUTS + RUN_ID has no task in it, so two tasks with equal inputs would share a
    result; its DEFAULT changes with the task's source, so a redeploy would repeat an inference.
    """
    inputs = {name: value for name, value in parameters.items() if name not in _PASSING}
    digest = hash_objects(inputs, raise_on_failure=True)
    return f"{context.task.name}-{VERSION}-{context.task_run.flow_run_id}-{digest}"


def host_task_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """The same, on one host: what lies on a host's disk is of no use elsewhere."""
    return f"{task_key(context, parameters)}-{get_settings().host.host_name}"
