"""The name of a rented machine, by which we find it again and touch nobody else's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

_LABEL = re.compile(r"stillreel-([a-z0-9]{1,16})-([0-9a-f]{32})-([1-9][0-9]{0,2})")
MOST = 999
"""Machines that one drain may ask for; a label has at most 64 characters, as EC2 wants it."""


@dataclass(frozen=True, order=True)
class Label:
    """`stillreel-<installation>-<drain run>-<n>`: the n-th machine that a drain asked for."""

    installation: str
    run_id: str
    """Of the drain's flow run, as Prefect writes it."""
    number: int

    def __str__(self) -> str:
        return f"{run_prefix(self.installation, self.run_id)}{self.number}"


def installation_prefix(installation: str) -> str:
    """What the labels of all machines of an installation begin with."""
    return f"stillreel-{installation}-"


def run_prefix(installation: str, run_id: str) -> str:
    """What the labels of all machines of one drain begin with."""
    return f"{installation_prefix(installation)}{UUID(run_id).hex}-"


def parse_label(text: str) -> Label | None:
    """The label that this text is; None for anything else, as somebody else's machine has."""
    found = _LABEL.fullmatch(text or "")
    return Label(found[1], str(UUID(found[2])), int(found[3])) if found else None
