"""Ids of jobs: minted and signed, or derived from an Idempotency-Key; nothing is stored."""

from __future__ import annotations

import base64
import hmac
import os
import re
import struct
from datetime import UTC, datetime

from stillreel.server_secret import sign

_MINTED = re.compile(r"job_[a-z2-7]{40}")
_ANY = re.compile(r"job_[0-9a-z]{8,64}")
_RANDOM_BYTES, _MAC_BYTES = 9, 12


def mint(secret: bytes, owner: str, *, at: datetime) -> str:
    """A new id that says when it was made, and that only `owner` can use."""
    head = struct.pack(">I", int(at.timestamp())) + os.urandom(_RANDOM_BYTES)
    return _text(head + _mac(secret, owner, head))


def derive(secret: bytes, owner: str, idempotency_key: str) -> str:
    """The id that belongs to this key of this owner, the same each time."""
    return _text(sign(secret, "idempotency", owner, idempotency_key)[:25])


def minted_at(secret: bytes, owner: str, job_id: str) -> datetime | None:
    """When this id was minted for this owner; None for any other id."""
    if not _MINTED.fullmatch(job_id):
        return None
    data = base64.b32decode(job_id.removeprefix("job_").upper())
    head, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(secret, owner, head)):
        return None
    return datetime.fromtimestamp(struct.unpack(">I", head[:4])[0], UTC)


def is_job_id(text: str) -> bool:
    """Whether this has the form of a job's id."""
    return bool(_ANY.fullmatch(text))


def _mac(secret: bytes, owner: str, head: bytes) -> bytes:
    return sign(secret, "minted-id", owner, head.hex())[:_MAC_BYTES]


def _text(data: bytes) -> str:
    return "job_" + base64.b32encode(data).decode().lower()
