"""Signatures of Standard Webhooks 1.0.0, and what is accepted as a secret."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook

from stillreel.errors import SettingsInvalid


def signature_headers(
    body: bytes,
    *,
    id: str,  # noqa: A002 - the word of the specification
    at: datetime,
    secrets: Sequence[str],
) -> dict[str, str]:
    """The headers of Standard Webhooks 1.0.0 for `body`: one signature per secret.

    A receiver accepts the message if it knows any of the secrets. Raises SettingsInvalid.
    """
    at = at.astimezone(UTC)
    text = body.decode()
    signatures = [Webhook(standard_secret(secret)).sign(id, at, text) for secret in secrets]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def standard_secret(text: str) -> str:
    """`text` as Standard Webhooks libraries take it: `whsec_` + base64 of the secret's bytes.

    A text that starts with `whsec_` stays as it is; of any other its UTF-8 bytes are the secret.
    Raises SettingsInvalid.
    """
    if not text or text != text.strip() or not text.isprintable():
        raise SettingsInvalid(
            "STILLREEL_WEBHOOK_SECRET: is empty, or has a line break, another control character "
            "or white space at an end; set it without"
        )
    prefix, base = "whsec_", text.removeprefix("whsec_")
    if base == text:
        return prefix + base64.b64encode(text.encode()).decode()
    try:
        usable = bool(base64.b64decode(base + "=" * (-len(base) % 4), validate=True))
    except (binascii.Error, ValueError):
        usable = False
    if not usable:
        raise SettingsInvalid(
            "STILLREEL_WEBHOOK_SECRET: starts with whsec_, but base64 does not follow; "
            "set whsec_ + base64 of 24 to 64 random bytes"
        )
    return text
