"""The control side's own secret, and what is derived from it: one key per purpose."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress

from stillreel.settings import Settings, make_home

FILE = "server.secret"


def server_secret(settings: Settings) -> bytes:
    """The secret of this installation: from the settings, else made once and kept in the home.

    API processes on several machines must be given the same one.
    """
    given = settings.api.server_secret.get_secret_value()
    if given:
        return hashlib.sha256(given.encode()).digest()
    path = make_home(settings) / FILE
    with suppress(FileExistsError):
        part = path.with_name(f".{FILE}-{os.getpid()}")
        part.write_text(secrets.token_hex(32))
        part.chmod(0o600)
        try:
            os.link(part, path)  # the first process wins, and nobody sees half a secret
        finally:
            part.unlink()
    return bytes.fromhex(path.read_text().strip())


def sign(secret: bytes, purpose: str, *parts: str) -> bytes:
    """32 bytes that only the holder of the secret can make for this purpose and these parts."""
    message = "\x00".join((purpose, *(f"{len(part)}:{part}" for part in parts)))
    return hmac.new(secret, message.encode(errors="surrogatepass"), hashlib.sha256).digest()
