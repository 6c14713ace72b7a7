"""Whom jobs belong to: an owner, its API keys, quota and webhooks; values and pure rules.

Jobs belong to the owner and not to a key, so keys come and go.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar, get_args

import httpx
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from stillreel.errors import RequestRejected, SettingsInvalid
from stillreel.job import PRIORITIES, Priority
from stillreel.server_secret import sign

Scope = Literal["generate", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

KEYS_LIMIT = RECEIVERS_LIMIT = 10
JSON_LIMIT = 5000
"""Bytes of a Prefect variable's value (3.8.8)."""
GRACE = timedelta(hours=24)
"""How long a key stays valid that was replaced by a new one."""
VARIABLE = "stillreel_owner_"
"""What the names of the Prefect variables begin with; the owner's name follows."""

_NAME = r"^[a-z0-9][a-z0-9_-]{0,39}$"
_KEY = re.compile(r"sr_([a-z2-7]{12})_([A-Za-z0-9_-]{43})")
_T = TypeVar("_T", bound=BaseModel)


def _receiver_url(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be printable ASCII without spaces; percent-encode the rest")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as exc:
        raise ValueError("is not a URL") from exc
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.fragment:
        raise ValueError("must be http(s)://host..., without user, password and fragment")
    return text


def _in_order(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    return tuple(scope for scope in SCOPES if scope in scopes)


OwnerName = Annotated[str, Field(pattern=_NAME)]
KeyId = Annotated[str, Field(pattern=r"^[a-z2-7]{12}$")]
Limit = Annotated[int, Field(ge=0, le=1_000_000_000)]
Scopes = Annotated[tuple[Scope, ...], Field(min_length=1), AfterValidator(_in_order)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Quota(_Value):
    """How many jobs an owner may have; 0: what the installation's settings say."""

    jobs_waiting: Limit = 0
    jobs_per_day: Limit = 0


class Receiver(_Value):
    """A webhook URL that the operator registered, so trusted: it may be private.

    `plain`: it also gets the secret itself as `X-Webhook-Secret`. `default`: it is told about jobs
    that name no receiver.
    """

    url: Annotated[str, Field(max_length=500), AfterValidator(_receiver_url)]
    plain: bool = False
    default: bool = False


class ApiKey(_Value):
    """What is kept of a key: enough to know it again, not enough to use it."""

    id: KeyId
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    scopes: Scopes
    created: AwareDatetime
    expires: AwareDatetime | None = None
    ceiling: Priority = "high"
    replaced_by: KeyId | Literal[""] = ""

    def is_valid(self, at: datetime) -> bool:
        return self.expires is None or at < self.expires


class Owner(_Value):
    """Whom jobs belong to, as it is stored.

    `ceiling` is the best priority that its jobs may have. `salts`, the newest first, are what its
    webhook secrets are derived from.
    """

    name: OwnerName
    ceiling: Priority = "default"
    quota: Quota = Quota()
    keys: tuple[ApiKey, ...] = Field((), max_length=KEYS_LIMIT)
    salts: tuple[str, ...] = Field((), max_length=2)
    receivers: tuple[Receiver, ...] = Field((), max_length=RECEIVERS_LIMIT)

    def key(self, key_id: str) -> ApiKey | None:
        return next((key for key in self.keys if key.id == key_id), None)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: the owner, by which key, what it may do, and its best priority."""

    owner: str
    key_id: str
    scopes: frozenset[Scope]
    ceiling: Priority

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    def may_use(self, priority: Priority) -> bool:
        return lower(priority, self.ceiling) == priority


def lower(one: Priority, other: Priority) -> Priority:
    """The one of the two whose queue is served later."""
    return one if PRIORITIES.index(one) > PRIORITIES.index(other) else other


# --- keys -------------------------------------------------------------------------------------


def new_key_text() -> str:
    """A new key as its holder has it: `sr_<key id>_<secret>`."""
    key_id = base64.b32encode(secrets.token_bytes(8)).decode().lower()[:12]
    return f"sr_{key_id}_{secrets.token_urlsafe(32)}"


def parse_key(text: str) -> tuple[str, str] | None:
    """Key id and secret of a key's text; None for any other text."""
    found = _KEY.fullmatch(text)
    return (found[1], found[2]) if found else None


def digest(text: str) -> bytes:
    """The SHA-256 of a secret: what is stored and compared instead of it."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def make_key(
    text: str,
    *,
    scopes: Iterable[str],
    at: datetime,
    expires: datetime | None = None,
    ceiling: str = "high",
) -> ApiKey:
    """What is kept of the new key `text`. Raises RequestRejected."""
    parsed = parse_key(text)
    if parsed is None:
        raise RequestRejected("this is not the text of a key: sr_<key id>_<secret>")
    key_id, secret = parsed
    return _made(
        ApiKey,
        id=key_id,
        sha256=digest(secret).hex(),
        scopes=tuple(scopes),
        created=at.replace(microsecond=0),
        expires=expires and expires.replace(microsecond=0),
        ceiling=ceiling,
    )


def add_key(owner: Owner, key: ApiKey, *, at: datetime) -> Owner:
    """The owner with one key more; keys that have expired make room.

    Raises RequestRejected when it has 10 valid ones.
    """
    valid = [kept for kept in owner.keys if kept.is_valid(at)]
    if len(valid) >= KEYS_LIMIT:
        raise RequestRejected(
            f"owner {owner.name} has {len(valid)} valid keys, {KEYS_LIMIT} at most; "
            "revoke one with `stillreel keys revoke`"
        )
    return changed(owner, keys=(*valid, key))


def revoke_key(owner: Owner, key_id: str) -> Owner:
    """The owner without this key."""
    return changed(owner, keys=tuple(key for key in owner.keys if key.id != key_id))


def replace_key(
    owner: Owner, key_id: str, text: str, *, at: datetime, grace: timedelta = GRACE
) -> Owner:
    """The owner with the new key `text`, which may what the old one may and ends when it would.

    The old one stays valid for `grace`. Raises RequestRejected when it has expired or has been
    replaced, for then this would bring it back to life.
    """
    old = owner.key(key_id)
    if old is None or not old.is_valid(at):
        raise RequestRejected(
            f"owner {owner.name} has no valid key {key_id}; make a new one with "
            "`stillreel keys create`"
        )
    if old.replaced_by:
        raise RequestRejected(
            f"key {key_id} has been replaced by {old.replaced_by}; rotate that one, or revoke "
            f"{key_id} now"
        )
    new = make_key(text, scopes=old.scopes, at=at, expires=old.expires, ceiling=old.ceiling)
    if grace <= timedelta(0):
        return add_key(revoke_key(owner, key_id), new, at=at)
    end = (at + grace).replace(microsecond=0)
    ending = changed(old, expires=min(end, old.expires) if old.expires else end, replaced_by=new.id)
    keys = tuple(ending if key.id == key_id else key for key in owner.keys)
    return add_key(changed(owner, keys=keys), new, at=at)


# --- webhooks ---------------------------------------------------------------------------------


def new_salt(server_secret: bytes, owner: str) -> str:
    """What a new webhook secret of this owner is derived from; no secret itself.

    Prefect shows variables to all who reach it and keeps each value in its log of events, so a
    variable holds no secret that works.
    """
    head = secrets.token_hex(8)
    return head + _salt_check(server_secret, owner, head)


def webhook_secret(server_secret: bytes, owner: str, salt: str) -> str:
    """The secret that belongs to this salt, as `whsec_` + base64.

    Raises SettingsInvalid when it was made with another server secret.
    """
    if salt[16:] != _salt_check(server_secret, owner, salt[:16]):
        raise SettingsInvalid(
            f"the webhook secret of owner {owner} was made with another STILLREEL_SERVER_SECRET; "
            "give all processes the same one, or make a new webhook secret with "
            f"`stillreel owners webhook {owner} --rotate-secret --now`"
        )
    key = sign(server_secret, "webhook-secret", owner, salt)
    return "whsec_" + base64.b64encode(key).decode()


def add_salt(owner: Owner, salt: str, *, keep_previous: bool = True) -> Owner:
    """The owner with a new webhook secret; the one before signs too, where it is kept."""
    return changed(owner, salts=(salt, *owner.salts[: 1 if keep_previous else 0]))


def add_receiver(owner: Owner, url: str, *, plain: bool = False, default: bool = False) -> Owner:
    """The owner with this URL registered, and one default at most. Raises RequestRejected."""
    receiver = _made(Receiver, url=url, plain=plain, default=default)
    others = [
        changed(other, default=other.default and not default)
        for other in owner.receivers
        if other.url != url
    ]
    kept = {other.url: other for other in others} | {url: receiver}
    return changed(owner, receivers=tuple(kept[key] for key in sorted(kept)))


def remove_receiver(owner: Owner, url: str) -> Owner:
    """The owner without this URL."""
    return changed(owner, receivers=tuple(r for r in owner.receivers if r.url != url))


def _salt_check(server_secret: bytes, owner: str, head: str) -> str:
    return sign(server_secret, "webhook-salt", owner, head).hex()[:8]


# --- the stored form --------------------------------------------------------------------------


def make_owner(name: str, *, ceiling: str = "default", **quota: int) -> Owner:
    """A new owner without keys. Raises RequestRejected for a name or number that cannot be."""
    variable_name(name)
    return _made(Owner, name=name, ceiling=ceiling, quota=_made(Quota, **quota))


def variable_name(owner: str) -> str:
    """The Prefect variable of this owner. Raises RequestRejected for what cannot be a name.

    Prefect takes all the characters of owners' names, so no two owners share a variable.
    """
    if not re.fullmatch(_NAME, owner):
        raise RequestRejected(
            "an owner's name has 1 to 40 of the characters a-z 0-9 _ - and begins with a letter "
            "or a digit"
        )
    return VARIABLE + owner


def to_variable(owner: Owner) -> dict[str, Any]:
    """The value of the owner's Prefect variable.

    Raises RequestRejected when it is longer than Prefect takes.
    """
    stored = {"exclude": {"name"}, "exclude_defaults": True}
    size = len(owner.model_dump_json(**stored))  # Prefect counts as compactly; all of it is ASCII
    if size > JSON_LIMIT:
        raise RequestRejected(
            f"owner {owner.name} would take {size} characters, and a Prefect variable holds "
            f"{JSON_LIMIT}; revoke keys or remove webhook URLs"
        )
    return owner.model_dump(mode="json", **stored)


def from_variable(name: str, value: Any) -> Owner:
    """The owner that is stored under this name. Raises SettingsInvalid for what is not one."""
    try:
        if not isinstance(value, Mapping) or "name" in value:
            raise TypeError("not an object as we write it")
        return Owner.model_validate({**value, "name": name.removeprefix(VARIABLE)})
    except (ValidationError, TypeError) as exc:
        raise SettingsInvalid(
            f"the Prefect variable {name} does not hold an owner ({_first_mistake(exc)}), so its "
            "keys are refused; put back what it held, or delete it and make the owner anew"
        ) from exc


def changed(value: _T, **changes: Any) -> _T:
    """The value with these fields changed. Raises RequestRejected for what they cannot be."""
    return _made(type(value), **{**vars(value), **changes})


def _made(kind: type[_T], **values: Any) -> _T:
    try:
        return kind.model_validate(values)
    except ValidationError as exc:
        raise RequestRejected(_first_mistake(exc)) from exc


def _first_mistake(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
