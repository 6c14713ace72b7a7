"""Results of tasks lie in the bucket, through a real Prefect server and a real S3 client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import boto3
import pytest
from prefect import flow, task
from prefect.cache_policies import TASK_SOURCE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from prefect_aws import AwsCredentials, S3Bucket
from pydantic import SecretStr

from stillreel.errors import StorageUnavailable
from stillreel.result_storage import RESULT_BLOCK, result_storage, save_result_block
from stillreel.settings import CONCERNS, Settings, StorageSettings

SECRET_KEY = "very-secret-value-0123456789"
SLUG = f"s3-bucket/{RESULT_BLOCK}"


def settings_with(**storage: str) -> Settings:
    """Settings with this storage; the environment says nothing about storage."""
    others = {name: concern() for name, concern in CONCERNS.items() if name != "storage"}
    return Settings.model_validate({**others, "storage": StorageSettings.model_validate(storage)})


def r2_settings(endpoint: str, *, secret_key: str = SECRET_KEY) -> Settings:
    return settings_with(
        r2_bucket="results-only",
        r2_endpoint=endpoint,
        r2_access_key="AKIDSTILLREELTEST",
        r2_secret_key=secret_key,
    )


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=280):
        yield


def stored_keys(endpoint: str) -> list[str]:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    try:
        client.create_bucket(Bucket="results-only")
        return [
            found["Key"]
            for found in client.list_objects_v2(Bucket="results-only").get("Contents", [])
        ]
    finally:
        client.close()


def test_local_storage_needs_no_block() -> None:
    settings = settings_with()
    assert result_storage(settings) is None
    assert asyncio.run(save_result_block(settings)) is None


def test_the_block_does_not_show_the_secret() -> None:
    block = result_storage(r2_settings("https://account.r2.cloudflarestorage.com"))
    assert SECRET_KEY not in f"{block} {block!r}"


def test_a_prefect_server_that_is_away_is_told() -> None:
    settings = r2_settings("https://account.r2.cloudflarestorage.com")
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(StorageUnavailable, match="PREFECT_API_URL"),
    ):
        asyncio.run(save_result_block(settings))


def test_results_lie_in_the_bucket_and_are_found_by_the_next_run(
    prefect_server: None, moto_url: str
) -> None:
    assert stored_keys(moto_url) == []
    slug = asyncio.run(save_result_block(r2_settings(moto_url)))
    assert slug == SLUG
    calls: list[int] = []

    @task(persist_result=True, cache_policy=TASK_SOURCE, result_serializer="json")
    def measure() -> dict[str, int]:
        calls.append(1)
        return {"frames": 121}

    @flow(result_storage=slug, persist_result=True)
    def work() -> State:
        state = measure(return_state=True)
        assert isinstance(state, State)
        return state

    first, second = work(), work()
    assert (first.name, second.name) == ("Completed", "Cached")
    assert first.result() == second.result() == {"frames": 121}
    assert calls == [1]
    keys = stored_keys(moto_url)
    assert keys
    assert all(key.startswith("results/") for key in keys)
    assert not [key for key in keys if key.startswith("results/results/")]


def test_saving_again_keeps_one_block_and_takes_changes(prefect_server: None) -> None:
    async def saved() -> S3Bucket:
        return await S3Bucket.aload(RESULT_BLOCK)

    async def documents() -> list[tuple[object, object]]:
        async with get_client() as client:
            found = await client.read_block_documents()
        return [(document.id, document.updated) for document in found]

    async def save_at_once(settings: Settings) -> list[str | None]:
        return list(await asyncio.gather(*(save_result_block(settings) for _ in range(4))))

    before, after = (
        r2_settings("http://127.0.0.1:1"),
        r2_settings("http://127.0.0.1:2", secret_key="n"),
    )
    assert asyncio.run(save_at_once(before)) == [SLUG] * 4
    first = asyncio.run(documents())
    asyncio.run(save_result_block(before))
    assert asyncio.run(documents()) == first  # nothing was written
    asyncio.run(save_result_block(after))
    second = asyncio.run(documents())
    assert [block_id for block_id, _ in second] == [block_id for block_id, _ in first]
    credentials = asyncio.run(saved()).credentials
    assert isinstance(credentials, AwsCredentials)
    assert credentials.aws_client_parameters.endpoint_url == "http://127.0.0.1:2"
    assert credentials.aws_secret_access_key == SecretStr("n")
