"""A receipt that the control side has signed: a DSSE envelope with an ed25519 signature.

The envelope is that of github.com/secure-systems-lab/dsse: what is signed are the very bytes of
`payload`, so that nobody has to write JSON in the same way twice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from stillreel.errors import NotVerified, RequestRejected
from stillreel.server_secret import sign

PAYLOAD_TYPE = "application/vnd.stillreel.receipt+json"
MEDIA_TYPE = "application/vnd.dsse.envelope.v1+json"


@dataclass(frozen=True)
class PublicKey:
    """With what a signature is looked at."""

    raw: bytes
    """32 bytes, as RFC 8032 has them."""

    @property
    def id(self) -> str:
        """A short name for it: the beginning of its hash."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def to_json(self) -> dict[str, str]:
        """What the API tells of it."""
        text = base64.b64encode(self.raw).decode()
        return {"key_id": self.id, "algorithm": "ed25519", "public_key": text}


class SigningKey:
    """The key of an installation; all its API processes derive the same from their secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(sign(secret, "receipt-key"))
        self.public = PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, receipt: Mapping[str, Any], *, at: datetime) -> dict[str, Any]:
        """The envelope of a receipt whose video was looked at now."""
        said = {"receipt": receipt, "signed_at": at.isoformat(timespec="seconds")}
        payload = json.dumps(said, ensure_ascii=False).encode()
        signature = self._key.sign(_encoded(payload))
        return {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": self.public.id, "sig": base64.b64encode(signature).decode()}],
        }


def read_public_key(text: str) -> PublicKey:
    """The key in what the API tells, or in the base64 of its 32 bytes alone.

    Raises RequestRejected.
    """
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else {"public_key": text.strip()}
        raw = base64.b64decode(found["public_key"], validate=True)
        Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, KeyError, TypeError, binascii.Error) as exc:
        raise RequestRejected(
            "this is no public key of receipts; take what GET /api/v1/receipt-key answers"
        ) from exc
    return PublicKey(raw)


def open_envelope(envelope: Any, key: PublicKey) -> dict[str, Any]:
    """What was signed: `receipt` and `signed_at`.

    Raises NotVerified where this key has not signed it, RequestRejected where it is no envelope.
    """
    try:
        is_ours = envelope["payloadType"] == PAYLOAD_TYPE
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(each["sig"]) for each in envelope["signatures"]]
        signers = [str(each.get("keyid", "")) for each in envelope["signatures"]]
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as exc:
        raise RequestRejected(
            "this is no signed receipt; take what GET /api/v1/jobs/{job_id}/receipt answers "
            "(the receipt.json in storage is not signed)"
        ) from exc
    if not is_ours or not any(_is_by(key, payload, signature) for signature in signatures):
        raise NotVerified(
            f"the receipt is not signed by the key {key.id}: it was changed, or another key "
            f"({', '.join(signers) or 'none'}) has signed it"
        )
    said: dict[str, Any] = json.loads(payload)
    return said


def _is_by(key: PublicKey, payload: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, _encoded(payload))
    except InvalidSignature:
        return False
    return True


def _encoded(payload: bytes) -> bytes:
    """The bytes that are signed: DSSE's PAE, which binds the type."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
