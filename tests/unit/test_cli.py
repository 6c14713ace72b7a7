"""What the commands print, and that they start without what they do not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from stillreel.cli_view import estimate_facts, job_facts, job_row, time_left, where_is
from stillreel.client import Estimate, Job
from stillreel.terminal import print_facts, print_rows, print_secret, say, say_error

Captured = pytest.CaptureFixture[str]


def job(**fields: Any) -> Job:
    return Job.model_validate({"job_id": "job_a", "status": "processing", **fields})


def test_the_command_line_starts_light() -> None:
    heavy = ["anyio", "httpx", "numpy", "PIL", "prefect", "pydantic", "rich.progress"]
    code = f"import stillreel.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_shell_completes_commands_and_options() -> None:
    code = "import sys; sys.argv = ['stillreel']; from stillreel.cli import main; main()"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "_STILLREEL_COMPLETE": "complete_bash",
                "COMP_WORDS": words,
                "COMP_CWORD": str(words.count(" ")),
            },
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        for words in ("stillreel doc", "stillreel doctor --js")
    ]
    assert told == [["doctor"], ["--json"]]


def test_rows_are_columns_under_their_names(capsys: Captured) -> None:
    rows = [
        {"id": "a", "scopes": ["read", "admin"], "valid": True, "expires": ""},
        {"id": "long", "scopes": [], "valid": False, "expires": "never"},
    ]
    print_rows(rows, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "id    scopes      valid  expires",
        "a     read,admin  yes    -",
        "long              no     never",
    ]
    print_rows(rows, as_json=True)
    assert json.loads(capsys.readouterr().out) == rows


def test_no_rows_are_nothing_or_an_empty_list(capsys: Captured) -> None:
    print_rows([], as_json=False)
    assert capsys.readouterr().out == ""
    print_rows([], as_json=True)
    assert capsys.readouterr().out == "[]\n"


def test_a_fact_that_is_not_known_has_no_line(capsys: Captured) -> None:
    print_facts({"job": "job_a", "batch": None, "error": "", "place": 0})
    assert capsys.readouterr().out.splitlines() == ["job          job_a", "place        0"]


def test_a_secret_is_alone_on_stdout(capsys: Captured) -> None:
    print_secret(False, "key", "sr_secret", owner="acme")
    assert capsys.readouterr().out == "sr_secret\n"
    print_secret(True, "key", "sr_secret", owner="acme")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"owner": "acme", "key": "sr_secret"}
    assert "printed once" in captured.err


def test_words_for_a_person_go_to_stderr_as_they_are(capsys: Captured) -> None:
    say("[red]not a colour[/]")
    say_error("internal", "[/] neither")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "[red]not a colour[/]\nerror (internal): [/] neither\n"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "queued"}, "queued"),
        ({"status": "queued", "position": 2}, "queued, place 2"),
        ({}, "processing"),
        ({"stage": "upload"}, "upload"),
        ({"stage": "infer", "phase": "load"}, "infer: load"),
        ({"stage": "infer", "phase": "denoise", "step": 3, "steps": 8}, "infer: denoise 3/8"),
        ({"status": "completed", "stage": "notify"}, "completed"),
    ],
)
def test_where_a_job_is(fields: dict[str, Any], words: str) -> None:
    assert where_is(job(**fields)) == words


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"eta_seconds": 40.4}, "about 40 s left"),
        ({"eta_seconds": 119.6}, "about 2 min left"),
        ({"eta_seconds": 40, "status": "failed"}, ""),
    ],
)
def test_how_long_a_job_will_take(fields: dict[str, Any], words: str) -> None:
    assert time_left(job(**fields)) == words


def test_a_terminal_is_shown_one_line_of_a_prompt() -> None:
    prompt = "slow\x1b[31m\nzoom " + "in" * 200
    shown = job_row(job(prompt=prompt))["prompt"]
    assert shown == ("slow [31m zoom " + "in" * 200)[:39] + "…"
    assert len(job_facts(job(prompt=prompt))["prompt"]) == 200


def test_an_estimate_says_what_is_not_known() -> None:
    span = {"low": 10, "likely": 12, "high": 20}
    found = Estimate.model_validate({"model": "preview", "seconds": span, "source": "spec"})
    facts = estimate_facts(found)
    assert facts["seconds"] == "12 (10 to 20)"
    assert (facts["US$"], facts["wait"]) == ("not known", "not known")
    assert facts["known from"] == "the model's arithmetic"
