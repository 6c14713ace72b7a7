"""docs/security.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from stillreel.gateway.allowed import CALLS

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def test_the_page_lists_the_calls_that_a_lease_opens_and_no_other() -> None:
    rows = [f"| `{call.method} {call.path}` | {call.only} |" for call in CALLS]
    section = PAGE.read_text().partition("## What a lease opens")[2].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == rows
