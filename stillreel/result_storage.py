"""Where Prefect keeps the results of tasks: beside the videos, so that any host can go on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import stamina

from stillreel.errors import StorageUnavailable
from stillreel.settings import Settings

if TYPE_CHECKING:
    from prefect_aws import S3Bucket

RESULT_BLOCK = "stillreel-results"
RESULT_FOLDER = "results"
RESULT_VERSIONS = (1, 2)
"""What names of results begin with: task, version, run. Those of tasks/cache_keys.py, and of the
releases before: their jobs are deleted by this one, and carried on by hosts of theirs."""
NAME_MOST = 200

_RANDOM = re.compile(r"[0-9a-f]{32}")
_OF_RUN = r"[a-z][a-z-]{{0,40}}-[0-9]{{1,3}}-{run_id}-[A-Za-z0-9_.-]{{1,160}}"


def is_result_of(name: str, run_id: str) -> bool:
    """Whether the results of this run may have this name: one of our cache keys, or Prefect's own.

    Whoever writes a state chooses this name, so no other is believed.
    """
    if len(name) > NAME_MOST:
        return False
    return bool(_RANDOM.fullmatch(name) or re.fullmatch(_OF_RUN.format(run_id=run_id), name))


def result_storage(settings: Settings) -> S3Bucket | None:
    """The Prefect block for results in S3 or R2, not saved yet; None where storage is no bucket.

    With None, Prefect's own local result storage is right: there is one machine only, or a rented
    one, which shares what it may by its lease (lease_results).
    """
    if settings.storage.kind not in ("s3", "r2"):
        return None

    from prefect_aws import AwsClientParameters, AwsCredentials, S3Bucket

    from stillreel.storage_s3 import bucket_of

    bucket = bucket_of(settings.storage)
    return S3Bucket(
        bucket_name=bucket.name,
        bucket_folder=RESULT_FOLDER,
        credentials=AwsCredentials(
            **bucket.session_options(),
            aws_client_parameters=AwsClientParameters(
                endpoint_url=bucket.endpoint or None, config=bucket.client_options()
            ),
        ),
    )


async def save_result_block(settings: Settings) -> str | None:
    """Makes the Prefect server know the result storage; its slug, or None where storage is local.

    Writes only when something changed, so every process may call it. Raises StorageUnavailable
    when the Prefect server does not take it.
    """
    block = result_storage(settings)
    if block is None:
        return None
    from prefect.exceptions import ObjectAlreadyExists

    slug = f"{block.get_block_type_slug()}/{RESULT_BLOCK}"
    try:
        async for attempt in stamina.retry_context(on=ObjectAlreadyExists, attempts=5, wait_max=1):
            with attempt:  # two processes may register the block's type at the same time
                if not await _is_saved(block):
                    await block.asave(RESULT_BLOCK, overwrite=True)
    except (httpx.HTTPError, ObjectAlreadyExists) as exc:
        raise StorageUnavailable(
            f"The Prefect server does not take the result storage ({type(exc).__name__}); "
            "check PREFECT_API_URL, and that the server runs."
        ) from exc
    return slug


async def _is_saved(block: S3Bucket) -> bool:
    try:
        saved = await type(block).aload(RESULT_BLOCK)
    except ValueError:  # there is none
        return False
    fields = set(type(block).model_fields)
    return saved.model_dump(include=fields) == block.model_dump(include=fields)
