"""Real servers and processes: one installation, with an S3 server (moto) as its storage.

Where signatures and their end matter, `radosgw` is the S3 server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.services import radosgw as radosgw_service
from tests.services.radosgw import Radosgw
from tests.stack import Stack, running_stack

BUCKET = "stillreel-tests"

logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line per request is noise


@dataclass
class Bucket:
    """A bucket on a server of this machine, and the settings that lead there."""

    endpoint: str
    access_key: str = "tests"
    secret_key: str = field(default="tests-secret", repr=False)

    @property
    def env(self) -> dict[str, str]:
        return {
            "S3_BUCKET": BUCKET,
            "S3_ENDPOINT": self.endpoint,
            "S3_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    @cached_property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def keys(self) -> set[str]:
        return {
            found["Key"] for found in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", ())
        }

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


@pytest.fixture(scope="session")
def radosgw(require: Callable[[str, bool], None]) -> Iterator[Radosgw]:
    """An S3 server that checks what it is shown."""
    require("radosgw (tests/services/install.sh)", radosgw_service.is_installed())
    with radosgw_service.running_radosgw() as running:
        yield running


@pytest.fixture(scope="session")
def real_bucket(radosgw: Radosgw) -> Bucket:
    """As `bucket`, on that server."""
    made = Bucket(radosgw.endpoint, radosgw.access_key, radosgw.secret_key)
    made.client.create_bucket(Bucket=BUCKET)
    return made
