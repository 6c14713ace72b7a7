"""`stillreel owners` and `stillreel keys`: who may use the API; all need PREFECT_API_URL.

A new key or secret is printed once, alone on stdout; what there is to know about it, on stderr.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from stillreel.owner_store import OwnerStore
    from stillreel.owners import ApiKey, Owner

T = TypeVar("T")

owners = typer.Typer(no_args_is_help=True, help="Owners: whom jobs belong to.")
keys = typer.Typer(no_args_is_help=True, help="API keys of owners.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Name = Annotated[str, typer.Argument(help="The owner: a-z 0-9 _ -, 40 at most.")]
KeyId = Annotated[str, typer.Argument(help="The 12 characters between sr_ and the next _.")]
Waiting = Annotated[
    int | None, typer.Option(min=0, help="Jobs that may wait; 0: the installation's limit.")
]
PerDay = Annotated[
    int | None, typer.Option(min=0, help="Jobs in a day; 0: the installation's limit.")
]
MaxPriority = Annotated[
    str | None, typer.Option(help="The best priority to be had: high, default or backlog.")
]
Expires = Annotated[int | None, typer.Option(min=1, max=36500, help="Days; none: never.")]


@owners.command("create")
def create_owner(
    name: Name,
    jobs_waiting: Waiting = None,
    jobs_per_day: PerDay = None,
    max_priority: MaxPriority = None,
    as_json: JsonFlag = False,
) -> None:
    """Make an owner and print the secret that signs its webhooks.

    Example: stillreel owners create acme --jobs-per-day 500
    """
    from stillreel.owners import add_salt, make_owner, new_salt, webhook_secret

    async def work(store: OwnerStore) -> str:
        salt = new_salt(store.secret, name)
        owner = _with(make_owner(name), jobs_waiting, jobs_per_day, max_priority)
        await store.create(add_salt(owner, salt))
        return webhook_secret(store.secret, name, salt)

    secret = _run(work)
    _say(f"owner {name} is made; `stillreel keys create {name}` makes a key for it")
    _print_webhook_secret(as_json, name, secret)


@owners.command("set")
def set_owner(
    name: Name,
    jobs_waiting: Waiting = None,
    jobs_per_day: PerDay = None,
    max_priority: MaxPriority = None,
    as_json: JsonFlag = False,
) -> None:
    """Change quota and priority of an owner; what is not given stays."""

    async def work(store: OwnerStore) -> Owner:
        return await store.change(
            name,
            lambda owner: _with(owner, jobs_waiting, jobs_per_day, max_priority),
            "owner.changed",
        )

    _print([_owner_facts(_run(work))], as_json)


@owners.command("list")
def list_owners(as_json: JsonFlag = False) -> None:
    """List all owners."""
    _print([_owner_facts(owner) for owner in _run(lambda store: store.all())], as_json)


@owners.command("show")
def show_owner(name: Name, as_json: JsonFlag = False) -> None:
    """Show an owner with its keys and webhook URLs."""

    async def work(store: OwnerStore) -> dict[str, Any]:
        owner = await store.need(name)
        receivers = [receiver.model_dump() for receiver in await store.receivers(name)]
        facts = _owner_facts(owner)
        return facts | {"keys": await _keys_of(store, [owner]), "receivers": receivers}

    found = _run(work)
    if as_json:
        _print_json(found)
        return
    _print([{k: v for k, v in found.items() if not isinstance(v, list)}], as_json)
    _print(found["keys"], as_json)
    _print(found["receivers"], as_json)


@owners.command("delete")
def delete_owner(name: Name, as_json: JsonFlag = False) -> None:
    """Delete an owner with all its keys; its jobs stay."""
    _run(lambda store: store.delete(name))
    _say(f"owner {name} is deleted; its jobs belong to the next owner of this name")
    if as_json:
        _print_json({"owner": name, "deleted": True})


@owners.command("webhook")
def change_webhook(
    name: Name,
    rotate_secret: Annotated[
        bool, typer.Option("--rotate-secret", help="Make a new secret; the last one signs too.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="With --rotate-secret: the old secret ends now.")
    ] = False,
    url: Annotated[str, typer.Option(help="Register this URL; it may be a private address.")] = "",
    plain: Annotated[
        bool, typer.Option("--plain", help="It gets the secret itself as X-Webhook-Secret too.")
    ] = False,
    default: Annotated[
        bool, typer.Option("--default", help="It is told about jobs that name no webhook.")
    ] = False,
    remove_url: Annotated[str, typer.Option(help="Register this URL no more.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Change the webhook secret, or register the URL of a receiver.

    Example: stillreel owners webhook acme --url http://10.0.0.7/done --plain
    """
    from stillreel.errors import RequestRejected
    from stillreel.owners import (
        add_receiver,
        add_salt,
        new_salt,
        remove_receiver,
        webhook_secret,
    )

    if [rotate_secret, bool(url), bool(remove_url)].count(True) != 1:
        raise RequestRejected("give one of --rotate-secret, --url and --remove-url")

    async def rotate(store: OwnerStore) -> str:
        if not now:
            await store.webhook_secrets(name)  # that the last one can sign too
        salt = new_salt(store.secret, name)
        await store.change(
            name,
            lambda owner: add_salt(owner, salt, keep_previous=not now),
            "webhook.secret_rotated",
        )
        return webhook_secret(store.secret, name, salt)

    async def register(store: OwnerStore) -> Owner:
        if remove_url:
            return await store.change(
                name, lambda owner: remove_receiver(owner, remove_url), "webhook.url_removed"
            )
        return await store.change(
            name,
            lambda owner: add_receiver(owner, url, plain=plain, default=default),
            "webhook.url_registered",
        )

    if rotate_secret:
        _print_webhook_secret(as_json, name, _run(rotate))
    else:
        _print([receiver.model_dump() for receiver in _run(register).receivers], as_json)


