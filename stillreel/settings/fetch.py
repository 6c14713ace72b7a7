"""Settings of what comes from outside."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from stillreel.settings.concern import Concern
from stillreel.settings.texts import comma_separated, host_and_port


class FetchSettings(Concern):
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
        return comma_separated(value)

    @field_validator("allow_addresses")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(host_and_port(text) for text in value)
