"""Task 5: notify."""

from __future__ import annotations

from prefect import task
from prefect.context import FlowRunContext

from stillreel.errors import StaleExecution
from stillreel.execution import Execution, assert_current
from stillreel.job import JobSpec, JobStatus, Video
from stillreel.settings import get_settings
from stillreel.stages import notify as stage
from tasks.cache_keys import task_key
from tasks.retries import can_pass


@task(
    name="notify",
    cache_key_fn=task_key,
    persist_result=True,
    retries=2,
    retry_delay_seconds=[1, 4],
    retry_condition_fn=can_pass,
)
def notify(execution: Execution, spec: JobSpec, video: Video) -> str:  # noqa: ARG001
    """Tell that the video is there; few tries, because a slot of the host waits."""
    assert_current(execution, has_video=True)
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise StaleExecution("this task works inside a flow run only")
    return stage.notify(
        context.flow_run, JobStatus.COMPLETED, at=video.completed_at, settings=get_settings()
    )
