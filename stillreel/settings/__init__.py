"""Settings from the environment: one module per concern, all errors at once, secrets masked.

Each setting is `STILLREEL_` + its name in capitals; the names of the two design documents work as
aliases. `docs/settings.md` is generated from these modules (`make docs`).
"""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError

from stillreel.errors import SettingsInvalid
from stillreel.settings.api import ApiSettings
from stillreel.settings.concern import PREFIX, Concern
from stillreel.settings.fetch import FetchSettings
from stillreel.settings.fleet import FleetSettings
from stillreel.settings.host import HostSettings
from stillreel.settings.inference import InferenceSettings
from stillreel.settings.mistakes import (
    credential_mistakes,
    half_s3,
    mistake,
    remote_mistakes,
    rented_env_mistakes,
    webhook_mistakes,
)
from stillreel.settings.remote import REMOTE_VALUES
from stillreel.settings.server import ServerSettings
from stillreel.settings.storage import StorageSettings
from stillreel.settings.webhook import WebhookSettings

__all__ = [
    "CONCERNS",
    "PREFIX",
    "REMOTE_VALUES",
    "ApiSettings",
    "Concern",
    "FetchSettings",
    "FleetSettings",
    "HostSettings",
    "InferenceSettings",
    "ServerSettings",
    "Settings",
    "StorageSettings",
    "WebhookSettings",
    "get_settings",
    "make_home",
    "secret_names",
]


class Settings(BaseModel):
    """Everything that is configured."""

    model_config = ConfigDict(frozen=True)

    host: HostSettings
    storage: StorageSettings
    fetch: FetchSettings
    inference: InferenceSettings
    webhook: WebhookSettings
    api: ApiSettings
    fleet: FleetSettings
    server: ServerSettings


CONCERNS: dict[str, type[Concern]] = {
    "host": HostSettings,
    "storage": StorageSettings,
    "fetch": FetchSettings,
    "inference": InferenceSettings,
    "webhook": WebhookSettings,
    "api": ApiSettings,
    "fleet": FleetSettings,
    "server": ServerSettings,
}


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once.

    Raises SettingsInvalid with every mistake at once, each with its variable's name.
    """
    built: dict[str, Concern] = {}
    mistakes: list[str] = []
    for name, concern in CONCERNS.items():
        try:
            built[name] = concern()
        except ValidationError as exc:
            mistakes += [mistake(error["loc"], error["msg"]) for error in exc.errors()]
    mistakes += [
        *half_s3(built.get("storage")),
        *webhook_mistakes(built.get("webhook")),
        *remote_mistakes(built.get("inference")),
        *rented_env_mistakes(built.get("fleet"), secret_names()),
        *credential_mistakes(built.get("host"), built.get("storage")),
    ]
    if mistakes:
        lines = "\n".join(f"  - {line}" for line in mistakes)
        raise SettingsInvalid(f"{len(mistakes)} setting(s) cannot be used:\n{lines}")
    return Settings.model_validate(built)


def secret_names() -> frozenset[str]:
    """The names of all variables whose values are secret."""
    found: set[str] = set()
    for concern in CONCERNS.values():
        for name, field in concern.model_fields.items():
            if "SecretStr" not in repr(field.annotation):
                continue
            alias = field.validation_alias
            choices = alias.choices if isinstance(alias, AliasChoices) else ()
            found |= {PREFIX + name.upper(), *(c for c in choices if isinstance(c, str))}
    return frozenset(found)


def make_home(settings: Settings) -> Path:
    """Make the directory of everything this machine keeps, for this user only, and try it.

    Raises SettingsInvalid when nothing can be written there.
    """
    home = settings.host.home
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
    except OSError as exc:
        raise SettingsInvalid(
            f"STILLREEL_HOME: {home} cannot be used ({exc.strerror}); set it to a directory that "
            "you may write"
        ) from exc
    return home
