"""Settings of notifications."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from stillreel.settings.concern import Concern, names
from stillreel.settings.texts import comma_separated


class WebhookSettings(Concern):
    """How the end of a job is told."""

    webhook_url: str = Field(
        "", description="Receiver of jobs that name none; registered by you, so trusted."
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        validation_alias=names("WEBHOOK_SECRET", "WEBHOOK_SECRET"),
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
        return comma_separated(value)
