"""`stillreel verify`: whether a video is the one of a signed receipt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillreel.terminal import JsonFlag, print_facts, print_json, say

if TYPE_CHECKING:
    from stillreel.verify import Verified


def mount(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def _credentials(found: Verified) -> str:
    if not found.has_looked:
        return "not looked at (pip install 'stillreel[c2pa]')"
    return found.credentials.to_text() if found.credentials else "none"


def verify(
    file: Annotated[Path, typer.Argument(help="The MP4, or a signed receipt alone.")],
    receipt: Annotated[
        Path | None, typer.Option(help="The signed receipt; else the API is asked for it.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The public key; else that of the API is taken.")
    ] = None,
    job: Annotated[str, typer.Option(help="The job, where the file does not say it.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Look whether a video is the one that an installation made and signed a receipt for.

    With --receipt and --key nothing is asked over the network. Ends with 1 where it is not, or
    was changed.

    Example: stillreel verify photo.mp4 --receipt photo.receipt.json --key receipt-key.json
    """
    from stillreel.verify import verify as look

    found = look(file, receipt=receipt, key=key, job_id=job)
    if as_json:
        print_json(found.to_json())
        return
    model, took = found.receipt["model"], found.receipt["input"]
    is_video = bool(found.video_sha256)
    print_facts(
        {
            "signature": f"good: made with the key {found.key.id} of {found.key_from}",
            "video": "is the one of the receipt, byte for byte" if is_video else "not looked at",
            "credentials": _credentials(found),
            "signed": found.signed_at,
            "job": found.receipt["job_id"],
            "model": f"{model['version']}, seed {model['seed']}, {model['steps']} steps",
            "image": f"SHA-256 {took['image_sha256']}" if took["image_sha256"] else "none",
            "prompt": took["prompt"],
        }
    )
    say(
        "not verified: who ordered it, that the host told the truth in the receipt, and who signed "
        "its credentials, which anybody can"
        + ("" if is_video else "; give the MP4 to have that looked at")
        + ("" if key else f". The key is the one that {found.key_from} showed just now")
    )
