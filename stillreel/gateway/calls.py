"""The calls of Prefect's API that a rented host may make; there are no others."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stillreel.errors import NotLeased
from stillreel.gateway.desk import Desk
from stillreel.gateway.lease import Lease
from stillreel.prefect_api import Json

BODY_BYTES = 1_000_000
RUNS_MOST = 40
"""Most runs that one call may name: each is looked up, and a host works on no more."""

_PLACES = {
    "id": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "pool": r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}",
}


@dataclass(frozen=True)
class Asked:
    """What a host sent with a call."""

    names: Mapping[str, str]
    """What stands at the places of the path."""
    query: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Passed:
    """What Prefect is asked in the host's place: made anew from what was checked."""

    path: str
    body: Any = None
    show: Callable[[Any], Any] | None = None
    """What the host sees of an answer with 2xx; None: all of it."""
    done: Callable[[Any], None] | None = None
    """Called with an answer of 2xx."""


@dataclass(frozen=True)
class Answered:
    """An answer that Prefect is not asked for."""

    body: Any = None
    status: int = 200


Rule = Callable[[Desk, Lease, Asked], Awaitable[Passed | Answered]]
"""Checks a call of a lease; raises NotLeased."""


@dataclass(frozen=True)
class Call:
    """One call that a host may make."""

    method: str
    path: str
    rule: Rule
    only: str
    """What of it is allowed; for docs/security.md."""
    max_bytes: int = BODY_BYTES
    query: tuple[str, ...] = ()
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        parts = re.split(r"\{(\w+)\}", self.path)
        regex = "".join(
            f"(?P<{part}>{_PLACES[part]})" if n % 2 else re.escape(part)
            for n, part in enumerate(parts)
        )
        object.__setattr__(self, "pattern", re.compile(regex))


def find_call(calls: tuple[Call, ...], method: str, path: str) -> tuple[Call, Mapping[str, str]]:
    """The call that this is, and what stands at its places. Raises NotLeased for any other."""
    for call in calls:
        if call.method == method and (found := call.pattern.fullmatch(path)):
            return call, found.groupdict()
    raise NotLeased("A lease gives no right to this call.")


def only(body: Any, *names: str) -> Json:
    """This object, once it has no other fields than these."""
    if not isinstance(body, dict):
        raise NotLeased("This is not the body of this call.")
    if more := set(body) - set(names):
        raise NotLeased(f"A lease may not send {', '.join(sorted(map(str, more)))[:200]!r} here.")
    return body
