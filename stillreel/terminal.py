"""How commands speak to a terminal: data on stdout, all else on stderr."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Tell a person something, on stderr."""
    err.print(text, markup=False, soft_wrap=True)


def say_error(code: str, text: str) -> None:
    """Tell a person what went wrong, on stderr."""
    err.print(f"[bold red]error[/] ({code}): ", end="")
    say(text)


def print_json(value: Any) -> None:
    """Print plain data as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_facts(facts: dict[str, Any]) -> None:
    """Print a line for each fact that is known, its name first."""
    for name, value in facts.items():
        if value not in (None, ""):
            typer.echo(f"{name:<12} {value}")


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as JSON, or as columns under their names."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        return
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def print_secret(as_json: bool, kind: str, secret: str, **facts: str) -> None:
    """Print a secret alone, or in JSON with what there is to know about it."""
    say("this is printed once and cannot be shown again; keep it where secrets are kept")
    if as_json:
        print_json({**facts, kind: secret})
        return
    typer.echo(secret)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(value) if isinstance(value, list) else str(value) or "-"
