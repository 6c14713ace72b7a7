"""Storage in S3, in Cloudflare R2, or in any server that speaks S3.

Only calls that R2 has: no ACL, no tagging, no POST policy, no CRC trailers, parts of one size
(developers.cloudflare.com/r2/api/s3/api).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)
from pydantic import SecretStr
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

from stillreel.errors import ObjectMissing, StorageError, StorageRefused, StorageUnavailable
from stillreel.settings import StorageSettings
from stillreel.storage import (
    BYTES_LIMIT,
    ObjectInfo,
    checked_key,
    checked_prefix,
    checked_seconds,
    checked_size,
    guess_type,
    missing,
    replacing,
)

PUBLIC_PREFIX = "outputs/"
"""Only results ever get a public URL; inputs and latents never do."""
PART_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class Bucket:
    """A bucket and how it is reached; empty keys mean the machine's own role."""

    name: str
    endpoint: str
    region: str
    access_key: SecretStr
    secret_key: SecretStr
    session_token: SecretStr | None = None
    public_url: str = ""
    hint: str = "S3_BUCKET, S3_REGION, S3_ENDPOINT, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    """The variables to look at when the bucket refuses."""

    def client_options(self, *, attempts: int = 3) -> dict[str, Any]:
        """Options for botocore's Config, as plain data."""
        by_path = self.endpoint or "." in self.name  # a dot in a host name breaks the certificate
        return {
            "signature_version": "s3v4",
            "s3": {"addressing_style": "path" if by_path else "virtual"},
            "retries": {"mode": "standard", "total_max_attempts": attempts},
            "connect_timeout": 5,
            "read_timeout": 60,
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }

    def session_options(self) -> dict[str, Any]:
        """Keys and region for a boto3 session; None leaves it to the machine."""
        return {
            "aws_access_key_id": self.access_key.get_secret_value() or None,
            "aws_secret_access_key": self.secret_key.get_secret_value() or None,
            "aws_session_token": self.session_token.get_secret_value() or None
            if self.session_token
            else None,
            "region_name": self.region or ("us-east-1" if self.endpoint else None),
        }


def bucket_of(settings: StorageSettings) -> Bucket:
    """The bucket that is configured, S3 or R2."""
    if settings.kind == "s3":
        return Bucket(
            name=settings.s3_bucket,
            endpoint=settings.s3_endpoint,
            region=settings.s3_region,
            access_key=settings.s3_access_key_id,
            secret_key=settings.s3_secret_access_key,
            session_token=settings.s3_session_token,
        )
    return Bucket(
        name=settings.r2_bucket,
        endpoint=settings.r2_address,
        region="auto",
        access_key=settings.r2_access_key,
        secret_key=settings.r2_secret_key,
        public_url=settings.r2_public_url.rstrip("/"),
        hint="R2_BUCKET, R2_ENDPOINT, R2_ACCESS_KEY and R2_SECRET_KEY",
    )


