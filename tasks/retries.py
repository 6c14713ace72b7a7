"""Which failures of a task are worth another try."""

from __future__ import annotations

from typing import Any

from prefect import State, Task
from prefect.client.schemas.objects import TaskRun

from stillreel.errors import StillreelError


def can_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """True for our retryable errors only; a bad image is as bad at the next try.

    What ends an attempt is not tried again here: three attempts are three in all.
    """
    error = state.result(raise_on_failure=False)
    return isinstance(error, StillreelError) and error.retryable and not error.ends_attempt