@keys.command("create")
def create_key(
    owner: Name,
    scope: Annotated[
        list[str] | None, typer.Option(help="generate, read or admin; may be given again.")
    ] = None,
    expires: Expires = None,
    max_priority: MaxPriority = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and print it; it may generate and read unless --scope says otherwise.

    Example: stillreel keys create acme --scope generate --expires 90
    """
    from stillreel.owners import add_key, make_key, new_key_text

    at, text = datetime.now(UTC), new_key_text()
    key = make_key(
        text,
        scopes=scope or ("generate", "read"),
        at=at,
        expires=at + timedelta(days=expires) if expires else None,
        ceiling=max_priority or "high",
    )
    _run(
        lambda store: store.change(
            owner, lambda it: add_key(it, key, at=at), "key.created", key=key.id
        )
    )
    _print_secret(as_json, "key", text, owner=owner, id=key.id)


@keys.command("list")
def list_keys(
    owner: Annotated[str, typer.Argument(help="Only this owner's.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List keys, never their secrets."""

    async def work(store: OwnerStore) -> list[dict[str, Any]]:
        return await _keys_of(store, [await store.need(owner)] if owner else await store.all())

    _print(_run(work), as_json)


@keys.command("revoke")
def revoke(key_id: KeyId, as_json: JsonFlag = False) -> None:
    """End a key now; the API refuses it within 5 seconds."""
    from stillreel.owners import revoke_key

    async def work(store: OwnerStore) -> Owner:
        name = (await store.owner_of(key_id)).name
        return await store.change(
            name, lambda owner: revoke_key(owner, key_id), "key.revoked", key=key_id
        )

    owner = _run(work).name
    _say(f"key {key_id} of {owner} is revoked")
    if as_json:
        _print_json({"owner": owner, "id": key_id, "revoked": True})


@keys.command("rotate")
def rotate(
    key_id: KeyId,
    now: Annotated[bool, typer.Option("--now", help="The old key ends now.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a key that takes another's place and print it; the old one works for 24 hours more."""
    from stillreel.owners import GRACE, new_key_text, parse_key, replace_key

    at, text = datetime.now(UTC), new_key_text()
    new_id = (parse_key(text) or ("",))[0]
    grace = timedelta(0) if now else GRACE

    async def work(store: OwnerStore) -> Owner:
        return await store.change(
            (await store.owner_of(key_id)).name,
            lambda owner: replace_key(owner, key_id, text, at=at, grace=grace),
            "key.rotated",
            key=new_id,
            replaced=key_id,
        )

    owner = _run(work)
    old = owner.key(key_id)
    _say(f"key {key_id} is valid until {_time(old.expires if old else at)}")
    _print_secret(as_json, "key", text, owner=owner.name, id=new_id, replaces=key_id)


def _with(
    owner: Owner, jobs_waiting: int | None, jobs_per_day: int | None, max_priority: str | None
) -> Owner:
    from stillreel.owners import changed

    given = {"jobs_waiting": jobs_waiting, "jobs_per_day": jobs_per_day}
    quota = changed(owner.quota, **{k: v for k, v in given.items() if v is not None})
    return changed(owner, quota=quota, ceiling=max_priority or owner.ceiling)


def _run(work: Callable[[OwnerStore], Awaitable[T]]) -> T:
    """What `work` gives with the owners of the installation."""
    import anyio

    from stillreel import cli
    from stillreel.owner_store import OwnerStore
    from stillreel.prefect_env import apply, common_env

    settings = cli._settings()
    cli._need_api()
    apply(common_env(settings))
    from stillreel.audit import audit, auditing
    from stillreel.prefect_api import connect

    async def main() -> T:
        api = connect(patience=10.0)
        try:
            async with auditing(api):
                return await work(OwnerStore(api, settings, audit=audit))
        finally:
            await api.aclose()

    return anyio.run(main)


async def _keys_of(store: OwnerStore, found: list[Owner]) -> list[dict[str, Any]]:
    rows = [_key_facts(owner.name, key) for owner in found for key in owner.keys]
    first = store.environment
    if first and any(owner.name == first.owner for owner in found):
        rows.insert(
            0,
            {
                "id": first.key_id,
                "owner": first.owner,
                "scopes": sorted(first.scopes),
                "max_priority": "high",
                "created": "",
                "expires": "",
                "replaced_by": "",
                "valid": True,
            },
        )
    return rows


def _owner_facts(owner: Owner) -> dict[str, Any]:
    return {
        "name": owner.name,
        "max_priority": owner.ceiling,
        "jobs_waiting": owner.quota.jobs_waiting,
        "jobs_per_day": owner.quota.jobs_per_day,
        "keys": len(owner.keys),
        "receivers": len(owner.receivers),
    }


def _key_facts(owner: str, key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "owner": owner,
        "scopes": list(key.scopes),
        "max_priority": key.ceiling,
        "created": _time(key.created),
        "expires": _time(key.expires),
        "replaced_by": key.replaced_by,
        "valid": key.is_valid(datetime.now(UTC)),
    }


def _time(at: datetime | None) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else ""


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows as JSON, or as columns under their names."""
    if as_json:
        _print_json(rows)
        return
    if not rows:
        return
    lines = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(value) if isinstance(value, list) else str(value) or "-"


def _print_secret(as_json: bool, kind: str, secret: str, **facts: str) -> None:
    _say("this is printed once and cannot be shown again; keep it where secrets are kept")
    if as_json:
        _print_json({**facts, kind: secret})
        return
    typer.echo(secret)


def _print_webhook_secret(as_json: bool, owner: str, secret: str) -> None:
    _say("it holds for an API with the STILLREEL_SERVER_SECRET, or STILLREEL_HOME, of this command")
    _print_secret(as_json, "webhook_secret", secret, owner=owner)


def _print_json(value: Any) -> None:
    from stillreel import cli

    cli._print_json(value)


def _say(text: str) -> None:
    from stillreel import cli

    cli.err.print(text, markup=False, soft_wrap=True)
