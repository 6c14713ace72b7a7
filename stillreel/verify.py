"""Looks whether a video is the one of a signed receipt, and whether the installation signed it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stillreel.client.calls import NO_PROXY, Server, check
from stillreel.credentials import Credentials, is_installed, read_credentials
from stillreel.errors import NotVerified, RequestRejected, VideoChanged
from stillreel.signed_receipt import PublicKey, open_envelope, read_public_key

SECONDS = 60.0
"""For one answer of the API, which may have to read the video first."""
JSON_LIMIT = 1_000_000


@dataclass(frozen=True)
class Verified:
    """What was found to be so."""

    key: PublicKey
    key_from: str
    """Where the public key came from; trust in all else is trust in that."""
    receipt: dict[str, Any]
    signed_at: str
    video_sha256: str
    """That of the file; empty where only a receipt was looked at."""
    has_looked: bool = False
    """Whether the file was asked for Content Credentials: the extra `c2pa` is there."""
    credentials: Credentials | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "verified": {"signature": True, "video": bool(self.video_sha256)},
            "key_id": self.key.id,
            "key_from": self.key_from,
            "signed_at": self.signed_at,
            "receipt": self.receipt,
            "credentials": self.credentials.to_json() if self.credentials else None,
            "credentials_looked_at": self.has_looked,
        }


def verify(
    path: Path, *, job_id: str = "", receipt: Path | None = None, key: Path | None = None
) -> Verified:
    """What of this video, or of this signed receipt, could be verified.

    Receipt and public key come from these files, else from the API. Raises NotVerified,
    RequestRejected for files that cannot be read, SettingsInvalid where no API is known, and
    httpx.HTTPError.
    """
    is_video = not _is_json(path)
    with httpx.Client(timeout=SECONDS, mounts=dict(NO_PROXY)) as http:
        public, key_from = _key(http, key)
        envelope = _envelope(http, path, is_video=is_video, job_id=job_id, receipt=receipt)
    said = open_envelope(envelope, public)
    digest = _sha256(path) if is_video else ""
    if is_video and digest != said["receipt"]["video"]["sha256"]:
        raise NotVerified(
            f"{path.name} is not the video of this receipt: its SHA-256 is {digest}, and the "
            f"receipt of {said['receipt']['job_id']} says {said['receipt']['video']['sha256']}"
        )
    looks = is_video and is_installed()
    found = read_credentials(path) if looks else None
    return Verified(public, key_from, said["receipt"], said["signed_at"], digest, looks, found)


def job_of(path: Path) -> str:
    """The job's id that the file says it is of. Raises RequestRejected."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            comment = container.metadata.get("comment", "")
    except (FFmpegError, OSError) as exc:
        raise RequestRejected(f"{path.name} is neither a video nor a signed receipt") from exc
    if not (found := re.findall(r"^stillreel (job_\w+) ", comment, re.MULTILINE)):
        raise RequestRejected(
            f"{path.name} does not say which job it is of; name it with --job, or give --receipt"
        )
    return found[-1]  # a prompt comes before, and may say anything


def _key(http: httpx.Client, path: Path | None) -> tuple[PublicKey, str]:
    if path:
        return read_public_key(_text(path)), str(path)
    server = Server.find()
    return read_public_key(_ask(http, server, "/api/v1/receipt-key")), server.url


def _envelope(
    http: httpx.Client, path: Path, *, is_video: bool, job_id: str, receipt: Path | None
) -> Any:
    source = receipt or (None if is_video else path)
    if source:
        text = _text(source)
    else:
        job_id = job_id or job_of(path)
        text = _ask(http, Server.find(), f"/api/v1/jobs/{job_id}/receipt")
    try:
        return json.loads(text)
    except ValueError as exc:
        raise RequestRejected(f"{(source or path).name} is no signed receipt") from exc


def _ask(http: httpx.Client, server: Server, path: str) -> str:
    with server.telling():
        try:
            return check(http.get(server.url + path, headers=server.headers())).text
        except VideoChanged as exc:
            raise NotVerified(exc.message) from exc


def _is_json(path: Path) -> bool:
    with _reading(path), path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")


def _text(path: Path) -> str:
    with _reading(path):
        if path.stat().st_size > JSON_LIMIT:
            raise RequestRejected(f"{path.name} is too large for a receipt or a key")
        return path.read_text(encoding="utf-8")


def _sha256(path: Path) -> str:
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is no text"
        raise RequestRejected(f"{path} cannot be read: {reason}") from exc
