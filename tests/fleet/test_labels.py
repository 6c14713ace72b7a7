"""A label says whose machine it is, and reads back as it was made."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.fleet.labels import MOST, Label, installation_prefix, parse_label, run_prefix

LABELS = st.builds(
    Label,
    st.from_regex(r"[a-z0-9]{1,16}", fullmatch=True),
    st.uuids().map(str),
    st.integers(1, MOST),
)


@given(LABELS)
def test_a_label_is_read_as_it_was_written(label: Label) -> None:
    text = str(label)
    assert parse_label(text) == label
    assert len(text) <= 64  # EC2's ClientToken
    assert text.startswith(run_prefix(label.installation, label.run_id))
    assert text.startswith(installation_prefix(label.installation))


@given(LABELS, LABELS)
def test_no_installation_sees_the_labels_of_another(one: Label, other: Label) -> None:
    if one.installation != other.installation:
        assert not str(one).startswith(installation_prefix(other.installation))


@pytest.mark.parametrize(
    "text",
    ["", "my machine", "stillreel-main", f"stillreel-main-{UUID(int=1).hex}", "stillreel-a-b-1"],
)
def test_what_somebody_else_wrote_is_no_label(text: str) -> None:
    assert parse_label(text) is None


@given(st.text(max_size=80))
def test_any_text_can_be_asked(text: str) -> None:
    assert parse_label(text) is None or str(parse_label(text)) == text
