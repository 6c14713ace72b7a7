"""Task 4: upload."""

from __future__ import annotations

from functools import partial

from prefect import task

from stillreel.execution import Execution, assert_current
from stillreel.job import Clip, JobSpec, Latents, Prepared, Video
from stillreel.receipt import without_texts
from stillreel.settings import get_settings
from stillreel.stages import upload as stage
from stillreel.storage import open_storage
from tasks.cache_keys import task_key
from tasks.retries import can_pass


@task(
    name="upload",
    cache_key_fn=task_key,
    persist_result=True,
    retries=5,
    retry_delay_seconds=[2, 10, 30, 60, 120],  # longer than an outage of Prefect
    retry_condition_fn=can_pass,
)
def upload(
    execution: Execution, spec: JobSpec, prepared: Prepared, latents: Latents, clip: Clip
) -> Video:
    """Store the files and last the receipt, unless another execution has taken over."""
    settings = get_settings()
    return stage.upload(
        execution.job_id,
        execution.number,
        without_texts(spec, embed_prompt=settings.host.embed_prompt),
        prepared,
        latents,
        clip,
        storage=open_storage(settings.storage, settings.host.home),
        assert_current=partial(assert_current, execution),
    )
