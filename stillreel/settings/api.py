"""Settings of the HTTP API."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from stillreel.settings.concern import Concern, names
from stillreel.settings.texts import comma_separated


class ApiSettings(Concern):
    """The HTTP API: where it listens, where others find it, its first key, its limits."""

    api_host: str = Field(
        "127.0.0.1",
        description="Address that the HTTP API listens on; `0.0.0.0` is every one of the machine.",
    )
    api_port: int = Field(
        8000,
        ge=1,
        le=65535,
        validation_alias=names("API_PORT", "PORT"),
        description="Port of the HTTP API.",
    )
    api_url: str = Field(
        "",
        validation_alias=names("API_URL", "API_URL"),
        description="Public address of the HTTP API; in links, and where clients find it. Empty: "
        "the address that a caller used.",
    )
    api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=names("API_KEY", "API_KEY", "API_SECRET_KEY"),
        description="Key of the first owner; what clients on this machine send.",
    )
    api_owner: str = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$",
        description="Name of the first owner, to whom STILLREEL_API_KEY belongs.",
    )
    api_webhook_url: str = Field(
        "",
        validation_alias=names("API_WEBHOOK_URL", "API_WEBHOOK_URL"),
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
        return comma_separated(value)

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
