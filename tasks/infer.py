"""Task 2: infer."""

from __future__ import annotations

from prefect import task

from stillreel.execution import Execution
from stillreel.job import JobSpec, Latents, Prepared
from stillreel.safety import check_order
from stillreel.settings import get_settings
from stillreel.stages import infer as stage
from stillreel.storage import open_storage
from tasks.cache_keys import task_key
from tasks.retries import can_pass


@task(
    name="infer",
    cache_key_fn=task_key,
    persist_result=True,
    tags=["gpu"],
    retries=2,
    retry_delay_seconds=[2, 20],
    retry_condition_fn=can_pass,
)
def infer(execution: Execution, spec: JobSpec, prepared: Prepared) -> Latents:
    """Have the order checked, generate the latents on this host's GPU and store them."""
    settings = get_settings()
    storage = open_storage(settings.storage, settings.host.home)
    check_order(execution.job_id, spec, prepared, storage=storage, settings=settings)
    return stage.infer(
        execution.job_id,
        execution.run_id,
        spec,
        prepared,
        storage=storage,
        settings=settings,
        job_round=execution.round,
        execution=execution.number,
    )
