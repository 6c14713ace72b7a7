"""What every class of settings is made of."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "STILLREEL_"


def names(name: str, *aliases: str) -> AliasChoices:
    """The variables that give a setting: ours first, then the names that others know it by."""
    return AliasChoices(PREFIX + name, *aliases)


class Concern(BaseSettings):
    """Settings that belong together; each reads its own variables."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
        populate_by_name=True,
    )


def absolute_path(value: Path) -> Path:
    """The path from the root, its `~` replaced. Raises ValueError where that names no user."""
    try:
        return value.expanduser().absolute()
    except RuntimeError as exc:
        raise ValueError("begins with a ~ that names no user here; give an absolute path") from exc
