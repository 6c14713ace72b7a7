"""What the form in the Prefect UI offers for fields whose choices are data, not code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from stillreel import job
from stillreel.errors import SettingsInvalid
from stillreel.models.motions import MOTIONS
from stillreel.models.styles import get_styles

Schema = dict[str, Any]


@dataclass(frozen=True)
class _Offered:
    """Adds choices to a field's JSON schema when a schema is made; the field itself stays text."""

    add: Callable[[Schema], None]

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> Schema:
        schema = handler(core_schema)
        self.add(schema)
        return schema


def _offer_styles(schema: Schema) -> None:
    """The styles of this installation, as a list to choose from."""
    try:
        schema["enum"] = ["", *get_styles()]
    except SettingsInvalid:  # told at every start; here it would fail jobs that name no style
        return


def _offer_motions(schema: Schema) -> None:
    """The single motions as a list, and beside it any words: speeds and combinations."""
    schema["anyOf"] = [
        {"title": "one motion", "type": "string", "enum": ["", *MOTIONS]},
        {"title": "in words", "type": "string"},
    ]


StyleField = Annotated[job.StyleName, _Offered(_offer_styles)]
CameraField = Annotated[job.CameraWords, _Offered(_offer_motions)]
