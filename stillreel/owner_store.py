"""Owners as Prefect's variables and the environment have them, one variable per owner.

Prefect has no compare-and-swap for variables, so writers of all processes take turns by a lock.
What remains: the change of a writer that stood still for 15 s between its reading and its writing
replaces what others wrote meanwhile, and so does an edit in Prefect's UI.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NoReturn

from stillreel.errors import (
    PrefectRefused,
    PrefectUnavailable,
    RequestRejected,
    SettingsInvalid,
)
from stillreel.owners import (
    SCOPES,
    VARIABLE,
    ApiKey,
    Caller,
    Owner,
    Receiver,
    digest,
    from_variable,
    lower,
    make_owner,
    new_key_text,
    parse_key,
    to_variable,
    variable_name,
    webhook_secret,
)
from stillreel.prefect_api import PAGE, PrefectApi
from stillreel.prefect_lock import shared_lock
from stillreel.server_secret import server_secret
from stillreel.settings import Settings

ENVIRONMENT = "environment"
"""The id of the key that STILLREEL_API_KEY sets."""
FRESH_SECONDS = 5.0
NEW_KEY_SECONDS = 0.5
"""How fresh owners must be before a key is refused: it may have been made just now."""
READ_PATIENCE = 1.0
"""Seconds that requests wait where Prefect is away, before they go on with what is known."""
LOCK = "stillreel_owners_lock"
KEY_FILE = "api.key"

log = logging.getLogger("stillreel.owners")


def log_audit(action: str, **facts: Any) -> None:
    """Write a line about who changed what."""
    log.info("audit %s %s", action, " ".join(f"{name}={fact}" for name, fact in facts.items()))


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that may be used until `end` (seconds since 1970)."""

    digest: bytes
    end: float
    caller: Caller


