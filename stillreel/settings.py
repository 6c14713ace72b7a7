"""Settings from the environment: one class per concern, all errors at once, secrets masked.

Each setting is `STILLREEL_` + its name in capitals; the names of the two design documents work as
aliases. `docs/settings.md` is generated from this file (`make docs`).
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stillreel.database import asyncpg_url
from stillreel.errors import SettingsInvalid
from stillreel.signing import standard_secret

PREFIX = "STILLREEL_"
REMOTE_VALUES = (
    "prompt",
    "negative_prompt",
    "image",
    "model",
    "seconds",
    "duration",
    "frames",
    "fps",
    "size",
    "width",
    "height",
    "aspect_ratio",
    "seed",
    "audio",
)
"""What `{...}` in STILLREEL_REMOTE_PARAMETERS may name."""


def _names(name: str, *aliases: str) -> AliasChoices:
    return AliasChoices(PREFIX + name, *aliases)


class _Concern(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
        populate_by_name=True,
    )


class HostSettings(_Concern):
    """This machine: where files lie and how much work it takes."""

    home: Path = Field(
        Path("~/.stillreel"),
        description="Directory of everything this machine keeps: work files, local storage, "
        "Prefect's database in the one-machine setup.",
    )
    host_name: str = Field(
        default_factory=socket.gethostname, description="Name of this host in results and logs."
    )
    limit: int = Field(
        3,
        ge=1,
        le=32,
        description="Jobs that a host works on at once; one infers, the others encode and upload.",
    )
    gpus: int = Field(1, ge=1, le=16, description="Inference servers on a host, one per GPU.")
    encode_threads: int = Field(
        default_factory=lambda: max(
            1,
            min(
                8,
                len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else os.cpu_count() or 1,
            ),
        ),
        ge=1,
        le=64,
        description="Threads of one encode.",
    )
    nvenc: bool = Field(
        False,
        description="Encode H.264 on the GPU where it can (an A10G can, an A100 cannot); else, and "
        "where that fails, on the CPU.",
    )
    host_price: float = Field(
        0.0, ge=0, description="US$ per hour of this host, for the cost in each result."
    )
    spot_notice: bool = Field(
        False,
        description="This host is an EC2 spot instance: when AWS gives the two minutes' notice, it "
        "hands its jobs back and ends. Name it in STILLREEL_RENTED_ENV for rented hosts.",
    )

    styles: Path | None = Field(
        None,
        description="File of your own styles (docs/styles.md), the same on the API's machine and "
        "on all hosts.",
    )

    @field_validator("home", "styles")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value and _absolute_path(value)

    @property
    def work_dir(self) -> Path:
        """Files of running jobs; may be deleted when nothing runs."""
        return self.home / "work"


class StorageSettings(_Concern):
    """Where bytes are kept: a local directory, S3 or Cloudflare R2; exactly one."""

    storage_dir: Path | None = Field(
        None, description="Local directory as storage (default: `storage` under STILLREEL_HOME)."
    )
    s3_bucket: str = Field(
        "", validation_alias=_names("S3_BUCKET", "S3_BUCKET"), description="Name of the S3 bucket."
    )
    s3_region: str = Field(
        "",
        validation_alias=_names("S3_REGION", "S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
        description="Region of the S3 bucket.",
    )
    s3_endpoint: str = Field(
        "",
        validation_alias=_names("S3_ENDPOINT", "S3_ENDPOINT"),
        description="Address of an S3-compatible server; empty for AWS.",
    )
    s3_access_key_id: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("S3_ACCESS_KEY_ID", "S3_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
        description="S3 access key; empty uses the machine's own role.",
    )
    s3_secret_access_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names(
            "S3_SECRET_ACCESS_KEY", "S3_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"
        ),
        description="S3 secret key.",
    )
    s3_session_token: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("S3_SESSION_TOKEN", "AWS_SESSION_TOKEN"),
        description="S3 session token, where the keys are temporary ones.",
    )
    r2_bucket: str = Field(
        "", validation_alias=_names("R2_BUCKET", "R2_BUCKET"), description="Name of the R2 bucket."
    )
    r2_endpoint: str = Field(
        "",
        validation_alias=_names("R2_ENDPOINT", "R2_ENDPOINT"),
        description="Address of the R2 account.",
    )
    r2_access_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("R2_ACCESS_KEY", "R2_ACCESS_KEY"),
        description="R2 access key id.",
    )
    r2_secret_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("R2_SECRET_KEY", "R2_SECRET_KEY"),
        description="R2 secret key.",
    )
    r2_public_url: str = Field(
        "",
        validation_alias=_names("R2_PUBLIC_URL", "R2_PUBLIC_URL"),
        description="Public address of the R2 bucket; empty signs URLs.",
    )
    r2_location: Literal["", "wnam", "enam", "weur", "eeur", "apac", "oc"] = Field(
        "",
        validation_alias=_names("R2_LOCATION", "R2_LOCATION"),
        description="Where `stillreel storage init` asks R2 to make the bucket: `wnam`, `enam`, "
        "`weur`, `eeur`, `apac`, `oc`; a hint. Empty: R2 chooses.",
    )
    r2_jurisdiction: Literal["", "eu", "fedramp"] = Field(
        "",
        validation_alias=_names("R2_JURISDICTION", "R2_JURISDICTION"),
        description="Where the bucket has to stay: `eu` or `fedramp`; becomes part of R2_ENDPOINT.",
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
        return value and _absolute_path(value)

    @field_validator("upload_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _comma_separated(value)

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
    def kind(self) -> Literal["local", "s3", "r2"]:
        """Which storage is configured."""
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
            )
            if value
        ]
        if len(chosen) > 1:
            raise ValueError(
                f"two storages are configured at once: {' and '.join(chosen)}; keep one of them"
            )
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


class FetchSettings(_Concern):
    """What is accepted from outside."""

    image_max_bytes: int = Field(50_000_000, ge=1, description="Largest image, in bytes.")
    image_max_pixels: int = Field(64_000_000, ge=1, description="Largest image, in pixels.")
    fetch_seconds: float = Field(30.0, gt=0, le=600, description="Time to fetch an image, in all.")
    allow_addresses: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="`host:port` pairs that callers' URLs may name although they are not public, "
        "comma-separated (for tests and laptops): exactly these, as written in the URL, e.g. "
        "`127.0.0.1:9000,[::1]:9000,minio.internal:9000`.",
    )

    @field_validator("allow_addresses", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _comma_separated(value)

    @field_validator("allow_addresses")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_host_and_port(text) for text in value)


class RemoteSettings(_Concern):
    """A video server elsewhere, for the model `remote`."""

    remote_url: str = Field(
        "",
        description="Where its API begins, e.g. `http://gpu-7:30000/v1`; empty: there is no model "
        "`remote`.",
    )
    remote_shape: Literal["openai", "replicate"] = Field(
        "openai",
        description="What it speaks: `openai` (`/videos`, as SGLang, vLLM-Omni, FastVideo and "
        "stillreel) or `replicate` (`/predictions`).",
    )
    remote_key: SecretStr = Field(
        SecretStr(""), description="Sent to it, and to nobody else, as `Authorization: Bearer`."
    )
    remote_model: str = Field(
        "",
        pattern=r"^[\w./:@-]{0,200}$",
        description="The name of the model there; for `replicate` e.g. `owner/name`, "
        "`owner/name:version` or `deployments/owner/name`.",
    )
    remote_parameters: Annotated[dict[str, Any], NoDecode] = Field(
        {},
        description="JSON object: what else is sent, over the defaults of the shape; `null` leaves "
        'one out, `"{seed}"` and the like stand for the order\'s (docs/models.md).',
    )
    remote_poll_seconds: float = Field(
        5.0, ge=0.1, le=60, description="How often it is asked, where it does not say itself."
    )
    remote_seconds: float = Field(
        3600.0, gt=0, le=86400, description="Time for one video there, with its wait in line."
    )
    remote_max_bytes: int = Field(
        300_000_000, ge=1000, description="Largest video that is taken from it."
    )
    remote_allow_addresses: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="`host:port` pairs, comma-separated, where it keeps its videos although they "
        "are not public, e.g. `minio.internal:9000`; its own address is always allowed.",
    )
    remote_idempotent: bool = Field(
        False,
        description="It honours `Idempotency-Key`: an order whose answer was lost is sent again. "
        "Else such a job fails, because it could be paid twice.",
    )
    remote_price: float = Field(0.0, ge=0, description="US$ that it charges for a video.")
    remote_price_per_second: float = Field(
        0.0, ge=0, description="US$ that it charges for a second of video, on top."
    )

    @field_validator("remote_url")
    @classmethod
    def _base(cls, value: str) -> str:
        parts = urlsplit(value)
        if not value:
            return value
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is not an http or https address")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "has more than an address in it; put the key into STILLREEL_REMOTE_KEY"
            )
        return value.rstrip("/")

    @field_validator("remote_parameters", mode="before")
    @classmethod
    def _object(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = json.loads(value)
        except ValueError as exc:
            raise ValueError('is no JSON; write e.g. {"num_frames": "{frames}"}') from exc
        if not isinstance(found, dict):
            raise ValueError('is no JSON object; write e.g. {"num_frames": "{frames}"}')
        return cast(dict[str, Any], found)

    @field_validator("remote_parameters")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        named = re.findall(r'"\{(\w+)\}"', json.dumps(value))
        if unknown := sorted(set(named) - set(REMOTE_VALUES)):
            raise ValueError(
                f"names {', '.join(unknown)}, which no order has; there are: "
                f"{', '.join(REMOTE_VALUES)}"
            )
        return value

    @field_validator("remote_allow_addresses", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _comma_separated(value)

    @field_validator("remote_allow_addresses")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_host_and_port(text) for text in value)


class InferenceSettings(RemoteSettings):
    """The resident inference server."""

    model_path: str = Field(
        "",
        validation_alias=_names("MODEL_PATH", "MODEL_PATH"),
        description="Directory of model weights: one pipeline folder, or several that are called "
        "like their repositories; empty uses the hub's cache.",
    )
    preview_seconds_per_step: float = Field(
        0.0, ge=0, le=60, description="Waiting time of a `preview` step, for load tests."
    )
    inference_socket: Path | None = Field(
        None, description="Socket of the inference server to use; empty: those of this host."
    )
    claim_seconds: float = Field(
        120.0, gt=0, description="An inference that nobody asks for is cancelled after this time."
    )
    server_wait_seconds: float = Field(
        600.0, ge=0, description="How long a job waits for its host's inference server to return."
    )
    stall_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds without a step after which an inference counts as stuck, for hosts "
        "that are slower than the model's own limit expects; 0: that limit.",
    )


class WebhookSettings(_Concern):
    """How the end of a job is told."""

    webhook_url: str = Field(
        "", description="Receiver of jobs that name none; registered by you, so trusted."
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("WEBHOOK_SECRET", "WEBHOOK_SECRET"),
        description="Signs notifications (Standard Webhooks); `whsec_` + base64, or any text.",
    )
    webhook_secret_previous: SecretStr = Field(
        SecretStr(""), description="The secret before a rotation; both sign until you remove it."
    )
    webhook_plain_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Receivers of yours that also get the secret itself as `X-Webhook-Secret`, "
        "comma-separated; never a URL that a caller chose.",
    )
    webhook_seconds: float = Field(10.0, gt=0, le=60, description="Time for one delivery, in all.")

    @field_validator("webhook_plain_urls", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _comma_separated(value)


class ApiSettings(_Concern):
    """The HTTP API: where it listens, where others find it, its first key, its limits."""

    api_host: str = Field(
        "127.0.0.1",
        description="Address that the HTTP API listens on; `0.0.0.0` is every one of the machine.",
    )
    api_port: int = Field(
        8000,
        ge=1,
        le=65535,
        validation_alias=_names("API_PORT", "PORT"),
        description="Port of the HTTP API.",
    )
    api_url: str = Field(
        "",
        validation_alias=_names("API_URL", "API_URL"),
        description="Public address of the HTTP API; in links, and where clients find it. Empty: "
        "the address that a caller used.",
    )
    api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("API_KEY", "API_KEY", "API_SECRET_KEY"),
        description="Key of the first owner; what clients on this machine send.",
    )
    api_owner: str = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$",
        description="Name of the first owner, to whom STILLREEL_API_KEY belongs.",
    )
    api_webhook_url: str = Field(
        "",
        validation_alias=_names("API_WEBHOOK_URL", "API_WEBHOOK_URL"),
        description="Where a host tells the API that a run ended; empty: `/webhook/complete` at "
        "STILLREEL_API_URL.",
    )
    server_secret: SecretStr = Field(
        SecretStr(""),
        description="What job ids, links and tokens are derived from; the same for all API "
        "processes. Empty: made once and kept under STILLREEL_HOME.",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Models that the API offers, comma-separated, the default first; empty: all "
        "that are deployed and whose code and weights are on this machine.",
    )
    body_max_bytes: int = Field(
        25_000_000, ge=1000, description="Largest request body; larger images are uploaded."
    )
    body_seconds: float = Field(30.0, gt=0, description="Time for a request body, in all.")
    batch_max: int = Field(100, ge=1, le=100, description="Most videos in one batch.")
    streams_max: int = Field(
        20, ge=1, description="Event streams that one key may have open at once."
    )
    requests_per_minute: int = Field(
        6000, ge=1, description="Requests that one key may make in a minute."
    )
    jobs_waiting_max: int = Field(
        10_000, ge=1, description="Jobs of one owner that may wait, where its own quota says none."
    )
    jobs_per_day_max: int = Field(
        0, ge=0, description="Jobs of one owner in a day, likewise; 0: no limit."
    )
    prefect_seconds: float = Field(
        3.5, gt=0, le=60, description="How long the API waits for Prefect before it answers 503."
    )
    safety_url: str = Field(
        "",
        description="Your own endpoint that is asked before inference and after encoding whether "
        "to go on; empty: nobody is.",
    )
    safety_callable: str = Field(
        "", description="The same as a Python function on the host, as `module:function`."
    )
    safety_seconds: float = Field(30.0, gt=0, le=600, description="Time for one safety check.")

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _comma_separated(value)

    @field_validator("api_url", "api_webhook_url", "safety_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("is not an http or https address")
        return value.rstrip("/")

    @property
    def local_url(self) -> str:
        """Where the API is found: the configured address, else this machine's own."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.api_host, self.api_host)  # noqa: S104
        return self.api_url or f"http://{host}:{self.api_port}"


