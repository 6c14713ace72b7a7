"""Task 3: encode."""

from __future__ import annotations

from prefect import task

from stillreel.execution import Execution
from stillreel.job import Clip, JobSpec, Latents, Prepared
from stillreel.safety import check_clip
from stillreel.settings import get_settings
from stillreel.stages import encode as stage
from stillreel.storage import open_storage
from tasks.cache_keys import host_task_key
from tasks.retries import can_pass


@task(
    name="encode",
    cache_key_fn=host_task_key,
    persist_result=True,
    retries=2,
    retry_delay_seconds=[2, 20],
    retry_condition_fn=can_pass,
)
def encode(execution: Execution, spec: JobSpec, prepared: Prepared, latents: Latents) -> Clip:
    """Decode the latents, encode video, poster and teaser on this host's disk, and check them."""
    settings = get_settings()
    clip = stage.encode(
        execution.job_id,
        execution.run_id,
        execution.number,
        spec,
        prepared,
        latents,
        storage=open_storage(settings.storage, settings.host.home),
        settings=settings,
        job_round=execution.round,
    )
    check_clip(execution.job_id, spec, clip, settings=settings)
    return clip
