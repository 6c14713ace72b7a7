"""The form in the Prefect UI offers styles and motions, which are data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prefect.exceptions import PrefectException
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from stillreel.job import JobSpec
from stillreel.models.motions import MOTIONS
from stillreel.models.styles import get_styles

SEPIA = """
[sepia]
title = "Sepia"
description = "Brown."
prompt = "{prompt} In brown."
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The operator's file, still to be written."""
    path = tmp_path / "styles.toml"
    monkeypatch.setenv("STILLREEL_STYLES", str(path))
    return path


def test_the_form_offers_the_styles_and_the_motions_and_any_words_beside(write: Path) -> None:
    from flows.generate_video import generate_video

    write.write_text(SEPIA)
    schema = parameter_schema(generate_video).model_dump_for_openapi()
    form = schema["properties"]
    assert form["style"]["enum"] == ["", *get_styles()]
    assert form["camera"]["anyOf"][0]["enum"] == ["", *MOTIONS]

    def is_taken(**fields: str) -> bool:
        try:
            validate(JobSpec().to_json() | fields, schema, raise_on_error=True)
        except (ValidationError, PrefectException):
            return False
        return True

    assert is_taken()
    assert is_taken(style="sepia", camera="slow pan left and tilt up")
    assert not is_taken(style="none of these")
    assert not is_taken(camera="x" * 101)


def test_a_broken_file_does_not_keep_the_flow_from_being_imported(write: Path) -> None:
    """It was told at start; here jobs that name no style would fail."""
    write.write_text("[x]\n")
    code = (
        "from flows.generate_video import generate_video as flow;"
        "print(flow.parameters.properties['style'].get('enum'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "None", done.stderr
