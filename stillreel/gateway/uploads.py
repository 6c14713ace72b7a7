"""Uploads of rented hosts: signed URLs for one temporary object, of one type and one length.

What arrives lies under `temp/` until it was looked at; no URL of a host ever writes to where others
read. So a URL that somebody keeps and uses again changes nothing.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hmac import compare_digest
from pathlib import Path
from secrets import token_hex

from stillreel.errors import NotLeased, ObjectMissing, ResultRefused
from stillreel.gateway.access import temp_prefix
from stillreel.server_secret import sign
from stillreel.storage import ObjectInfo, Storage

URL_SECONDS = 900
"""How long a URL may be used; an upload that has begun may take longer."""
SLOWEST = 500_000
"""Bytes per second of the slowest line that an upload in parts is for: it has so much longer."""
PART_BYTES = 8 * 1024**2
"""Larger objects come in parts of this size, where storage knows parts."""


@dataclass(frozen=True)
class Part:
    """One request that a host has to make: PUT these bytes with these headers."""

    url: str
    headers: dict[str, str]
    size: int


@dataclass(frozen=True)
class Ticket:
    """An upload that was allowed: by whom, of what, and where it lies meanwhile."""

    lease: str
    run_id: str
    key: str
    content_type: str
    size: int
    temp: str
    multipart: str = ""
    """The bucket's name of an upload in parts."""

    def sealed(self, secret: bytes) -> str:
        """The ticket as its host gets it, who can read it and not change it."""
        text = json.dumps(asdict(self), separators=(",", ":"))
        seal = sign(secret, "lease-upload", text).hex()
        return urlsafe_b64encode(f"{seal} {text}".encode()).decode()


def unseal(text: str, secret: bytes, *, lease: str, run_id: str) -> Ticket:
    """The ticket that was given to this lease for this run. Raises NotLeased."""
    try:
        seal, _, inner = urlsafe_b64decode(text.encode()).decode().partition(" ")
        right = sign(secret, "lease-upload", inner).hex()
        ticket = Ticket(**json.loads(inner)) if compare_digest(seal, right) else None
    except (ValueError, TypeError) as exc:
        raise NotLeased("This is no upload of this lease.") from exc
    if ticket is None or (ticket.lease, ticket.run_id) != (lease, run_id):
        raise NotLeased("This is no upload of this lease.")
    return ticket


def begin(
    storage: Storage,
    job_id: str,
    *,
    content_type: str,
    size: int,
    link: Callable[[str], str],
) -> tuple[str, str, list[Part]]:
    """A new temporary key, the bucket's name of the upload, and the requests that fill it.

    `link` makes the URL where storage is no bucket. Raises StorageRefused, StorageUnavailable.
    """
    from stillreel.storage_s3 import S3Storage

    temp = f"{temp_prefix(job_id)}{token_hex(16)}"
    if not isinstance(storage, S3Storage):
        return temp, "", [Part(link(temp), {"Content-Type": content_type}, size)]
    if size > PART_BYTES:
        upload, urls = storage.parts_urls(
            temp,
            content_type=content_type,
            sizes=_sizes(size),
            seconds=URL_SECONDS + size // SLOWEST,
        )
        return temp, upload, [Part(url, {}, n) for url, n in zip(urls, _sizes(size), strict=True)]
    url = storage.upload_url(
        temp, content_type=content_type, size=size, seconds=URL_SECONDS, once=True
    )
    return temp, "", [Part(url, {"Content-Type": content_type, "If-None-Match": "*"}, size)]


def bring(storage: Storage, ticket: Ticket, path: Path) -> ObjectInfo | None:
    """Bring what has arrived to `path`; where it was taken before, the object that it has become.

    That is so when an answer was lost, or when another process of the API was asked first. Raises
    ObjectMissing where the bytes are not there yet, ResultRefused for another length.
    """
    info = _arrived(storage, ticket)
    if info is None:
        return _become(storage, ticket)
    if info.size != ticket.size:
        raise ResultRefused(f"it has {info.size:,} bytes instead of {ticket.size:,}")
    try:
        storage.get_file(ticket.temp, path)
    except ObjectMissing:
        return _become(storage, ticket)
    return None


def _arrived(storage: Storage, ticket: Ticket) -> ObjectInfo | None:
    from stillreel.storage_s3 import S3Storage

    info = storage.head(ticket.temp)
    if info is None and ticket.multipart and isinstance(storage, S3Storage):
        storage.join_parts(ticket.temp, ticket.multipart)
        info = storage.head(ticket.temp)
    return info


def _become(storage: Storage, ticket: Ticket) -> ObjectInfo:
    info = storage.head(ticket.key)
    if info is None or info.size != ticket.size:
        raise ObjectMissing("Nothing has arrived for this upload yet; PUT the bytes first.")
    return info


def _sizes(size: int) -> Sequence[int]:
    whole, rest = divmod(size, PART_BYTES)
    return [PART_BYTES] * whole + ([rest] if rest else [])