class OwnerStore:
    """The owners and their keys, at most `fresh` seconds old.

    While Prefect is away it goes on with what it knows; the environment's key needs no Prefect.
    Every method may raise PrefectUnavailable and PrefectRefused where nothing is known. What
    writes raises RequestRejected for an owner that is not there and a value that cannot be.
    """

    def __init__(
        self,
        api: PrefectApi,
        settings: Settings,
        *,
        audit: Callable[..., None] = log_audit,
        fresh: float = FRESH_SECONDS,
    ) -> None:
        self._api = api
        self._settings = settings
        self._audit = audit
        self._fresh = fresh
        self._owners: dict[str, Owner] = {}
        self._known: dict[str, _Known] = {}
        self._loaded = False
        self._trouble: PrefectUnavailable | PrefectRefused | None = None
        self._read_at = self._written_at = float("-inf")
        self._reading, self._writing = asyncio.Lock(), asyncio.Lock()
        self._complaints: set[str] = set()
        self._environment = self._environment_key()
        self._nobody = _Known(os.urandom(32), 0.0, Caller("", "", frozenset(), "backlog"))

    @property
    def environment(self) -> Caller | None:
        """Whom the key of the environment belongs to; None where none is set."""
        return self._environment.caller if self._environment else None

    @cached_property
    def secret(self) -> bytes:
        """The server's secret, which webhook secrets are derived from."""
        return server_secret(self._settings)

    async def find(self, key_text: str) -> Caller | None:
        """The caller whose key this is; None for a key that is not, or no longer, valid.

        Raises PrefectUnavailable for an unknown key while Prefect is away: it may be a new one.
        """
        await self._refresh(self._fresh)
        caller = self._look_up(key_text)
        parsed = parse_key(key_text)
        if caller or parsed is None or parsed[0] in self._known:
            return caller
        await self._refresh(min(self._fresh, NEW_KEY_SECONDS))
        if parsed[0] not in self._known and self._trouble:
            self._raise_trouble()
        return self._look_up(key_text)

    async def get(self, name: str) -> Owner | None:
        """The owner of this name; the first owner is there without having been made."""
        await self._load()
        return self._owners.get(name) or self._first(name)

    async def need(self, name: str) -> Owner:
        """The owner of this name. Raises RequestRejected."""
        return _there(name, await self.get(name))

    async def all(self) -> list[Owner]:
        """All owners by name."""
        await self._load()
        found = dict(self._owners)
        first = self._settings.api.api_owner
        if self._environment and first not in found:
            found[first] = make_owner(first, ceiling="high")
        return [found[name] for name in sorted(found)]

    async def has_keys(self) -> bool:
        """Whether there is a key that a request could be made with."""
        if self._environment:
            return True
        await self._load()
        return any(time.time() < known.end for known in self._known.values())

    async def owner_of(self, key_id: str) -> Owner:
        """The owner that has this key, read now. Raises RequestRejected."""
        if key_id == ENVIRONMENT:
            raise RequestRejected(
                "this key is STILLREEL_API_KEY; change it where it is set, then start the API anew"
            )
        await self._load(0.0)
        for owner in self._owners.values():
            if owner.key(key_id):
                return owner
        raise RequestRejected(f"there is no key {key_id!r}; `stillreel keys list` shows them all")

    async def webhook_secrets(self, name: str) -> list[str]:
        """What signs the owner's notifications, the current one first; all of them sign.

        "" is the owner of runs that have none: the installation. Raises SettingsInvalid when a
        secret was made with another server secret.
        """
        webhook, owner = self._settings.webhook, await self.get(name) if name else None
        texts: list[str] = []
        if name in ("", self._settings.api.api_owner):
            both = (webhook.webhook_secret, webhook.webhook_secret_previous)
            texts = [text for secret in both if (text := secret.get_secret_value())]
        salts = owner.salts if owner else ()
        return texts + [webhook_secret(self.secret, name, salt) for salt in salts]

    async def receivers(self, name: str) -> tuple[Receiver, ...]:
        """The webhook URLs that are registered for the owner; "" as in `webhook_secrets`."""
        webhook, owner = self._settings.webhook, await self.get(name) if name else None
        found = {receiver.url: receiver for receiver in (owner.receivers if owner else ())}
        if name in ("", self._settings.api.api_owner):
            default = not any(receiver.default for receiver in found.values())
            for url in filter(None, (webhook.webhook_url, *webhook.webhook_plain_urls)):
                receiver = Receiver.model_construct(
                    url=url,
                    plain=url in webhook.webhook_plain_urls,
                    default=default and url == webhook.webhook_url,
                )
                found.setdefault(url, receiver)
        return tuple(found.values())

    async def create(self, owner: Owner) -> None:
        """Store a new owner. Raises RequestRejected when there is one of this name."""
        async with self._turn():
            if await self._variable(owner.name):
                raise RequestRejected(f"there is an owner {owner.name} already")
            await self._post(owner)
        self._audit("owner.created", owner=owner.name)

    async def change(
        self, name: str, change: Callable[[Owner], Owner], action: str, **facts: Any
    ) -> Owner:
        """Store what `change` makes of the owner as it is now, and audit it as `action`."""
        async with self._turn():
            stored = await self._stored(name)
            owner = change(_there(name, stored or self._first(name)))
            await (self._patch(owner) if stored else self._post(owner))
        self._audit(action, owner=name, **facts)
        return owner

    async def delete(self, name: str) -> None:
        """Forget the owner with its keys; its jobs stay, and belong to the next of this name."""
        async with self._turn():
            if not await self._variable(name):
                raise _unknown(name)
            try:
                await self._api.delete(f"/variables/name/{variable_name(name)}")
            except PrefectRefused as exc:
                if exc.status != 404:  # gone, which is what was wanted
                    raise
        self._audit("owner.deleted", owner=name)

    def _look_up(self, key_text: str) -> Caller | None:
        """Costs the same hash and comparison whether the key's id is known or not."""
        if self._environment and hmac.compare_digest(digest(key_text), self._environment.digest):
            return self._environment.caller
        parsed = parse_key(key_text)
        if parsed is None:
            return None
        key_id, secret = parsed
        known = self._known.get(key_id, self._nobody)
        same = hmac.compare_digest(digest(secret), known.digest)
        return known.caller if same and time.time() < known.end else None

    async def _load(self, fresh: float | None = None) -> None:
        await self._refresh(self._fresh if fresh is None else fresh)
        if not self._loaded:
            self._raise_trouble()

    async def _refresh(self, fresh: float) -> None:
        """Read the owners unless they are `fresh` seconds old at most; one read at a time."""
        if self._is_fresh(fresh):
            return
        async with self._reading:
            if self._is_fresh(fresh):
                return
            started = time.monotonic()
            try:
                self._take(await self._read())
                self._read_at = started
            except (PrefectUnavailable, PrefectRefused) as exc:
                if self._loaded and self._trouble is None:
                    log.warning("owners cannot be read, those known are used: %s", exc.message)
                self._trouble = exc
                self._read_at = time.monotonic()  # so that those who wait do not all try

    def _is_fresh(self, fresh: float) -> bool:
        return self._read_at > self._written_at and time.monotonic() - self._read_at <= fresh

    async def _read(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        body = {"variables": {"name": {"like_": VARIABLE}}, "sort": "NAME_ASC", "limit": PAGE}
        while len(found) % PAGE == 0:
            page = await self._api.ask(
                "/variables/filter", body | {"offset": len(found)}, patience=READ_PATIENCE
            )
            found += page
            if not page:
                break
        return [each for each in found if each["name"].startswith(VARIABLE)]

    def _take(self, variables: list[dict[str, Any]]) -> None:
        self._owners = {}
        for variable in variables:
            try:
                owner = from_variable(variable["name"], variable["value"])
            except SettingsInvalid as exc:
                if exc.message not in self._complaints:
                    self._complaints.add(exc.message)
                    log.error("%s", exc.message)
            else:
                self._owners[owner.name] = owner
        self._known = {key.id: _known(o, key) for o in self._owners.values() for key in o.keys}
        self._environment = self._environment_key()
        self._loaded, self._trouble = True, None

    def _raise_trouble(self) -> NoReturn:
        trouble = self._trouble or PrefectUnavailable()
        raise type(trouble)(trouble.message) from trouble

    def _first(self, name: str) -> Owner | None:
        first = name == self._settings.api.api_owner
        return make_owner(name, ceiling="high") if first else None

    def _environment_key(self) -> _Known | None:
        name = self._settings.api.api_owner
        owner = self._owners.get(name) or self._first(name)
        text = self._settings.api.api_key.get_secret_value().strip()
        if not text or owner is None:
            return None
        caller = Caller(name, ENVIRONMENT, frozenset(SCOPES), owner.ceiling)
        return _Known(digest(text), float("inf"), caller)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The turn of one writer; what was read before its end is not fresh any more."""
        async with self._writing, shared_lock(self._api, LOCK):
            try:
                yield
            finally:
                self._written_at = time.monotonic()

    async def _stored(self, name: str) -> Owner | None:
        """The owner as it is stored now. Raises SettingsInvalid where that cannot be read."""
        found = await self._variable(name)
        return found and from_variable(found["name"], found["value"])

    async def _variable(self, name: str) -> Any:
        try:
            return await self._api.get(f"/variables/name/{variable_name(name)}")
        except PrefectRefused as exc:
            if exc.status != 404:
                raise
            return None

    async def _post(self, owner: Owner) -> None:
        """Make the variable; that it is there already is our own call's doing, tried twice."""
        body = {"name": variable_name(owner.name), "value": to_variable(owner)}
        try:
            await self._api.post("/variables/", body)
        except PrefectRefused as exc:
            if exc.status != 409 or await self._stored(owner.name) != owner:
                raise

    async def _patch(self, owner: Owner) -> None:
        body = {"value": to_variable(owner)}
        await self._api.patch(f"/variables/name/{variable_name(owner.name)}", body)


def first_key(settings: Settings, home: Path) -> tuple[str, bool]:
    """The key of the first owner, and whether it was made just now.

    It is the one that is configured, else one that is made once and kept in `home`. Raises
    SettingsInvalid when that file cannot be used.
    """
    if given := settings.api.api_key.get_secret_value().strip():
        return given, False
    path, made = home / KEY_FILE, new_key_text()
    try:
        with NamedTemporaryFile("w", dir=home, prefix=f".{KEY_FILE}-") as part:
            part.write(made)
            part.flush()
            with suppress(FileExistsError):
                os.link(part.name, path)  # the first process wins, and nobody sees half a key
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsInvalid(f"STILLREEL_HOME: {KEY_FILE} cannot be used ({exc})") from exc
    if not text:
        raise SettingsInvalid(f"STILLREEL_HOME: {KEY_FILE} is empty; delete it, or set a key")
    return text, text == made


def _known(owner: Owner, key: ApiKey) -> _Known:
    end = key.expires.timestamp() if key.expires else float("inf")
    caller = Caller(owner.name, key.id, frozenset(key.scopes), lower(owner.ceiling, key.ceiling))
    return _Known(bytes.fromhex(key.sha256), end, caller)


def _there(name: str, owner: Owner | None) -> Owner:
    if owner is None:
        raise _unknown(name)
    return owner


def _unknown(name: str) -> RequestRejected:
    return RequestRejected(
        f"there is no owner {name!r}; `stillreel owners list` shows them all, and "
        "`stillreel owners create` makes one"
    )
