"""The user data of a rented EC2 host, from `infra/ec2/cloud-init.yaml`."""

from __future__ import annotations

import re
from base64 import b64encode
from datetime import UTC, datetime

from stillreel.errors import SettingsInvalid
from stillreel.fleet.provider import Boot
from stillreel.project import project_dir

TEMPLATE = "infra/ec2/cloud-init.yaml"
LIMIT_BYTES = 16_384
"""EC2's, before it encodes them."""
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")


def user_data(boot: Boot, *, image: str, now: datetime | None = None) -> str:
    """What the machine does at its first boot; the timer that ends it comes first.

    Raises SettingsInvalid for words that would be more than words there.
    """
    for name, word in (
        ("STILLREEL_WORKER_IMAGE", image),
        ("pool", boot.pool),
        ("model", boot.model),
    ):
        if not _WORD.fullmatch(word):
            raise SettingsInvalid(f"{name}: {word[:80]!r} cannot be used on a rented host")
    seconds = max(60, round((boot.deadline - (now or datetime.now(UTC))).total_seconds()))
    values = {
        "seconds": str(seconds),
        "env": b64encode(env_file(boot).encode()).decode(),
        "image": image,
        "pool": boot.pool,
        "model": boot.model,
    }
    text = (project_dir() / TEMPLATE).read_text()
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    if len(text.encode()) > LIMIT_BYTES:
        raise SettingsInvalid("STILLREEL_RENTED_ENV: too much for EC2's 16 kB of user data")
    return text


def env_file(boot: Boot) -> str:
    """The environment of the host, a line each, as Docker reads it: nothing is quoted."""
    for name, value in boot.env.items():
        if "\n" in value or "\r" in value:
            raise SettingsInvalid(f"{name} has more than one line; a rented host cannot have it")
    return "".join(f"{name}={value}\n" for name, value in sorted(boot.env.items()))
