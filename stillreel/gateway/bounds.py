"""How large what a host says may be: texts, numbers and times that reach Prefect.

What only tells something is cut; what something else goes by is refused.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

from stillreel.errors import NotLeased

NAME = 200
MESSAGE = 2_000
LOG_LINE = 10_000
ARTIFACT = 20_000
RESULT_PAGE = 100_000
"""The page of a finished job carries its small poster itself."""
NUMBER = 2**31 - 1
"""Larger ones do not fit into Prefect's columns."""

_ENTRIES = 50
_ADDRESS = re.compile(r"(?:\w+:)?//\S+|\bwww\.\S+", re.IGNORECASE)
_YEARS = (2000, 2100)


def text(value: Any, what: str, *, most: int = NAME) -> str:
    """This text. Raises NotLeased for another thing, an empty or a long one."""
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise NotLeased(f"A lease may send {what} of 1 to {most} characters only.")
    return value


def text_or_none(value: Any, what: str, *, most: int = NAME) -> str | None:
    """The same, where there may be none, or an empty one."""
    return None if value is None or value == "" else text(value, what, most=most)


def cut(value: Any, most: int = MESSAGE) -> str | None:
    """The beginning of a text; None for anything else."""
    return value[:most] if isinstance(value, str) else None


def plain(value: Any, most: int = MESSAGE) -> str | None:
    """The beginning of a text that people read, without addresses that they might follow."""
    found = cut(value, most)
    return found and _ADDRESS.sub("(an address)", found)


def number(value: Any, what: str, *, least: float = 0, most: float = NUMBER) -> int | float:
    """This number. Raises NotLeased for another thing, and outside of the bounds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        raise NotLeased(f"A lease may send {what} from {least:g} to {most:g} only.")
    return value


def scalars(value: Any, what: str, *, most: int = MESSAGE) -> dict[str, str | int | float | bool]:
    """These texts and numbers by name. Raises NotLeased, for nulls and lists within too.

    A label that is neither makes every read of its run fail (Prefect 3.8.8).
    """
    if not isinstance(value, dict) or len(value) > _ENTRIES:
        raise NotLeased(f"A lease may send {what} with {_ENTRIES} entries at most.")
    for name, entry in value.items():
        text(name, f"names in {what}")
        if isinstance(entry, str):
            text_or_none(entry, what, most=most)
        elif not isinstance(entry, bool):
            number(entry, what, least=-NUMBER)
    return value


def instant(value: Any, what: str = "times") -> datetime:
    """This time, in UTC where it says no other. Raises NotLeased for what is none of this age."""
    try:
        at = datetime.fromisoformat(text(value, what, most=40))
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        in_utc = at.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise NotLeased(f"A lease may send {what} in ISO form only.") from exc
    if not _YEARS[0] <= in_utc.year < _YEARS[1]:
        raise NotLeased(f"A lease may send {what} of this century only.")
    return in_utc
