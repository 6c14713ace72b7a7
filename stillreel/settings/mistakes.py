"""Mistakes that only several settings together can make, and how each is told."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from pydantic import SecretStr

from stillreel.errors import SettingsInvalid
from stillreel.settings.concern import PREFIX, Concern
from stillreel.settings.fleet import FleetSettings
from stillreel.settings.host import HostSettings
from stillreel.settings.inference import InferenceSettings
from stillreel.settings.remote import RemoteSettings
from stillreel.settings.storage import StorageSettings
from stillreel.settings.webhook import WebhookSettings
from stillreel.signing import standard_secret

SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "AUTH")
SECRET_STARTS = ("AWS_", "PREFECT_API_", "PREFECT_SERVER_")
"""Of names that other programs read as well."""


def half_s3(storage: Concern | None) -> Iterator[str]:
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


def webhook_mistakes(webhook: Concern | None) -> Iterator[str]:
    """Secrets that cannot sign, and receivers without a secret."""
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


def remote_mistakes(inference: Concern | None) -> Iterator[str]:
    """A video server elsewhere that is described in part."""
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


def rented_env_mistakes(fleet: Concern | None, secret: Collection[str]) -> Iterator[str]:
    """Secrets that would be passed on to machines of strangers; `secret` are names of such."""
    if not isinstance(fleet, FleetSettings) or fleet.rented_via == "direct":
        return
    for name in fleet.rented_env:
        if name == "HF_TOKEN":
            if not fleet.rented_hf_token:
                yield (
                    "STILLREEL_RENTED_ENV: HF_TOKEN would reach machines of strangers; leave it "
                    "out, or say with STILLREEL_RENTED_HF_TOKEN=1 that it is a Read token and may"
                )
        elif (
            name in secret
            or name.upper().startswith(SECRET_STARTS)
            or any(word in name.upper() for word in SECRET_WORDS)
        ):
            yield (
                f"STILLREEL_RENTED_ENV: {name} would reach machines of strangers; leave it out: "
                "their lease gives them Prefect and storage for their own jobs (only with "
                "STILLREEL_RENTED_VIA=direct a host needs such things)"
            )


def credential_mistakes(host: Concern | None, storage: Concern | None) -> Iterator[str]:
    """Content Credentials that are configured in part, or on the machine of a stranger."""
    if not isinstance(host, HostSettings):
        return
    if not (host.c2pa_cert or host.c2pa_key or host.c2pa_timestamp_url):
        return
    if not (host.c2pa_cert and host.c2pa_key):
        yield (
            "STILLREEL_C2PA_CERT and STILLREEL_C2PA_KEY: one without the other signs nothing, nor "
            "does STILLREEL_C2PA_TIMESTAMP_URL alone; set both or none"
        )
    if isinstance(storage, StorageSettings) and storage.kind == "lease":
        yield (
            "STILLREEL_C2PA_KEY: a rented host may hold no key of yours, and the control side "
            "refuses what it would sign; leave it out there"
        )


def mistake(loc: tuple[int | str, ...], message: str) -> str:
    """A mistake that pydantic found, with the name of its variable."""
    message = message.removeprefix("Value error, ")
    if not loc:
        return message
    name = str(loc[0])
    return f"{name if name.isupper() else PREFIX + name.upper()}: {message}"
