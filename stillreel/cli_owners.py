"""`stillreel owners`: whom jobs belong to; all need PREFECT_API_URL.

A new webhook secret is printed once, alone on stdout; what there is to know about it, on stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillreel.cli_keys import MaxPriority, OwnerName, key_rows
from stillreel.command import with_owners
from stillreel.errors import RequestRejected
from stillreel.terminal import JsonFlag, print_json, print_rows, print_secret, say

if TYPE_CHECKING:
    from stillreel.owner_store import OwnerStore
    from stillreel.owners import Owner

owners = typer.Typer(no_args_is_help=True, help="Owners: whom jobs belong to.")

Waiting = Annotated[
    int | None, typer.Option(min=0, help="Jobs that may wait; 0: the installation's limit.")
]
PerDay = Annotated[
    int | None, typer.Option(min=0, help="Jobs in a day; 0: the installation's limit.")
]


@owners.command("create")
def create_owner(
    name: OwnerName,
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

    secret = with_owners(work)
    say(f"owner {name} is made; `stillreel keys create {name}` makes a key for it")
    _print_webhook_secret(as_json, name, secret)


@owners.command("set")
def set_owner(
    name: OwnerName,
    jobs_waiting: Waiting = None,
    jobs_per_day: PerDay = None,
    max_priority: MaxPriority = None,
    as_json: JsonFlag = False,
) -> None:
    """Change quota and priority of an owner; what is not given stays.

    Example: stillreel owners set acme --jobs-waiting 50
    """

    async def work(store: OwnerStore) -> Owner:
        return await store.change(
            name,
            lambda owner: _with(owner, jobs_waiting, jobs_per_day, max_priority),
            "owner.changed",
        )

    print_rows([_owner_facts(with_owners(work))], as_json)


@owners.command("list")
def list_owners(as_json: JsonFlag = False) -> None:
    """List all owners.

    Example: stillreel owners list
    """
    print_rows([_owner_facts(owner) for owner in with_owners(lambda store: store.all())], as_json)


@owners.command("show")
def show_owner(name: OwnerName, as_json: JsonFlag = False) -> None:
    """Show an owner with its keys and webhook URLs.

    Example: stillreel owners show acme --json
    """

    async def work(store: OwnerStore) -> dict[str, Any]:
        owner = await store.need(name)
        receivers = [receiver.model_dump() for receiver in await store.receivers(name)]
        facts = _owner_facts(owner)
        return facts | {"keys": await key_rows(store, [owner]), "receivers": receivers}

    found = with_owners(work)
    if as_json:
        print_json(found)
        return
    print_rows([{k: v for k, v in found.items() if not isinstance(v, list)}], as_json)
    print_rows(found["keys"], as_json)
    print_rows(found["receivers"], as_json)


@owners.command("delete")
def delete_owner(name: OwnerName, as_json: JsonFlag = False) -> None:
    """Delete an owner with all its keys; its jobs stay.

    Example: stillreel owners delete acme
    """
    with_owners(lambda store: store.delete(name))
    say(f"owner {name} is deleted; its jobs belong to the next owner of this name")
    if as_json:
        print_json({"owner": name, "deleted": True})


@owners.command("webhook")
def change_webhook(
    name: OwnerName,
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
        _print_webhook_secret(as_json, name, with_owners(rotate))
    else:
        print_rows([receiver.model_dump() for receiver in with_owners(register).receivers], as_json)


def _with(
    owner: Owner, jobs_waiting: int | None, jobs_per_day: int | None, max_priority: str | None
) -> Owner:
    from stillreel.owners import changed

    given = {"jobs_waiting": jobs_waiting, "jobs_per_day": jobs_per_day}
    quota = changed(owner.quota, **{k: v for k, v in given.items() if v is not None})
    return changed(owner, quota=quota, ceiling=max_priority or owner.ceiling)


def _owner_facts(owner: Owner) -> dict[str, Any]:
    return {
        "name": owner.name,
        "max_priority": owner.ceiling,
        "jobs_waiting": owner.quota.jobs_waiting,
        "jobs_per_day": owner.quota.jobs_per_day,
        "keys": len(owner.keys),
        "receivers": len(owner.receivers),
    }


def _print_webhook_secret(as_json: bool, owner: str, secret: str) -> None:
    say("it holds for an API with the STILLREEL_SERVER_SECRET, or STILLREEL_HOME, of this command")
    print_secret(as_json, "webhook_secret", secret, owner=owner)
