"""What is remembered for a while, and never too much of it."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """The newest `most` values by name, each for `seconds`."""

    def __init__(self, *, seconds: float = float("inf"), most: int) -> None:
        self._seconds, self._most = seconds, most
        self._values: dict[str, tuple[float, T]] = {}

    def get(self, name: str) -> T | None:
        """The value of this name; None where there is none, or it is too old."""
        found = self._values.get(name)
        if found is None or time.monotonic() - found[0] >= self._seconds:
            return None
        return found[1]

    def put(self, name: str, value: T) -> T:
        """The value, once it is kept; the oldest one goes where there are too many."""
        self._values.pop(name, None)
        while len(self._values) >= self._most:
            del self._values[next(iter(self._values))]
        self._values[name] = (time.monotonic(), value)
        return value

    def drop(self, name: str) -> None:
        self._values.pop(name, None)

    def __len__(self) -> int:
        return len(self._values)
