"""Task 1: fetch-image."""

from __future__ import annotations

from prefect import task

from stillreel.job import JobSpec, Prepared
from stillreel.settings import get_settings
from stillreel.stages import fetch
from stillreel.storage import open_storage
from tasks.cache_keys import task_key
from tasks.retries import can_pass


@task(
    name="fetch-image",
    cache_key_fn=task_key,
    persist_result=True,
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=can_pass,
)
def fetch_image(job_id: str, spec: JobSpec) -> Prepared:
    """Check the order, fetch and check its image, and store it in the model's size."""
    settings = get_settings()
    return fetch.prepare(
        job_id, spec, storage=open_storage(settings.storage, settings.host.home), settings=settings
    )
