"""Settings of a video server elsewhere."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from stillreel.settings.concern import Concern
from stillreel.settings.texts import comma_separated, host_and_port

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


class RemoteSettings(Concern):
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
        return comma_separated(value)

    @field_validator("remote_allow_addresses")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(host_and_port(text) for text in value)
