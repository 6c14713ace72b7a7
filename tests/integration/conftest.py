"""Real servers and processes: one installation, with an S3 server (moto) as its storage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.stack import Stack, running_stack

BUCKET = "stillreel-tests"

logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line per request is noise


@dataclass
class Bucket:
    """A bucket on a server of this machine, and the settings that lead there."""

    endpoint: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "S3_BUCKET": BUCKET,
            "S3_ENDPOINT": self.endpoint,
            "S3_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests-secret",
        }

    @cached_property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="tests",
            aws_secret_access_key="tests-secret",
        )

    def keys(self) -> set[str]:
        return {found["Key"] for found in self.client.list_objects_v2(Bucket=BUCKET)["Contents"]}

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    made = Bucket(f"http://{host}:{port}")
    made.client.create_bucket(Bucket=BUCKET)
    yield made
    server.stop()


@pytest.fixture(scope="session")
def stack(bucket: Bucket) -> Iterator[Stack]:
    with running_stack(STILLREEL_PREVIEW_SECONDS_PER_STEP="0.5", **bucket.env) as running:
        yield running
