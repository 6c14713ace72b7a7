"""Real servers and processes: one installation, with an S3 server (moto) as its storage.

Where signatures and their end matter, `radosgw` is the S3 server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.s3 import Bucket
from tests.services import radosgw as radosgw_service
from tests.services.radosgw import Radosgw
from tests.stack import Stack, running_stack

BUCKET = "stillreel-tests"


@pytest.fixture(scope="session")
def bucket(moto_url: str) -> Bucket:
    return Bucket(moto_url, BUCKET).create()


@pytest.fixture(scope="session")
def stack(bucket: Bucket) -> Iterator[Stack]:
    with running_stack(STILLREEL_PREVIEW_SECONDS_PER_STEP="0.5", **bucket.env) as running:
        yield running


@pytest.fixture
def without_host(stack: Stack) -> Iterator[None]:
    """The stack's own host takes no jobs meanwhile."""
    workers = stack.processes("stillreel.host_worker")
    for worker in workers:
        worker.suspend()
    yield
    for worker in workers:
        worker.resume()


@pytest.fixture(scope="session")
def radosgw(require: Callable[[str, bool], None]) -> Iterator[Radosgw]:
    """An S3 server that checks what it is shown."""
    require("radosgw (tests/services/install.sh)", radosgw_service.is_installed())
    with radosgw_service.running_radosgw() as running:
        yield running


@pytest.fixture(scope="session")
def real_bucket(radosgw: Radosgw) -> Bucket:
    """As `bucket`, on that server."""
    return Bucket(radosgw.endpoint, BUCKET, radosgw.access_key, radosgw.secret_key).create()
