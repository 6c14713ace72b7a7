"""`stillreel styles`: the looks and the camera's motions that an order may name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from stillreel.command import api_client, home_settings
from stillreel.errors import SettingsInvalid, Unauthorized
from stillreel.terminal import JsonFlag, print_json, print_rows, say

if TYPE_CHECKING:
    from stillreel.client import Looks


def list_styles(as_json: JsonFlag = False) -> None:
    """List the styles, and the motions that --camera understands.

    Of the API where one is set up and answers, else of this machine. A file of your own
    (STILLREEL_STYLES) is checked in any case.

    Example: stillreel styles --json
    """
    home_settings()
    looks = _ask_api()
    found = looks.model_dump(mode="json") if looks else _here()
    if as_json:
        print_json(found)
        return
    print_rows([_shown(style, "camera") for style in found["styles"]], False)
    typer.echo()
    print_rows([_shown(motion) for motion in found["motions"]], False)
    say("e.g. --style cinematic --camera 'slow pan left and tilt up'")


def _ask_api() -> Looks | None:
    from stillreel.client import ApiUnreachable

    try:
        with api_client() as client:
            return client.styles()
    except (ApiUnreachable, SettingsInvalid) as exc:
        if isinstance(exc.__cause__, Unauthorized):
            raise
        say("these are the styles of this machine; no API answers")
        return None


def _here() -> dict[str, Any]:
    from stillreel.models.looks import looks

    return looks()


def _shown(row: dict[str, Any], *more: str) -> dict[str, Any]:
    names = ("name", *more, "description")
    return {name: row[name] for name in names}
