"""One contract for every storage, then what is special to the directory, and to S3 and R2.

moto takes any signature (it answers 200 to a wrong type, a longer body and an expired URL), so
what a signed URL binds is read from the URL itself.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from stillreel.errors import (
    DiskFull,
    ObjectMissing,
    OutputUnwritable,
    RequestRejected,
    StillreelError,
    StorageError,
    StorageRefused,
    StorageUnavailable,
)
from stillreel.settings import StorageSettings
from stillreel.storage import (
    KEY_LIMIT,
    LocalStorage,
    Storage,
    checked_key,
    checked_prefix,
    open_storage,
)
from stillreel.storage_s3 import PART_BYTES, Bucket, S3Storage, bucket_of
from tests.lent import Lender, lender

ACCESS_KEY, SECRET_KEY = "AKIDSTILLREELTEST", "very-secret-value-0123456789"
KEY = "outputs/job_01234567/output.mp4"
PUBLIC_URL = "https://videos.example.com"


@pytest.fixture(scope="session")
def admin(moto_url: str) -> Iterator[Any]:
    client = boto3.client(
        "s3",
        endpoint_url=moto_url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    yield client
    client.close()


@pytest.fixture
def bucket_name(moto_url: str, admin: Any) -> str:
    httpx.post(f"{moto_url}/moto-api/reset").raise_for_status()
    admin.create_bucket(Bucket="videos")
    return "videos"


def s3_settings(endpoint: str, bucket: str) -> StorageSettings:
    return settings_of(
        s3_bucket=bucket,
        s3_endpoint=endpoint,
        s3_region="us-east-1",
        s3_access_key_id=ACCESS_KEY,
        s3_secret_access_key=SECRET_KEY,
    )


def r2_settings(endpoint: str, bucket: str) -> StorageSettings:
    return settings_of(
        r2_bucket=bucket,
        r2_endpoint=endpoint,
        r2_public_url=f"{PUBLIC_URL}/",
        r2_access_key=ACCESS_KEY,
        r2_secret_key=SECRET_KEY,
    )


def settings_of(**values: object) -> StorageSettings:
    """These settings and no others; the environment is not read."""
    return StorageSettings.model_validate(values)


@pytest.fixture(scope="session")
def s3_client(moto_url: str) -> Storage:
    return open_storage(s3_settings(moto_url, "videos"), Path("/unused"))


@pytest.fixture(scope="session")
def r2_client(moto_url: str) -> Storage:
    return open_storage(r2_settings(moto_url, "videos"), Path("/unused"))


@pytest.fixture
def s3(s3_client: Storage, bucket_name: str) -> Storage:
    """One connected storage for all tests, an empty bucket for each."""
    return s3_client


@pytest.fixture
def r2(r2_client: Storage, bucket_name: str) -> Storage:
    return r2_client


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(settings_of(), tmp_path / "home")


@pytest.fixture(scope="session")
def lender_of_bucket(moto_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lender]:
    with lender(s3_settings(moto_url, "videos"), tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture(scope="session")
def lender_of_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lender]:
    home = tmp_path_factory.mktemp("api")
    with lender(settings_of(storage_dir=home / "storage"), home) as running:
        yield running


@pytest.fixture
def lent_s3(lender_of_bucket: Lender, bucket_name: str) -> Storage:
    """As a rented host has it, where the API keeps objects in a bucket."""
    return lender_of_bucket.open()


@pytest.fixture
def lent_local(lender_of_directory: Lender) -> Iterator[Storage]:
    """The same, where the API keeps them in a directory."""
    yield lender_of_directory.open()
    for info in list(lender_of_directory.storage.list("")):
        lender_of_directory.storage.delete(info.key)


@pytest.fixture(params=["local", "s3", "r2", "lent_local", "lent_s3"])
def storage(request: pytest.FixtureRequest) -> Storage:
    return request.getfixturevalue(request.param)


# --- the contract -----------------------------------------------------------------------------


def test_bytes_come_back_as_they_were_put(storage: Storage) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    info = storage.put_bytes(KEY, b"\0video\xff", content_type="video/mp4")
    assert (info.key, info.size, info.content_type) == (KEY, 7, "video/mp4")
    assert before < info.modified < datetime.now(UTC) + timedelta(seconds=5)
    assert storage.head(KEY) == info
    assert storage.get_bytes(KEY) == b"\0video\xff"


@pytest.mark.parametrize(
    "size",
    [0, 1, PART_BYTES + 1, 2 * PART_BYTES + 5],
    ids=["empty", "a byte", "two parts", "three parts"],
)
def test_files_come_back_as_they_were_put(storage: Storage, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source.mp4", tmp_path / "new" / "target.mp4"
    source.write_bytes(os.urandom(size))
    info = storage.put_file(KEY, source, content_type="video/mp4")
    assert (info.size, info.content_type) == (size, "video/mp4")
    storage.get_file(KEY, target)
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["target.mp4"]


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("input.png", "image/png"),
        ("input.jpg", "image/jpeg"),
        ("input.webp", "image/webp"),
        ("receipt.json", "application/json"),
        ("teaser.mp4", "video/mp4"),
        ("latents.safetensors", "application/octet-stream"),
    ],
)
def test_the_content_type_is_kept(storage: Storage, name: str, content_type: str) -> None:
    key = f"outputs/job_01234567/{name}"
    assert storage.put_bytes(key, b"x", content_type=content_type).content_type == content_type
    assert [info.content_type for info in storage.list(key)] == [content_type]


def test_an_object_is_replaced_and_its_etag_changes(storage: Storage) -> None:
    first = storage.put_bytes(KEY, b"a much longer first version", content_type="video/mp4")
    second = storage.put_bytes(KEY, b"second", content_type="video/mp4")
    assert second.etag != first.etag
    assert storage.get_bytes(KEY) == b"second"
    assert [info.key for info in storage.list("")] == [KEY]


def test_a_missing_object_is_told(storage: Storage, tmp_path: Path) -> None:
    target = tmp_path / "target.mp4"
    target.write_bytes(b"old")
    assert storage.head(KEY) is None
    with pytest.raises(ObjectMissing, match=KEY):
        storage.get_bytes(KEY)
    with pytest.raises(ObjectMissing, match=KEY):
        storage.get_file(KEY, target)
    assert target.read_bytes() == b"old"
    assert list(storage.list("outputs/")) == []
    storage.delete(KEY)


def test_a_part_of_a_key_is_not_an_object(storage: Storage) -> None:
    storage.put_bytes(KEY, b"x", content_type="video/mp4")
    for key in (str(PurePosixPath(KEY).parent), f"{KEY}/more"):
        assert storage.head(key) is None
        storage.delete(key)
        with pytest.raises(ObjectMissing):
            storage.get_bytes(key)
    assert storage.head(KEY) is not None


def test_a_deleted_object_is_gone(storage: Storage) -> None:
    storage.put_bytes(KEY, b"x", content_type="video/mp4")
    storage.delete(KEY)
    assert storage.head(KEY) is None
    storage.delete(KEY)


def test_a_listing_holds_the_keys_with_the_prefix_in_order(storage: Storage) -> None:
    keys = ["a/b.png", "a-b.png", "a/b/c.png", "ab/c.png", "b/a.png", "é/ä b.png", "a/é.png"]
    for key in keys:
        storage.put_bytes(key, key.encode(), content_type="image/png")
    listed = list(storage.list(""))
    assert [info.key for info in listed] == sorted(keys)
    assert [info.size for info in listed] == [len(key.encode()) for key in sorted(keys)]
    assert all(info.modified.tzinfo for info in listed)
    assert {info.key: info.etag for info in listed} == {
        key: info.etag for key in keys if (info := storage.head(key))
    }
    for prefix in ("a", "a/", "a/b", "a/b/", "é/", "none/", "none"):
        assert [info.key for info in storage.list(prefix)] == [
            key for key in sorted(keys) if key.startswith(prefix)
        ]


def test_an_object_over_the_limit_is_not_read_into_memory(storage: Storage) -> None:
    storage.put_bytes(KEY, b"12345", content_type="video/mp4")
    assert storage.get_bytes(KEY, limit=5) == b"12345"
    with pytest.raises(StorageError, match="more than 4 bytes"):
        storage.get_bytes(KEY, limit=4)


def test_a_source_that_cannot_be_read_changes_nothing(storage: Storage, tmp_path: Path) -> None:
    storage.put_bytes(KEY, b"old", content_type="video/mp4")
    with pytest.raises(FileNotFoundError):
        storage.put_file(KEY, tmp_path / "none.mp4", content_type="video/mp4")
    assert storage.get_bytes(KEY) == b"old"


def test_a_target_that_cannot_be_written_is_told(storage: Storage, tmp_path: Path) -> None:
    storage.put_bytes(KEY, b"x", content_type="video/mp4")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputUnwritable) as caught:
        storage.get_file(KEY, tmp_path / "file" / "target.mp4")
    assert str(tmp_path) not in caught.value.message


def test_a_download_onto_a_full_disk_keeps_the_old_file(storage: Storage, tmp_path: Path) -> None:
    target = tmp_path / "new" / "target.mp4"
    target.parent.mkdir()
    target.write_bytes(b"old")
    storage.put_bytes(KEY, bytes(300_000), content_type="video/mp4")
    with file_size_limit(100_000), pytest.raises(DiskFull):
        storage.get_file(KEY, target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["target.mp4"]


BAD_KEYS = {
    "empty": "",
    "absolute": "/outputs/a.mp4",
    "parent": "outputs/../secret",
    "only parent": "..",
    "dot": "outputs/./a.mp4",
    "empty part": "outputs//a.mp4",
    "folder": "outputs/",
    "backslash": "outputs\\a.mp4",
    "NUL": "outputs/a\0.mp4",
    "newline": "outputs/a\n.mp4",
    "half a surrogate pair": "outputs/\ud800.mp4",
    "hidden": ".parts/a.mp4",
    "long": "a/" * 256 + "a",
    "long in bytes": "ä/" * 180 + "a",
    "long part": "a" * 256,
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
def test_every_call_refuses_a_bad_key(storage: Storage, tmp_path: Path, key: str) -> None:
    source = tmp_path / "source.mp4"
    source.write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: storage.put_file(key, source, content_type="video/mp4"),
        lambda: storage.put_bytes(key, b"x", content_type="video/mp4"),
        lambda: storage.get_file(key, tmp_path / "target.mp4"),
        lambda: storage.get_bytes(key),
        lambda: storage.head(key),
        lambda: storage.delete(key),
        lambda: storage.upload_url(key, content_type="video/mp4", size=1, seconds=60),
        lambda: storage.download_url(key, seconds=60),
    ]
    for call in calls:
        with pytest.raises(RequestRejected, match="storage key"):
            call()
    if key not in ("", "outputs/"):
        with pytest.raises(RequestRejected, match="storage key"):
            storage.list(key)  # at the call, not at the first object


@pytest.mark.parametrize("seconds", [0, -1, 7 * 86400 + 1])
def test_a_url_is_valid_for_a_second_to_a_week(storage: Storage, seconds: int) -> None:
    with pytest.raises(RequestRejected, match="604800"):
        storage.download_url(KEY, seconds=seconds)
    with pytest.raises(RequestRejected, match="604800"):
        storage.upload_url(KEY, content_type="video/mp4", size=1, seconds=seconds)


@given(st.text(alphabet=st.sampled_from("ab./\\\0é \n~") | st.characters(), max_size=600))
def test_an_accepted_key_stays_inside_and_is_the_only_name_of_its_file(key: str) -> None:
    root = Path("/storage/root")
    try:
        checked_key(key)
    except RequestRejected:
        return
    path = root / key
    assert path.relative_to(root).as_posix() == key
    assert Path(os.path.normpath(path)) == path
    assert "\\" not in key
    assert "\0" not in key
    assert len(key.encode()) <= KEY_LIMIT
    assert checked_prefix(key) == key


@given(st.lists(st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,40}", fullmatch=True), min_size=1,
                max_size=8))  # fmt: skip
def test_ordinary_keys_are_accepted(parts: list[str]) -> None:
    key = "/".join(parts)
    assert checked_key(key) == key
    assert checked_prefix(f"{key}/") == f"{key}/"


# --- a directory ------------------------------------------------------------------------------


def test_the_directory_is_chosen_by_the_settings(tmp_path: Path) -> None:
    chosen = open_storage(settings_of(storage_dir=tmp_path / "chosen"), tmp_path / "home")
    chosen.put_bytes(KEY, b"x", content_type="video/mp4")
    assert (tmp_path / "chosen" / KEY).read_bytes() == b"x"
    assert not (tmp_path / "home").exists()
    open_storage(settings_of(), tmp_path / "home").put_bytes(KEY, b"y", content_type="video/mp4")
    assert (tmp_path / "home" / "storage" / KEY).read_bytes() == b"y"


def test_the_urls_of_a_directory_are_file_urls(local: Storage, tmp_path: Path) -> None:
    url = local.download_url("outputs/a b.mp4", seconds=60)
    assert url == (tmp_path / "home" / "storage" / "outputs" / "a b.mp4").as_uri()
    assert local.upload_url("outputs/a b.mp4", content_type="video/mp4", size=1, seconds=60) == url


def test_a_full_disk_keeps_the_old_object(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put_bytes(KEY, b"old", content_type="video/mp4")
    with file_size_limit(100_000), pytest.raises(DiskFull):
        storage.put_bytes(KEY, bytes(300_000), content_type="video/mp4")
    assert storage.get_bytes(KEY) == b"old"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / KEY]


def test_a_disk_without_room_is_told(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        storage = LocalStorage(disk)
        storage.put_bytes(KEY, b"old", content_type="video/mp4")
        with pytest.raises(DiskFull) as caught:
            storage.put_bytes(KEY, bytes(300_000), content_type="video/mp4")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert storage.get_bytes(KEY) == b"old"
        storage.put_bytes(KEY, bytes(100_000), content_type="video/mp4")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_directory_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = LocalStorage(tmp_path / "file")
    with pytest.raises(StorageRefused, match="STILLREEL_STORAGE_DIR") as caught:
        storage.put_bytes(KEY, b"x", content_type="video/mp4")
    assert str(tmp_path) not in caught.value.message


def test_a_directory_without_permission_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")
    storage.put_bytes(KEY, b"old", content_type="video/mp4")
    calls: list[Callable[[], object]] = [
        lambda: LocalStorage(storage.root).put_bytes(KEY, b"new", content_type="video/mp4"),
        lambda: storage.get_bytes(KEY),
        lambda: storage.head(KEY),
        lambda: storage.delete(KEY),
        lambda: list(storage.list("outputs/")),
    ]
    with no_permission(storage.root):
        for call in calls:
            with pytest.raises(StorageRefused, match="Permission denied"):
                call()
    assert storage.get_bytes(KEY) == b"old"


def test_two_writers_of_one_key_leave_one_whole_object(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    versions = [bytes([n]) * 200_000 for n in range(4)]
    seen: list[bytes] = []

    def write(data: bytes) -> None:
        for _ in range(10):
            storage.put_bytes(KEY, data, content_type="video/mp4")
            seen.append(storage.get_bytes(KEY))

    threads = [threading.Thread(target=write, args=(data,)) for data in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 40
    assert set(seen) <= set(versions)


def test_what_a_killed_writer_left_is_not_listed_and_goes_after_a_day(tmp_path: Path) -> None:
    LocalStorage(tmp_path).put_bytes(KEY, b"x", content_type="video/mp4")
    fresh, stale = tmp_path / ".parts" / ".fresh.part", tmp_path / ".parts" / ".stale.part"
    fresh.write_bytes(b"half")
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    storage = LocalStorage(tmp_path)
    storage.put_bytes(KEY, b"x", content_type="video/mp4")
    assert [info.key for info in storage.list("")] == [KEY]
    assert fresh.exists()
    assert not stale.exists()


# --- S3 and R2 --------------------------------------------------------------------------------


def test_a_signed_upload_takes_the_bytes_and_binds_type_and_length(
    s3: Storage, r2: Storage
) -> None:
    for storage in (s3, r2):
        url = storage.upload_url(KEY, content_type="video/mp4", size=5, seconds=600)
        query = parse_qs(urlsplit(url).query)
        assert query["X-Amz-SignedHeaders"] == ["content-length;content-type;host"]
        assert query["X-Amz-Expires"] == ["600"]
        answer = httpx.put(url, content=b"video", headers={"Content-Type": "video/mp4"})
        assert answer.status_code == 200
        info = storage.head(KEY)
        assert info is not None
        assert (info.size, info.content_type) == (5, "video/mp4")
        storage.delete(KEY)


@pytest.mark.parametrize(
    ("content_type", "size"), [("video/mp4", 6), ("image/png", 5)], ids=["length", "type"]
)
def test_a_signature_fits_one_type_and_one_length(
    s3: Storage, monkeypatch: pytest.MonkeyPatch, content_type: str, size: int
) -> None:
    frozen_clock(monkeypatch)
    wanted = s3.upload_url(KEY, content_type="video/mp4", size=5, seconds=600)
    assert s3.upload_url(KEY, content_type="video/mp4", size=5, seconds=600) == wanted
    other = s3.upload_url(KEY, content_type=content_type, size=size, seconds=600)
    assert signature(other) != signature(wanted)


def test_a_signed_download_gives_the_bytes(s3: Storage) -> None:
    s3.put_bytes(KEY, b"video", content_type="video/mp4")
    answer = httpx.get(s3.download_url(KEY, seconds=60))
    assert (answer.status_code, answer.content) == (200, b"video")
    assert answer.headers["content-type"] == "video/mp4"


def test_only_results_have_a_public_address(r2: Storage) -> None:
    assert r2.download_url("outputs/job_1/a b.mp4", seconds=60) == (
        f"{PUBLIC_URL}/outputs/job_1/a%20b.mp4"
    )
    for key in ("inputs/job_1/input.png", "latents/job_1/a.safetensors", "outputs2/a.mp4"):
        url = r2.download_url(key, seconds=60)
        assert not url.startswith(PUBLIC_URL)
        assert "X-Amz-Signature" in url


def test_a_listing_crosses_pages(moto_url: str, bucket_name: str) -> None:
    storage = S3Storage(bucket_of(s3_settings(moto_url, bucket_name)), page=2)
    keys = [f"outputs/job_{n}/output.mp4" for n in range(5)]
    for key in keys:
        storage.put_bytes(key, b"x", content_type="video/mp4")
    assert [info.key for info in storage.list("outputs/")] == keys


def test_only_calls_that_r2_has_are_made(moto_url: str, bucket_name: str, tmp_path: Path) -> None:
    r2 = S3Storage(bucket_of(r2_settings(moto_url, bucket_name)))
    sent: list[tuple[str, dict[str, str]]] = []
    r2.client.meta.events.register(
        "before-send.s3",
        lambda event_name, request, **_: sent.append(
            (event_name.rpartition(".")[2], {k.lower(): str(v) for k, v in request.headers.items()})
        ),
    )
    source = tmp_path / "source.mp4"
    source.write_bytes(bytes(2 * PART_BYTES + 5))
    r2.put_file(KEY, source, content_type="video/mp4")
    r2.put_bytes("inputs/a.png", b"x", content_type="image/png")
    r2.get_file(KEY, tmp_path / "target.mp4")
    r2.get_bytes("inputs/a.png")
    list(r2.list(""))
    r2.delete(KEY)
    assert {operation for operation, _ in sent} == {
        "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject",
        "HeadObject", "GetObject", "ListObjectsV2", "DeleteObject",
    }  # fmt: skip
    names = {name for _, headers in sent for name in headers}
    refused_by_r2 = ("x-amz-acl", "x-amz-tagging", "x-amz-checksum", "x-amz-sdk-checksum",
                     "x-amz-trailer")  # fmt: skip
    assert not [name for name in names if name.startswith(refused_by_r2)]
    parts = sorted(int(h["content-length"]) for name, h in sent if name == "UploadPart")
    assert parts == [5, PART_BYTES, PART_BYTES]


def test_addresses_name_the_region_where_there_is_no_endpoint() -> None:
    cases = {
        ("videos", "eu-central-1"): "https://videos.s3.eu-central-1.amazonaws.com/",
        ("my.videos", "eu-central-1"): "https://s3.eu-central-1.amazonaws.com/my.videos/",
    }
    for (name, region), start in cases.items():
        bucket = Bucket(name, "", region, SecretStr(ACCESS_KEY), SecretStr(SECRET_KEY))
        assert S3Storage(bucket).download_url(KEY, seconds=60).startswith(start)


def test_r2_is_reached_in_its_own_region_by_path() -> None:
    storage = S3Storage(
        bucket_of(r2_settings("https://account.r2.cloudflarestorage.com", "videos"))
    )
    url = storage.download_url("inputs/a.png", seconds=60)
    assert url.startswith("https://account.r2.cloudflarestorage.com/videos/inputs/a.png?")
    assert "%2Fauto%2Fs3%2Faws4_request" in url


def test_without_keys_the_machines_role_signs(
    moto_url: str, bucket_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id=ROLEKEY\naws_secret_access_key=s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    bucket = Bucket(bucket_name, moto_url, "", SecretStr(""), SecretStr(""))
    storage = S3Storage(bucket)
    storage.put_bytes(KEY, b"x", content_type="video/mp4")
    assert "Credential=ROLEKEY" in storage.download_url(KEY, seconds=60)


def test_no_credentials_at_all_are_told(
    moto_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage = S3Storage(Bucket("videos", moto_url, "", SecretStr(""), SecretStr("")))
    with pytest.raises(StorageRefused, match=r"NoCredentialsError.*AWS_ACCESS_KEY_ID"):
        storage.head(KEY)
    with pytest.raises(StorageRefused, match="AWS_ACCESS_KEY_ID"):
        storage.download_url(KEY, seconds=60)


def test_a_bucket_that_does_not_exist_is_refused(
    moto_url: str, bucket_name: str, tmp_path: Path
) -> None:
    source = tmp_path / "source.mp4"
    source.write_bytes(b"x")
    storage = S3Storage(bucket_of(r2_settings(moto_url, "no-such-bucket")))
    calls: list[Callable[[], object]] = [
        lambda: storage.put_file(KEY, source, content_type="video/mp4"),
        lambda: storage.put_bytes(KEY, b"x", content_type="video/mp4"),
        lambda: storage.get_bytes(KEY),
        lambda: storage.delete(KEY),
        lambda: list(storage.list("outputs/")),
    ]
    for call in calls:
        with pytest.raises(StorageRefused, match=r"NoSuchBucket.*R2_BUCKET"):
            call()


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [("not an address", "videos"), ("http://127.0.0.1:9", "not a bucket name!")],
    ids=["endpoint", "bucket name"],
)
def test_settings_that_make_no_sense_are_refused(endpoint: str, name: str) -> None:
    storage = S3Storage(bucket_of(r2_settings(endpoint, name)))
    with pytest.raises(StorageRefused, match="R2_ENDPOINT"):
        storage.get_bytes(KEY)


ANSWERS = [
    (403, "AccessDenied", StorageRefused),
    (403, "InvalidAccessKeyId", StorageRefused),
    (403, "SignatureDoesNotMatch", StorageRefused),
    (400, "ExpiredToken", StorageRefused),
    (401, "Unauthorized", StorageRefused),
    (404, "NoSuchBucket", StorageRefused),
    (501, "NotImplemented", StorageRefused),
    (404, "NoSuchKey", ObjectMissing),
    (500, "InternalError", StorageUnavailable),
    (503, "SlowDown", StorageUnavailable),
    (429, "TooManyRequests", StorageUnavailable),
    (400, "RequestTimeout", StorageUnavailable),
    (409, "OperationAborted", StorageUnavailable),
]


@pytest.mark.parametrize(("status", "code", "error"), ANSWERS, ids=[a[1] for a in ANSWERS])
def test_every_answer_becomes_one_of_our_errors(
    server: Answering, answered: S3Storage, status: int, code: str, error: type[StillreelError]
) -> None:
    server.answer(status, code)
    calls: list[Callable[[], object]] = [
        lambda: answered.get_bytes(KEY),
        lambda: answered.put_bytes(KEY, b"x", content_type="video/mp4"),
        lambda: list(answered.list("outputs/")),
    ]
    for call in calls:
        with pytest.raises(error) as caught:
            call()
        for secret in (ACCESS_KEY, SECRET_KEY, "127.0.0.1", "inner detail"):
            assert secret not in str(caught.value)
            assert secret not in repr(caught.value)
        assert SECRET_KEY not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    ("status", "error"), [(403, StorageRefused), (503, StorageUnavailable)], ids=str
)
def test_an_answer_without_a_body_is_understood(
    server: Answering, answered: S3Storage, status: int, error: type[StillreelError]
) -> None:
    server.answer(status, "")
    with pytest.raises(error):
        answered.head(KEY)


def test_tries_are_bounded(server: Answering) -> None:
    server.answer(503, "SlowDown")
    storage = S3Storage(bucket_of(s3_settings(server.url, "videos")), attempts=2)
    with pytest.raises(StorageUnavailable, match="SlowDown"):
        storage.get_bytes(KEY)
    assert server.requests == 2


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    source.write_bytes(b"x")
    with socket.socket() as unheard:  # bound, but nobody listens
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        storage = S3Storage(bucket_of(s3_settings(url, "videos")), attempts=2)
        with pytest.raises(StorageUnavailable, match="EndpointConnectionError") as caught:
            storage.put_file(KEY, source, content_type="video/mp4")
    assert "127.0.0.1" not in str(caught.value)


def test_a_download_that_breaks_off_keeps_the_old_file(
    server: Answering, answered: S3Storage, tmp_path: Path
) -> None:
    target = tmp_path / "target.mp4"
    target.write_bytes(b"old")
    server.answer(200, "", announced=100_000)
    with pytest.raises(StorageUnavailable):
        answered.get_file(KEY, target)
    with pytest.raises(StorageUnavailable):
        answered.get_bytes(KEY)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_storage_does_not_show_its_secrets(s3: Storage, r2: Storage) -> None:
    assert isinstance(s3, S3Storage)
    for value in (s3, r2, s3.bucket):
        assert SECRET_KEY not in f"{value} {value!r}"
        assert ACCESS_KEY not in f"{value} {value!r}"


# --- helpers ----------------------------------------------------------------------------------


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Lets no file grow over `size`, which is what a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_permission(folder: Path) -> Iterator[None]:
    """Takes the permissions of a directory away, and root's power to ignore that."""
    root = os.geteuid() == 0
    folder.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda **_: moment)


def signature(url: str) -> str:
    return parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]


class Answering(ThreadingHTTPServer):
    """A server on the loopback that gives every request the same answer."""

    status = 200
    body = b""
    announced = 0
    requests = 0

    def answer(self, status: int, code: str, *, announced: int = 0) -> None:
        """From now on; `announced` bytes are promised where the body has fewer."""
        body = f"<Error><Code>{code}</Code><Message>inner detail</Message></Error>" if code else ""
        self.status, self.body, self.announced, self.requests = status, body.encode(), announced, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class SameAnswer(BaseHTTPRequestHandler):
    server: Answering  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"  # the client expects 100-continue

    def answer(self) -> None:
        self.server.requests += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(self.server.announced or len(self.server.body)))
        self.send_header("ETag", '"etag"')
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.server.body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


@pytest.fixture(scope="session")
def server() -> Iterator[Answering]:
    server = Answering(("127.0.0.1", 0), SameAnswer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def answered(server: Answering) -> S3Storage:
    """Storage on that server, which tries each request once."""
    return S3Storage(bucket_of(s3_settings(server.url, "videos")), attempts=1)
