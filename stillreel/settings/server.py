"""Settings of the processes that serve."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator

from stillreel.database import asyncpg_url
from stillreel.settings.concern import Concern, names


class ServerSettings(Concern):
    """Where the processes of this installation listen."""

    prefect_host: str = Field(
        "127.0.0.1",
        description="Address of the Prefect server of `up`; `0.0.0.0` or `::` is every address of "
        "the machine, without any password.",
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        validation_alias=names("DATABASE_URL", "DATABASE_URL"),
        description="Postgres of the Prefect server of `up` and `server`, as `postgresql://...`; "
        "empty uses SQLite.",
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        validation_alias=names("REDIS_URL", "REDIS_URL"),
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