class S3Storage:
    """A bucket as storage; `attempts` bounds the tries of each request.

    `page` is how many objects a listing asks for at once; 1000 is the most that S3 gives.
    """

    def __init__(self, bucket: Bucket, *, attempts: int = 3, page: int = 1000) -> None:
        self.bucket = bucket
        self.attempts = attempts
        self.page = page

    def __repr__(self) -> str:
        return f"S3Storage({self.bucket.name!r})"

    def put_file(self, key: str, path: Path, *, content_type: str) -> ObjectInfo:
        checked_key(key)
        with path.open("rb") as file, self.errors(key):
            self.client.upload_fileobj(
                file, self.bucket.name, key,
                ExtraArgs={"ContentType": content_type}, Config=_TRANSFER,
            )  # fmt: skip
        return self._stored(key)

    def put_bytes(self, key: str, data: bytes, *, content_type: str) -> ObjectInfo:
        checked_key(key)
        with self.errors(key):
            self.client.put_object(
                Bucket=self.bucket.name, Key=key, Body=data, ContentType=content_type
            )
        return self._stored(key)

    def get_file(self, key: str, path: Path) -> None:
        checked_key(key)
        with replacing(path) as file, self.errors(key):
            self.client.download_fileobj(self.bucket.name, key, file, Config=_TRANSFER)

    def get_bytes(self, key: str, *, limit: int = BYTES_LIMIT) -> bytes:
        checked_key(key)
        with self.errors(key):
            body = self.client.get_object(Bucket=self.bucket.name, Key=key)["Body"]
            with body:
                data = body.read(limit + 1)
        return checked_size(key, data, limit)

    def head(self, key: str) -> ObjectInfo | None:
        checked_key(key)
        try:
            with self.errors(key):
                found = self.client.head_object(Bucket=self.bucket.name, Key=key)
        except ObjectMissing:
            return None
        content_type = found.get("ContentType") or guess_type(key)
        return _info(key, found, size=found["ContentLength"], content_type=content_type)

    def delete(self, key: str) -> None:
        checked_key(key)
        with self.errors(key):
            self.client.delete_object(Bucket=self.bucket.name, Key=key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._listed(checked_prefix(prefix))

    def upload_url(
        self, key: str, *, content_type: str, size: int | None, seconds: int, once: bool = False
    ) -> str:
        """As the port says; `once`: only while there is no such object, by `If-None-Match: *`."""
        more: dict[str, Any] = {} if size is None else {"ContentLength": size}
        if once:
            more["IfNoneMatch"] = "*"
        return self._signed("put_object", key, seconds, ContentType=content_type, **more)

    def parts_urls(
        self, key: str, *, content_type: str, sizes: Sequence[int], seconds: int
    ) -> tuple[str, list[str]]:
        """The bucket's name of an upload in parts, and where to PUT each of these many bytes."""
        checked_key(key)
        with self.errors(key):
            made = self.client.create_multipart_upload(
                Bucket=self.bucket.name, Key=key, ContentType=content_type
            )
        upload = str(made["UploadId"])
        return upload, [
            self._signed(
                "upload_part", key, seconds, UploadId=upload, PartNumber=n, ContentLength=size
            )
            for n, size in enumerate(sizes, 1)
        ]

    def join_parts(self, key: str, upload: str) -> None:
        """Make the object of the parts that have come; nothing where there are none, or no upload
        of this name any more, for it was joined before.
        """
        checked_key(key)
        where = {"Bucket": self.bucket.name, "Key": key, "UploadId": upload}
        with self.errors(key), _unless_joined():
            pages = self.client.get_paginator("list_parts").paginate(**where)
            found = [part for page in pages for part in page.get("Parts", ())]
            parts = [{"ETag": p["ETag"], "PartNumber": p["PartNumber"]} for p in found]
            if parts:
                self.client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})

    def download_url(self, key: str, *, seconds: int) -> str:
        """As the port says; where R2 has a public address, results get that, which never ends."""
        if self.bucket.public_url and checked_key(key).startswith(PUBLIC_PREFIX):
            checked_seconds(seconds)
            return f"{self.bucket.public_url}/{quote(key)}"
        return self._signed("get_object", key, seconds)

    @cached_property
    def client(self) -> Any:
        """boto3's client of the bucket, for what the port has no call for."""
        return Session(**self.bucket.session_options()).client(
            "s3",
            endpoint_url=self.bucket.endpoint or None,
            config=Config(**self.bucket.client_options(attempts=self.attempts)),
        )

    def _listed(self, prefix: str) -> Iterator[ObjectInfo]:
        with self.errors(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket.name, Prefix=prefix, PaginationConfig={"PageSize": self.page}
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    key = found["Key"]
                    yield _info(key, found, size=found["Size"], content_type=guess_type(key))

    def _signed(self, operation: str, key: str, seconds: int, **params: Any) -> str:
        checked_key(key)
        checked_seconds(seconds)
        with self.errors(key):
            return self.client.generate_presigned_url(
                operation,
                Params={"Bucket": self.bucket.name, "Key": key, **params},
                ExpiresIn=seconds,
            )

    def _stored(self, key: str) -> ObjectInfo:
        info = self.head(key)
        if info is None:
            raise StorageUnavailable(f"{key} was removed while it was stored; store it again.")
        return info

    @contextmanager
    def errors(self, key: str) -> Iterator[None]:
        """Turns every error of boto3 into one of ours."""
        try:
            yield
        except _SETUP_ERRORS as exc:
            raise self._refusal(type(exc).__name__) from exc
        except ClientError as exc:
            raise self._answered(exc, key) from exc
        except (BotoCoreError, Boto3Error, RetriesExceededError, S3DownloadFailedError) as exc:
            raise StorageUnavailable(
                f"Storage does not answer ({type(exc).__name__}); a later try may succeed."
            ) from exc

    def _answered(self, exc: ClientError, key: str) -> StorageError:
        code = str(exc.response.get("Error", {}).get("Code", ""))
        status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in ("NoSuchKey", "404", "NotFound"):
            return missing(key)
        passing = status >= 500 and status != 501  # 501: the server has no such call
        if passing or status in _PASSING_STATUS or code in _PASSING_CODES:
            return StorageUnavailable(
                f"Storage cannot do this now ({code}); a later try may succeed."
            )
        return self._refusal(code)

    def _refusal(self, reason: str) -> StorageRefused:
        return StorageRefused(
            f"Storage refuses ({reason}); check {self.bucket.hint}, and that the key may list, "
            "read, write and delete in this bucket."
        )


_TRANSFER = TransferConfig(
    multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
)
_SETUP_ERRORS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    ProfileNotFound,
    ParamValidationError,
    InvalidRegionError,
    ValueError,  # an endpoint that is no address
)
_PASSING_STATUS = (408, 409, 412, 429)
_PASSING_CODES = (
    "SlowDown",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "NoSuchUpload",
    "InvalidPart",
)


@contextmanager
def _unless_joined() -> Iterator[None]:
    try:
        yield
    except ClientError as exc:
        if exc.response.get("Error", {}).get("Code") != "NoSuchUpload":
            raise


def _info(key: str, found: dict[str, Any], *, size: int, content_type: str) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size=size,
        etag=found["ETag"].strip('"'),
        content_type=content_type,
        modified=found["LastModified"].replace(microsecond=0),  # list() and head() differ in it
    )
