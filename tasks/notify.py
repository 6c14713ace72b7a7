"""Task 5: notify."""

from __future__ import annotations

from prefect import task

from stillreel.job import JobSpec, JobStatus, Video
from stillreel.jobs import Execution, assert_current
from stillreel.settings import get_settings
from stillreel.stages import notify as stage
from stillreel.storage import open_storage
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
def notify(execution: Execution, spec: JobSpec, video: Video) -> str:
    """Tell the receiver that the video is there; few tries, because a slot of the host waits."""
    assert_current(execution)
    settings = get_settings()
    return stage.notify(
        execution.job_id,
        spec.webhook_url,
        JobStatus.COMPLETED,
        at=video.completed_at,
        video=video,
        storage=open_storage(settings.storage, settings.host.home),
        settings=settings,
    )