class FleetSettings(_Concern):
    """Hosts that are rented while there is work: when, where, and for how much at most."""

    installation: str = Field(
        "main",
        pattern=r"^[a-z0-9]{1,16}$",
        description="Name of this installation in the labels of its rented hosts; no other on the "
        "same account may have it.",
    )
    fleet_provider: Literal["", "vast", "ec2"] = Field(
        "",
        description="Who rents hosts to us, of several accounts: `vast` or `ec2`; empty: by the "
        "model.",
    )
    ec2: bool = Field(
        False,
        description="There is an AWS account to rent from; its credentials are found as AWS's own "
        "tools find them.",
    )
    allow_untrusted_hosts: bool = Field(
        False,
        description="Rent from a provider whose machine owners can read what lies there (Vast.ai), "
        "although such a host gets the Prefect server's password.",
    )
    usd_per_hour_max: float = Field(
        1.2, gt=0, le=100, description="Most that a rented host may cost, in US$ per hour."
    )
    month_budget_usd: float = Field(
        50.0, ge=0, description="Most that rented hosts may cost in a month (UTC), in US$."
    )
    drain_threshold: int = Field(10, ge=1, description="A drain rents when so many jobs wait.")
    drain_oldest_hours: float = Field(
        168.0, gt=0, description="A drain rents when a job has waited so long."
    )
    drain_deadline_hours: float = Field(
        24.0, gt=0, description="A drain rents when the deadline of a waiting job is so near."
    )
    drain_auto: bool = Field(
        False,
        description="The schedules of drains ask the rule every five minutes rather than weekly.",
    )
    hosts_per_pool: int = Field(
        1, ge=1, le=50, description="Most hosts that one pool may have rented at once."
    )
    work_hours_per_host: float = Field(
        2.0,
        gt=0,
        description="A drain rents another host when those that it has need longer than so many "
        "hours for what is open, as far as one pool may have more.",
    )
    rent_interruptible: bool = Field(
        False,
        description="Rent interruptible (spot) hosts, and on-demand ones where there are none.",
    )
    boot_minutes: float = Field(
        20.0, gt=0, le=120, description="A rented host that is not at work by then is destroyed."
    )
    host_hours: float = Field(
        4.0, gt=0, le=48, description="Longest life of a rented host; then it is destroyed."
    )
    idle_minutes: float = Field(
        5.0, gt=0, le=120, description="A rented host without work ends itself after this time."
    )
    contact_minutes: float = Field(
        15.0,
        gt=0,
        le=120,
        description="A rented host that cannot reach the Prefect server for so long ends itself.",
    )
    progress_minutes: float = Field(
        45.0,
        gt=0,
        description="A rented host under which no job ends for so long is destroyed; longer than "
        "the longest job.",
    )
    rented_api_url: str = Field(
        "",
        description="Address of the Prefect API as rented hosts reach it; empty: PREFECT_API_URL.",
    )
    rented_env: Annotated[tuple[str, ...], NoDecode] = Field(
        ("S3_BUCKET", "S3_REGION", "S3_ENDPOINT"),
        description="Variables of the control side that rented hosts get too, comma-separated. "
        "Name no secret here that a stranger's machine may not have.",
    )
    vast_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("VAST_API_KEY", "VAST_API_KEY"),
        description="Key of your Vast.ai account; stays on the control side.",
    )
    vast_url: str = Field("https://console.vast.ai", description="Address of Vast.ai's API.")
    worker_image: str = Field(
        "",
        description="Container image of rented hosts, best by digest; its entrypoint is "
        "`infra/vast/start_worker.sh`.",
    )
    ec2_region: str = Field(
        "us-east-1",
        validation_alias=_names("EC2_REGION"),
        description="Region of rented EC2 hosts; look first whether it has the instance type.",
    )
    ec2_endpoint: str = Field("", description="Address of an EC2-compatible server; empty for AWS.")
    ec2_ami: str = Field(
        "/aws/service/deeplearning/ami/x86_64/"
        "base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
        description="Machine image: an id (`ami-...`), or the SSM parameter that holds it.",
    )
    ec2_instance_type: str = Field("", description="Empty: by the model (`g5.xlarge`).")
    ec2_usd_per_hour: float = Field(
        1.01, gt=0, description="Price of that type; EC2's API does not tell it for on-demand."
    )
    ec2_profile: str = Field("", description="Instance profile: the role of rented EC2 hosts.")
    ec2_subnet: str = Field("", description="Subnet of rented EC2 hosts; empty: the default one.")
    ec2_security_group: str = Field(
        "", description="Security group of rented EC2 hosts; one that lets nothing in."
    )
    ec2_kept_instance: str = Field(
        "", description="Instance that `stillreel fleet start` and `stop` start and stop."
    )

    rented_until: float = Field(
        0.0,
        ge=0,
        description="When this host has to be gone, in seconds since 1970; set by us on rented "
        "hosts. 0: this host is not rented.",
    )

    @property
    def accounts(self) -> tuple[Literal["vast", "ec2"], ...]:
        """The providers that we have an account at; nowhere else are hosts rented or reaped."""
        vast: tuple[Literal["vast"], ...] = ("vast",) * bool(self.vast_api_key.get_secret_value())
        return (*vast, "ec2") if self.ec2 else vast

    @field_validator("rented_env", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _comma_separated(value)

    @field_validator("rented_api_url", "vast_url", "ec2_endpoint")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("is not an http or https address")
        return value.rstrip("/")


class ServerSettings(_Concern):
    """Where the processes of this installation listen."""

    prefect_host: str = Field(
        "127.0.0.1",
        description="Address of the Prefect server of `up`; `0.0.0.0` or `::` is every address of "
        "the machine, without any password.",
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("DATABASE_URL", "DATABASE_URL"),
        description="Postgres of the Prefect server of `up` and `server`, as `postgresql://...`; "
        "empty uses SQLite.",
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("REDIS_URL", "REDIS_URL"),
        description="Redis for the messages between the parts of `stillreel server`; a server that "
        "is one process needs none.",
    )
    prefect_port: int = Field(4200, ge=1, le=65535, description="Port of that Prefect server.")
    prefect_ui_url: str = Field(
        "",
        description="Where browsers find the Prefect UI, e.g. `https://prefect.example.com`: the "
        "studio page links a job to its run for keys with the scope admin. Empty: no link; `up` "
        "takes its own server's.",
    )
    keeper_seconds: float = Field(
        5.0, gt=0, le=300, description="How often the keeper looks after the jobs."
    )
    keeper_leads: bool = Field(
        True,
        description="Whether this process's keeper may be the one that looks after all jobs. "
        "Of several one does; with false it only does what its own requests call for.",
    )

    @field_validator("prefect_ui_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("is not an http or https address")
        return value.rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        return SecretStr(asyncpg_url(text)) if text else value


class Settings(BaseModel):
    """Everything that is configured."""

    model_config = ConfigDict(frozen=True)

    host: HostSettings
    storage: StorageSettings
    fetch: FetchSettings
    inference: InferenceSettings
    webhook: WebhookSettings
    api: ApiSettings
    fleet: FleetSettings
    server: ServerSettings


CONCERNS: dict[str, type[_Concern]] = {
    "host": HostSettings,
    "storage": StorageSettings,
    "fetch": FetchSettings,
    "inference": InferenceSettings,
    "webhook": WebhookSettings,
    "api": ApiSettings,
    "fleet": FleetSettings,
    "server": ServerSettings,
}


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once.

    Raises SettingsInvalid with every mistake at once, each with its variable's name.
    """
    built: dict[str, _Concern] = {}
    mistakes: list[str] = []
    for name, concern in CONCERNS.items():
        try:
            built[name] = concern()
        except ValidationError as exc:
            mistakes += [_mistake(error["loc"], error["msg"]) for error in exc.errors()]
    mistakes += [
        *_half_s3(built.get("storage")),
        *_webhook_mistakes(built.get("webhook")),
        *_remote_mistakes(built.get("inference")),
    ]
    if mistakes:
        lines = "\n".join(f"  - {line}" for line in mistakes)
        raise SettingsInvalid(f"{len(mistakes)} setting(s) cannot be used:\n{lines}")
    return Settings.model_validate(built)


def make_home(settings: Settings) -> Path:
    """Make the directory of everything this machine keeps, for this user only, and try it.

    Raises SettingsInvalid when nothing can be written there.
    """
    home = settings.host.home
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
    except OSError as exc:
        raise SettingsInvalid(
            f"STILLREEL_HOME: {home} cannot be used ({exc.strerror}); set it to a directory that "
            "you may write"
        ) from exc
    return home


def _half_s3(storage: _Concern | None) -> Iterator[str]:
    """S3 settings by our own names, without the bucket; AWS's names are there for other reasons."""
    if not isinstance(storage, StorageSettings) or storage.s3_bucket:
        return
    given = [
        name
        for name in ("S3_ENDPOINT", "S3_REGION", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY")
        if os.environ.get(name) or os.environ.get(PREFIX + name)
    ]
    if given:
        yield f"S3 is configured in part ({', '.join(given)}); set S3_BUCKET too"


def _webhook_mistakes(webhook: _Concern | None) -> Iterator[str]:
    if not isinstance(webhook, WebhookSettings):
        return
    for name in ("webhook_secret", "webhook_secret_previous"):
        secret: SecretStr = getattr(webhook, name)
        try:
            if text := secret.get_secret_value():
                standard_secret(text)
        except SettingsInvalid as exc:
            yield exc.message.replace(f"{PREFIX}WEBHOOK_SECRET", PREFIX + name.upper())
    for name in ("webhook_url", "webhook_plain_urls"):
        if getattr(webhook, name) and not webhook.webhook_secret.get_secret_value():
            yield (
                f"{PREFIX}{name.upper()}: needs STILLREEL_WEBHOOK_SECRET, because notifications "
                "are never sent unsigned; set it to whsec_ + base64 of 24 to 64 random bytes"
            )


def _remote_mistakes(inference: _Concern | None) -> Iterator[str]:
    if not isinstance(inference, InferenceSettings):
        return
    given = inference.model_fields_set & set(RemoteSettings.model_fields)
    if given and not inference.remote_url:
        names = ", ".join(sorted(PREFIX + name.upper() for name in given))
        yield f"the model `remote` is configured in part ({names}); set STILLREEL_REMOTE_URL too"
    if (
        inference.remote_url
        and inference.remote_shape == "replicate"
        and not inference.remote_model
    ):
        yield "STILLREEL_REMOTE_MODEL: Replicate has no default model; set it to e.g. owner/name"


def _mistake(loc: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not loc:
        return message
    name = str(loc[0])
    return f"{name if name.isupper() else PREFIX + name.upper()}: {message}"


def _absolute_path(value: Path) -> Path:
    try:
        return value.expanduser().absolute()
    except RuntimeError as exc:
        raise ValueError("begins with a ~ that names no user here; give an absolute path") from exc


def _host_and_port(text: str) -> str:
    """The pair as the guard compares it: lower case, an address in its one canonical form."""
    found = _PAIR.fullmatch(text)
    try:
        if not found or not 0 < int(found["port"]) < 65536:
            raise ValueError("is no pair")
        if found["v6"]:
            return f"[{IPv6Address(found['v6'])}]:{int(found['port'])}"
        host = found["name"].lower()
        if _NUMERIC.fullmatch(host.rpartition(".")[2]):  # then a resolver reads it as an address
            host = str(IPv4Address(host))
        return f"{host}:{int(found['port'])}"
    except ValueError as exc:
        raise ValueError(
            f"{text[:80]!r} is not one host and its port; write e.g. 127.0.0.1:9000, [::1]:9000 "
            "or minio.internal:9000"
        ) from exc


_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PAIR = re.compile(
    rf"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>{_LABEL}(?:\.{_LABEL})*)):(?P<port>[0-9]{{1,5}})"
)
_ORIGIN = re.compile(rf"https?://(?:\[[0-9A-Fa-f:.]+\]|{_LABEL}(?:\.{_LABEL})*)(?::[0-9]{{1,5}})?")
_R2_ADDRESS = re.compile(
    r"(?P<account>https://[0-9A-Za-z]+)\.(?:(?P<place>eu|fedramp)\.)?"
    r"(?P<rest>r2\.cloudflarestorage\.com)/?"
)
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _comma_separated(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value
