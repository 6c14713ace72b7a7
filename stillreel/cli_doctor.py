"""`stillreel doctor`: whether this machine, and what it is set up to speak to, works."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from stillreel.terminal import JsonFlag, print_json, say

if TYPE_CHECKING:
    from stillreel.doctor.finding import Finding

_WORDS = {"ok": "ok     ", "warning": "warning", "failed": "FAILED ", "skipped": "-      "}


def mount(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    seconds: Annotated[
        float, typer.Option(min=1, max=600, help="What all checks together may take.")
    ] = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Look whether this machine, and what it is set up to speak to, works; say what to do.

    Python and codecs, GPU, weights, storage, Prefect with its pools and workers, the API, webhook
    receivers, clocks. What is not set up here is left out. Prints no secret. Ends with 0 where
    nothing failed, 1 where something did, 3 where the settings cannot be used.

    Example: stillreel doctor --json
    """
    from stillreel.doctor.examination import examine
    from stillreel.doctor.finding import has_failed

    found = []
    for examined in examine(seconds=seconds):
        found.append(examined)
        if not as_json:
            typer.echo(examined.group)
            for finding in examined.findings:
                _print(finding)
    everything = [finding for each in found for finding in each.findings]
    failures = has_failed(everything)
    if as_json:
        rows = [{"group": each.group, **asdict(one)} for each in found for one in each.findings]
        print_json({"ok": not failures, "checks": rows})
    counted = {name: sum(one.outcome == name for one in everything) for name in _WORDS}
    say(", ".join(f"{count} {name}" for name, count in counted.items() if count))
    if failures:
        raise typer.Exit(3 if has_failed(found[0].findings) else 1)


def _print(finding: Finding) -> None:
    note, *more = finding.note.splitlines() or [""]
    typer.echo(f"  {_WORDS[finding.outcome]}  {finding.check}: {note}")
    for line in more:
        typer.echo(f"           {line}")
    if finding.fix and finding.outcome != "ok":
        typer.echo(f"           -> {finding.fix}")
