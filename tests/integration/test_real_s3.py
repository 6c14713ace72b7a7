"""Storage on an S3 server that checks signatures, what they bind and when they end (radosgw).

moto takes any signature, so most of these tests fail on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import httpx
import pytest
import stamina
from pydantic import SecretStr

from stillreel.bucket_init import init_bucket
from stillreel.errors import ObjectMissing, StorageRefused
from stillreel.settings import StorageSettings
from stillreel.storage_s3 import PART_BYTES, Bucket, S3Storage
from tests.services.radosgw import Radosgw

KEY = "inputs/job_01234567/input.png"
BODY, TYPE = b"\x89PNG picture", "image/png"
MINUTE = 60
WAIT_SECONDS = 60.0


@pytest.fixture
def bucket(radosgw: Radosgw) -> Bucket:
    """A bucket of its own for each test."""
    name = f"videos-{uuid4().hex}"
    made = Bucket(
        name=name,
        endpoint=radosgw.endpoint,
        region="us-east-1",
        access_key=SecretStr(radosgw.access_key),
        secret_key=SecretStr(radosgw.secret_key),
    )
    admin(made).create_bucket(Bucket=name)
    return made


@pytest.fixture
def storage(bucket: Bucket) -> S3Storage:
    return S3Storage(bucket, page=2)


# --- objects ----------------------------------------------------------------------------------


def test_an_object_is_put_read_found_listed_and_deleted(storage: S3Storage) -> None:
    info = storage.put_bytes(KEY, BODY, content_type=TYPE)
    assert (info.key, info.size, info.content_type) == (KEY, len(BODY), TYPE)
    assert storage.head(KEY) == info
    assert storage.get_bytes(KEY) == BODY
    [listed] = storage.list("inputs/")
    assert (listed.key, listed.size, listed.etag) == (KEY, info.size, info.etag)

    storage.delete(KEY)
    storage.delete(KEY)
    assert storage.head(KEY) is None
    assert list(storage.list("")) == []
    with pytest.raises(ObjectMissing):
        storage.get_bytes(KEY)


def test_a_listing_of_many_pages_is_whole_and_sorted(storage: S3Storage) -> None:
    keys = [f"outputs/{n:03}/Ä {n}.mp4" for n in range(5)]
    for key in [*reversed(keys), "inputs/other.png"]:
        storage.put_bytes(key, b"x", content_type="video/mp4")
    assert [info.key for info in storage.list("outputs/")] == keys


def test_a_large_file_goes_in_parts_and_comes_back_whole(
    storage: S3Storage, tmp_path: Path
) -> None:
    source, target = tmp_path / "source.mp4", tmp_path / "target.mp4"
    source.write_bytes(bytes(range(256)) * (2 * PART_BYTES // 256) + b"rest")

    info = storage.put_file("outputs/output.mp4", source, content_type="video/mp4")
    storage.get_file("outputs/output.mp4", target)

    assert info.etag.endswith("-3")  # how S3 marks an object of three parts
    assert (info.size, info.content_type) == (source.stat().st_size, "video/mp4")
    assert target.read_bytes() == source.read_bytes()


CALLS: dict[str, Callable[[S3Storage], object]] = {
    "put": lambda storage: storage.put_bytes(KEY, BODY, content_type=TYPE),
    "get": lambda storage: storage.get_bytes(KEY),
    "head": lambda storage: storage.head(KEY),
    "list": lambda storage: list(storage.list("")),
    "delete": lambda storage: storage.delete(KEY),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_a_wrong_key_is_refused(
    bucket: Bucket, storage: S3Storage, wrong: str, call: Callable[[S3Storage], object]
) -> None:
    info = storage.put_bytes(KEY, BODY, content_type=TYPE)
    stranger = S3Storage(replace(bucket, **{wrong: SecretStr("not-the-key-of-anyone")}))
    with pytest.raises(StorageRefused, match="check S3_BUCKET") as caught:
        call(stranger)
    assert "not-the-key-of-anyone" not in f"{caught.value}{caught.value.__cause__}"
    assert storage.head(KEY) == info


# --- signed URLs ------------------------------------------------------------------------------


def test_a_signed_upload_stores_what_was_signed(storage: S3Storage) -> None:
    assert put(upload_url(storage)).status_code == 200
    info = storage.head(KEY)
    assert info is not None
    assert (info.size, info.content_type) == (len(BODY), TYPE)
    assert storage.get_bytes(KEY) == BODY


REFUSED_UPLOADS: dict[str, Callable[[str], httpx.Response]] = {
    "another type": lambda url: put(url, content_type="text/html"),
    "longer": lambda url: put(url, BODY + b"x"),
    "shorter": lambda url: put(url, BODY[:-1]),
    "another key": lambda url: put(url.replace("input.png", "other.png")),
    "a longer life": lambda url: put(longer_life(url)),
    "another signature": lambda url: put(other_signature(url)),
    "no signature": lambda url: put(without_query(url)),
}


@pytest.mark.parametrize("upload", REFUSED_UPLOADS.values(), ids=REFUSED_UPLOADS)
def test_any_other_upload_is_refused_and_stores_nothing(
    storage: S3Storage, upload: Callable[[str], httpx.Response]
) -> None:
    assert upload(upload_url(storage)).status_code == 403
    assert list(storage.list("")) == []


def test_a_signed_download_gives_the_object_and_its_parts(storage: S3Storage) -> None:
    storage.put_bytes(KEY, BODY, content_type=TYPE)
    url = storage.download_url(KEY, seconds=MINUTE)
    whole, part = get(url), get(url, range="bytes=1-3")
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, BODY, TYPE)
    assert (part.status_code, part.content) == (206, BODY[1:4])


REFUSED_DOWNLOADS: dict[str, Callable[[str], httpx.Response]] = {
    "another key": lambda url: get(url.replace("input.png", "other.png")),
    "a longer life": lambda url: get(longer_life(url)),
    "another signature": lambda url: get(other_signature(url)),
    "no signature": lambda url: get(without_query(url)),
    "the bucket without a signature": lambda url: get(without_query(url).removesuffix(KEY)),
    "to write with": lambda url: put(url, b"mine"),
}


@pytest.mark.parametrize("download", REFUSED_DOWNLOADS.values(), ids=REFUSED_DOWNLOADS)
def test_any_other_download_is_refused(
    storage: S3Storage, download: Callable[[str], httpx.Response]
) -> None:
    storage.put_bytes(KEY, BODY, content_type=TYPE)
    storage.put_bytes(KEY.replace("input.png", "other.png"), BODY, content_type=TYPE)
    answer = download(storage.download_url(KEY, seconds=MINUTE))
    assert (answer.status_code, BODY in answer.content) == (403, False)
    assert storage.get_bytes(KEY) == BODY


def test_a_signed_download_ends(storage: S3Storage) -> None:
    storage.put_bytes(KEY, BODY, content_type=TYPE)
    url = storage.download_url(KEY, seconds=1)
    wait_until(lambda: get(url).status_code == 403)
    assert get(storage.download_url(KEY, seconds=MINUTE)).status_code == 200


def test_a_signed_upload_ends(storage: S3Storage) -> None:
    url = upload_url(storage, seconds=1)
    wait_until(lambda: put(url).status_code == 403)
    storage.delete(KEY)
    assert put(url).status_code == 403
    assert storage.head(KEY) is None


# --- lifecycles -------------------------------------------------------------------------------


def test_a_lifecycle_removes_what_its_prefix_says_and_nothing_else(
    bucket: Bucket, storage: S3Storage
) -> None:
    rule = {
        "ID": "temp",
        "Status": "Enabled",
        "Filter": {"Prefix": "temp/"},
        "Expiration": {"Days": 1},  # which is DAY_SECONDS here
    }
    admin(bucket).put_bucket_lifecycle_configuration(
        Bucket=bucket.name, LifecycleConfiguration={"Rules": [rule]}
    )
    for key in ("inputs/temp/input.png", "temp/preview.png", "temporal/input.png"):
        storage.put_bytes(key, BODY, content_type=TYPE)
    wait_until(lambda: storage.head("temp/preview.png") is None)
    assert [info.key for info in storage.list("")] == [
        "inputs/temp/input.png",
        "temporal/input.png",
    ]


def test_storage_init_sets_rules_that_hold_and_finds_that_all_works(
    bucket: Bucket, storage: S3Storage
) -> None:
    """Everything is tried for real here: signatures, what they bind, and what a rule deletes."""
    settings = StorageSettings.model_validate(
        {
            "s3_bucket": bucket.name,
            "s3_endpoint": bucket.endpoint,
            "s3_region": "us-east-1",
            "s3_access_key_id": bucket.access_key,
            "s3_secret_access_key": bucket.secret_key,
            "upload_origins": "https://app.example.com",
            "latents_days": 20_000,
            "results_days": 0,
        }
    )
    theirs = {
        "ID": "theirs",
        "Status": "Enabled",
        "Filter": {"Prefix": "backups/"},
        "Expiration": {"Days": 20_000},
    }
    admin(bucket).put_bucket_lifecycle_configuration(
        Bucket=bucket.name, LifecycleConfiguration={"Rules": [theirs]}
    )

    report = init_bucket(settings)

    assert [(c.what, c.outcome, c.kept_foreign) for c in report.changes] == [
        ("bucket", "kept", 0),
        ("lifecycle", "set", 1),
        ("CORS", "set", 0),
    ]
    assert {check.name: check.note for check in report.checks if not check.works} == {}
    assert [change.outcome for change in init_bucket(settings).changes] == ["kept"] * 3
    kept = ("backups/a", "inputs/job_a/input.png", "latents/job_a/a", "outputs/job_a/output.mp4")
    for key in ("temp/preview.png", *kept):
        storage.put_bytes(key, BODY, content_type=TYPE)
    wait_until(lambda: storage.head("temp/preview.png") is None)  # a day is two seconds here
    assert [info.key for info in storage.list("")] == list(kept)


def test_storage_init_with_a_key_of_somebody_else_is_refused(bucket: Bucket) -> None:
    settings = StorageSettings.model_validate(
        {
            "s3_bucket": bucket.name,
            "s3_endpoint": bucket.endpoint,
            "s3_region": "us-east-1",
            "s3_access_key_id": bucket.access_key,
            "s3_secret_access_key": "not-the-key-of-anyone",
        }
    )
    with pytest.raises(StorageRefused, match="check S3_BUCKET"):
        init_bucket(settings)


# --- helpers ----------------------------------------------------------------------------------


def admin(bucket: Bucket) -> Any:
    """What storage itself never asks for."""
    return boto3.client("s3", endpoint_url=bucket.endpoint, **bucket.session_options())


def upload_url(storage: S3Storage, *, seconds: int = MINUTE) -> str:
    return storage.upload_url(KEY, content_type=TYPE, size=len(BODY), seconds=seconds)


def put(url: str, data: bytes = BODY, *, content_type: str = TYPE) -> httpx.Response:
    return httpx.put(url, content=data, headers={"Content-Type": content_type}, trust_env=False)


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False)


def longer_life(url: str) -> str:
    return url.replace(f"X-Amz-Expires={MINUTE}", f"X-Amz-Expires={10 * MINUTE}")


def other_signature(url: str) -> str:
    return f"{url[:-1]}{'1' if url[-1] == '0' else '0'}"


def without_query(url: str) -> str:
    return url.partition("?")[0]


def wait_until(true: Callable[[], bool]) -> None:
    """Return when it is; AssertionError after WAIT_SECONDS."""
    for attempt in stamina.retry_context(
        on=AssertionError, attempts=None, timeout=WAIT_SECONDS, wait_initial=0.1, wait_max=0.5
    ):
        with attempt:
            assert true()
