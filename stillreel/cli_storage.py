"""`stillreel storage`: the object store, got ready once and looked at again."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from stillreel.command import home_settings
from stillreel.errors import RequestRejected, StorageRefused
from stillreel.terminal import JsonFlag, print_json, print_rows, say

if TYPE_CHECKING:
    from stillreel.bucket_init import Report

storage = typer.Typer(no_args_is_help=True, help="The object store: get it ready, look at it.")


@storage.callback()
def group() -> None:
    """Keep `init` a command of its own."""


@storage.command("init")
def init(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be changed; store nothing.")
    ] = False,
    location: Annotated[
        str, typer.Option(help="Where a new bucket is made: R2's hint, or an AWS region.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make the bucket, set lifetimes and CORS, and try what the endpoint can do; safe to repeat.

    Rules in the bucket that are not ours stay. Ends with 3 when something is missing that
    stillreel cannot do without.

    Example: R2_JURISDICTION=eu stillreel storage init --dry-run
    """
    settings = home_settings()
    if settings.storage.kind == "local":
        if location:
            raise RequestRejected("--location is for a bucket; storage is a local directory here")
        folder = settings.storage.storage_dir or settings.host.home / "storage"
        say(f"storage is the directory {folder}: nothing to set, the keeper deletes what is old")
        if as_json:
            print_json({"kind": "local", "directory": str(folder)})
        return
    from stillreel.bucket_init import init_bucket

    report = init_bucket(settings.storage, location=location, dry_run=dry_run)
    if as_json:
        print_json({"kind": settings.storage.kind, **asdict(report), "usable": report.is_usable})
    else:
        _print(report)
    for warning in report.warnings:
        say(f"warning: {warning}")
    if not report.is_usable:
        broken = [check.name for check in report.checks if check.needed and not check.works]
        raise StorageRefused(
            f"The bucket {report.bucket} cannot be used: {', '.join(broken)} does not work there; "
            "check the endpoint, and that the key may list, read, write and delete."
        )


def _print(report: Report) -> None:
    changes = [
        {
            "what": change.what,
            "outcome": change.outcome,
            "rules of others": change.kept_foreign if change.what != "bucket" else "",
        }
        for change in report.changes
    ]
    print_rows(changes, as_json=False)
    if report.checks:
        typer.echo()
        rows = [
            {
                "can": check.name,
                "works": check.works,
                "needed": check.needed,
                "note": check.note,
            }
            for check in report.checks
        ]
        print_rows(rows, as_json=False)
