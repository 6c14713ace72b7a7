"""The types of the client in TypeScript are those of the API's own description."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stillreel.settings import get_settings
from tests.convex.openapi import TYPES, write_types


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without any key the app is not made."""
    monkeypatch.setenv("STILLREEL_API_KEY", "none")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def test_the_types_are_those_that_the_api_describes(node: str, tmp_path: Path) -> None:
    write_types(tmp_path / "openapi.ts")
    assert TYPES.read_text() == (tmp_path / "openapi.ts").read_text(), (
        "the API has changed: run `make types-convex`, and see what the compiler says of it"
    )
