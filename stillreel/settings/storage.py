"""Settings of the storage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from stillreel.settings.concern import Concern, absolute_path, names
from stillreel.settings.texts import LABEL, comma_separated


class StorageSettings(Concern):
    """Where bytes are kept: a local directory, S3 or Cloudflare R2; exactly one."""

    storage_dir: Path | None = Field(
        None, description="Local directory as storage (default: `storage` under STILLREEL_HOME)."
    )
    s3_bucket: str = Field(
        "", validation_alias=names("S3_BUCKET", "S3_BUCKET"), description="Name of the S3 bucket."
    )
    s3_region: str = Field(
        "",
        validation_alias=names("S3_REGION", "S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
        description="Region of the S3 bucket.",
    )
    s3_endpoint: str = Field(
        "",
        validation_alias=names("S3_ENDPOINT", "S3_ENDPOINT"),
        description="Address of an S3-compatible server; empty for AWS.",
    )
    s3_access_key_id: SecretStr = Field(
        SecretStr(""),
        validation_alias=names("S3_ACCESS_KEY_ID", "S3_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
        description="S3 access key; empty uses the machine's own role.",
    )
    s3_secret_access_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=names(
            "S3_SECRET_ACCESS_KEY", "S3_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"
        ),
        description="S3 secret key.",
    )
    s3_session_token: SecretStr = Field(
        SecretStr(""),
        validation_alias=names("S3_SESSION_TOKEN", "AWS_SESSION_TOKEN"),
        description="S3 session token, where the keys are temporary ones.",
    )
    r2_bucket: str = Field(
        "", validation_alias=names("R2_BUCKET", "R2_BUCKET"), description="Name of the R2 bucket."
    )
    r2_endpoint: str = Field(
        "",
        validation_alias=names("R2_ENDPOINT", "R2_ENDPOINT"),
        description="Address of the R2 account.",
    )
    r2_access_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=names("R2_ACCESS_KEY", "R2_ACCESS_KEY"),
        description="R2 access key id.",
    )
    r2_secret_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=names("R2_SECRET_KEY", "R2_SECRET_KEY"),
        description="R2 secret key.",
    )
    r2_public_url: str = Field(
        "",
        validation_alias=names("R2_PUBLIC_URL", "R2_PUBLIC_URL"),
        description="Public address of the R2 bucket; empty signs URLs.",
    )
    r2_location: Literal["", "wnam", "enam", "weur", "eeur", "apac", "oc"] = Field(
        "",
        validation_alias=names("R2_LOCATION", "R2_LOCATION"),
        description="Where `stillreel storage init` asks R2 to make the bucket: `wnam`, `enam`, "
        "`weur`, `eeur`, `apac`, `oc`; a hint. Empty: R2 chooses.",
    )
    r2_jurisdiction: Literal["", "eu", "fedramp"] = Field(
        "",
        validation_alias=names("R2_JURISDICTION", "R2_JURISDICTION"),
        description="Where the bucket has to stay: `eu` or `fedramp`; becomes part of R2_ENDPOINT.",
    )
    lease_url: str = Field(
        "",
        pattern=r"^(https?://[^\s?#@]+)?$",
        description="On a rented host: where the API lends it storage for its own jobs, e.g. "
        "`https://api.example.com/lease`. Such a host has no bucket and no keys; the drain sets "
        "it.",
    )
    lease_token: SecretStr = Field(
        SecretStr(""), description="The token of that lease; the drain sets it."
    )
    upload_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*",),
        description="Sites whose pages may use signed URLs of a bucket, comma-separated, e.g. "
        "`https://app.example.com`; `stillreel storage init` tells the bucket.",
    )
    upload_url_seconds: int = Field(
        3600,
        ge=60,
        le=604800,
        description="How long a signed upload URL is valid.",
    )
    download_url_seconds: int = Field(
        86400, ge=60, le=604800, description="How long a signed download URL is valid."
    )

    status_url_seconds: int = Field(
        3600,
        ge=60,
        le=604800,
        description="How long the video's URL in `GET /status/{job_id}` is valid.",
    )
    upload_claim_seconds: int = Field(
        86400,
        ge=60,
        description="An upload that no job has taken after this time is deleted.",
    )
    input_days: int = Field(
        30, ge=0, description="Days that inputs are kept after they came; 0: for ever."
    )
    latents_days: int = Field(
        30, ge=0, description="Days that latents are kept after they were made; 0: for ever."
    )
    output_days: int = Field(
        0, ge=0, description="Days that videos are kept after they were made; 0: for ever."
    )
    results_days: int = Field(
        90,
        ge=0,
        description="Days that a bucket keeps what tasks have noted for each other; 0: for ever. "
        "Later a task that is run again works again.",
    )
    bucket_input_days: int = Field(
        0,
        ge=0,
        description="Days after which the bucket itself deletes inputs, even of jobs that still "
        "wait; 0: never, the keeper does it with more care.",
    )
    bucket_output_days: int = Field(
        0,
        ge=0,
        description="The same for videos and their receipts, which the keeper keeps; 0: never.",
    )

    @field_validator("storage_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value and absolute_path(value)

    @field_validator("upload_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return comma_separated(value)

    @field_validator("upload_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if text != "*" and not _ORIGIN.fullmatch(text):
                raise ValueError(
                    f"{text[:80]!r} is no origin; write e.g. https://app.example.com, without a "
                    "path, or * for every site"
                )
        return value

    @property
    def r2_address(self) -> str:
        """The address of the R2 account, in its jurisdiction."""
        found = _R2_ADDRESS.fullmatch(self.r2_endpoint)
        if not self.r2_jurisdiction or not found:
            return self.r2_endpoint
        return f"{found['account']}.{self.r2_jurisdiction}.{found['rest']}"

    @property
    def kind(self) -> Literal["local", "s3", "r2", "lease"]:
        """Which storage is configured."""
        if self.lease_url:
            return "lease"
        return "s3" if self.s3_bucket else "r2" if self.r2_bucket else "local"

    @model_validator(mode="after")
    def _exactly_one(self) -> StorageSettings:
        r2 = {
            "R2_BUCKET": self.r2_bucket,
            "R2_ENDPOINT": self.r2_endpoint,
            "R2_ACCESS_KEY": self.r2_access_key.get_secret_value(),
            "R2_SECRET_KEY": self.r2_secret_key.get_secret_value(),
        }
        chosen = [
            name
            for name, value in (
                ("a local directory (STILLREEL_STORAGE_DIR)", self.storage_dir),
                ("S3 (S3_BUCKET)", self.s3_bucket),
                ("R2 (R2_BUCKET)", any(r2.values())),
                ("a lease (STILLREEL_LEASE_URL)", self.lease_url),
            )
            if value
        ]
        if len(chosen) > 1:
            raise ValueError(
                f"two storages are configured at once: {' and '.join(chosen)}; keep one of them"
            )
        if bool(self.lease_url) != bool(self.lease_token.get_secret_value()):
            raise ValueError("set STILLREEL_LEASE_URL and STILLREEL_LEASE_TOKEN together")
        if any(r2.values()) and not all(r2.values()):
            missing = ", ".join(name for name, value in r2.items() if not value)
            raise ValueError(f"R2 is configured in part; set {missing} too")
        found = _R2_ADDRESS.fullmatch(self.r2_endpoint)
        if self.r2_jurisdiction and (
            not found or found["place"] not in (None, self.r2_jurisdiction)
        ):
            raise ValueError(
                f"R2_JURISDICTION is {self.r2_jurisdiction}, which R2_ENDPOINT cannot be in; set "
                "that to https://<account>.r2.cloudflarestorage.com, or leave the jurisdiction out"
            )
        if (
            bool(self.s3_access_key_id.get_secret_value())
            != bool(self.s3_secret_access_key.get_secret_value())
            and self.s3_bucket
        ):
            raise ValueError("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY together, or neither")
        return self


_ORIGIN = re.compile(rf"https?://(?:\[[0-9A-Fa-f:.]+\]|{LABEL}(?:\.{LABEL})*)(?::[0-9]{{1,5}})?")
_R2_ADDRESS = re.compile(
    r"(?P<account>https://[0-9A-Za-z]+)\.(?:(?P<place>eu|fedramp)\.)?"
    r"(?P<rest>r2\.cloudflarestorage\.com)/?"
)
