"""`stillreel keys`: with what owners use the API; all need PREFECT_API_URL.

A new key is printed once, alone on stdout; what there is to know about it, on stderr.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillreel.command import with_owners
from stillreel.terminal import JsonFlag, print_json, print_rows, print_secret, say

if TYPE_CHECKING:
    from stillreel.owner_store import OwnerStore
    from stillreel.owners import ApiKey, Owner

keys = typer.Typer(no_args_is_help=True, help="API keys of owners.")

OwnerName = Annotated[str, typer.Argument(help="The owner: a-z 0-9 _ -, 40 at most.")]
KeyId = Annotated[str, typer.Argument(help="The 12 characters between sr_ and the next _.")]
MaxPriority = Annotated[
    str | None, typer.Option(help="The best priority to be had: high, default or backlog.")
]
Expires = Annotated[int | None, typer.Option(min=1, max=36500, help="Days; none: never.")]


@keys.command("create")
def create_key(
    owner: OwnerName,
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
    with_owners(
        lambda store: store.change(
            owner, lambda it: add_key(it, key, at=at), "key.created", key=key.id
        )
    )
    print_secret(as_json, "key", text, owner=owner, id=key.id)


@keys.command("list")
def list_keys(
    owner: Annotated[str, typer.Argument(help="Only this owner's.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List keys, never their secrets.

    Example: stillreel keys list acme
    """

    async def work(store: OwnerStore) -> list[dict[str, Any]]:
        return await key_rows(store, [await store.need(owner)] if owner else await store.all())

    print_rows(with_owners(work), as_json)


@keys.command("revoke")
def revoke(key_id: KeyId, as_json: JsonFlag = False) -> None:
    """End a key now; the API refuses it within 5 seconds.

    Example: stillreel keys revoke abcdefgh2345
    """
    from stillreel.owners import revoke_key

    async def work(store: OwnerStore) -> Owner:
        name = (await store.owner_of(key_id)).name
        return await store.change(
            name, lambda owner: revoke_key(owner, key_id), "key.revoked", key=key_id
        )

    owner = with_owners(work).name
    say(f"key {key_id} of {owner} is revoked")
    if as_json:
        print_json({"owner": owner, "id": key_id, "revoked": True})


@keys.command("rotate")
def rotate(
    key_id: KeyId,
    now: Annotated[bool, typer.Option("--now", help="The old key ends now.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a key that takes another's place and print it; the old one works for 24 hours more.

    Example: stillreel keys rotate abcdefgh2345 --now
    """
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

    owner = with_owners(work)
    old = owner.key(key_id)
    say(f"key {key_id} is valid until {_time(old.expires if old else at)}")
    print_secret(as_json, "key", text, owner=owner.name, id=new_id, replaces=key_id)


async def key_rows(store: OwnerStore, owners: list[Owner]) -> list[dict[str, Any]]:
    """The keys of these owners without their secrets, for `print_rows`; the environment's first."""
    rows = [_key_facts(owner.name, key) for owner in owners for key in owner.keys]
    first = store.environment
    if first and any(owner.name == first.owner for owner in owners):
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
