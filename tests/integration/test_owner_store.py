"""Owners in a real Prefect server: seen by every process, known while Prefect is away."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import typer
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness
from typer.testing import CliRunner, Result

from stillreel import cli_keys, cli_owners
from stillreel.errors import (
    PrefectRefused,
    PrefectUnavailable,
    RequestRejected,
    SettingsInvalid,
    StillreelError,
)
from stillreel.owner_store import ENVIRONMENT, OwnerStore
from stillreel.owners import (
    JSON_LIMIT,
    KEYS_LIMIT,
    VARIABLE,
    Owner,
    Receiver,
    add_key,
    add_receiver,
    add_salt,
    changed,
    make_key,
    make_owner,
    new_key_text,
    new_salt,
    parse_key,
    revoke_key,
)
from stillreel.prefect_api import PrefectApi, connect
from stillreel.prefect_lock import shared_lock
from stillreel.settings import get_settings

pytestmark = pytest.mark.anyio

CHOSEN = "chosen by the operator"
HIDDEN = "whsec_" + "aGlkZGVu" * 5


class Audit:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, action: str, **facts: Any) -> None:
        self.told.append((action, facts))


class Door:
    """The address of the Prefect server as a store sees it; shut, nothing gets through."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        assert self._server
        self._server.close()
        for writer in list(self._open):
            writer.close()
        await self._server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._to)
        self._open |= {writer, back}
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._open -= {writer, back}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return
    finally:
        writer.close()


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
async def api(prefect_server: None, anyio_backend: str) -> AsyncIterator[PrefectApi]:
    api = connect(patience=20.0)
    yield api
    await api.aclose()


@asynccontextmanager
async def behind_a_door() -> AsyncIterator[tuple[Door, PrefectApi]]:
    url = urlsplit(str(get_current_settings().api.url))
    door = Door(url.hostname or "", url.port or 0)
    await door.open()
    api = PrefectApi(f"http://127.0.0.1:{door.port}{url.path}", patience=1.5)
    try:
        yield door, api
    finally:
        await api.aclose()
        await door.shut()


@pytest.fixture
def name() -> str:
    """An owner's name that no other test has."""
    return f"o-{uuid4().hex[:8]}_x"


def store_on(api: PrefectApi, *, fresh: float = 0.0, audit: Audit | None = None) -> OwnerStore:
    return OwnerStore(api, get_settings(), fresh=fresh, audit=audit or Audit())


async def give_key(store: OwnerStore, name: str, **values: Any) -> str:
    """The text of a new key of this owner."""
    text, at = new_key_text(), datetime.now(UTC)
    key = make_key(text, **{"scopes": ["read"], "at": at} | values)
    await store.change(name, lambda owner: add_key(owner, key, at=at), "key.created", key=key.id)
    return text


def id_of(text: str) -> str:
    return (parse_key(text) or ("",))[0]


async def test_a_key_is_its_owners(api: PrefectApi, name: str) -> None:
    store = store_on(api)
    await store.create(make_owner(name, ceiling="default"))
    one = await give_key(store, name, scopes=["generate", "read"])
    two = await give_key(store, name, ceiling="backlog")
    found = [await store.find(text) for text in (one, two)]
    assert [(c.owner, c.key_id, c.scopes, c.ceiling) for c in found if c] == [
        (name, id_of(one), {"generate", "read"}, "default"),
        (name, id_of(two), {"read"}, "backlog"),
    ]


async def test_what_is_not_a_valid_key_is_nobodys(api: PrefectApi, name: str) -> None:
    store = store_on(api)
    await store.create(make_owner(name))
    good, other = await give_key(store, name), new_key_text()
    past = datetime.now(UTC) - timedelta(seconds=5)
    expired = await give_key(store, name, expires=past)
    wrong_secret = f"sr_{id_of(good)}_{other[-43:]}"
    for text in ("", other, wrong_secret, expired, good + "x", "\x00", "\ud800", "a" * 10_000):
        assert await store.find(text) is None
    assert await store.find(good)


async def test_another_process_sees_a_revocation(api: PrefectApi, name: str) -> None:
    here, there = store_on(api), store_on(api)
    await here.create(make_owner(name))
    text = await give_key(here, name)
    assert await there.find(text)
    await here.change(name, lambda owner: revoke_key(owner, id_of(text)), "key.revoked")
    assert await there.find(text) is None
    assert await here.find(text) is None


async def test_a_known_key_costs_no_call_while_it_is_fresh(api: PrefectApi, name: str) -> None:
    store = store_on(api, fresh=3600)
    await store.create(make_owner(name))
    text = await give_key(store, name)
    assert await store.find(text)
    spent = api.spent
    assert all([await store.find(text) for _ in range(100)])
    assert await store.find(f"sr_{id_of(text)}_{'A' * 43}") is None
    assert api.spent == spent


async def test_many_callers_at_once_read_the_owners_once(api: PrefectApi, name: str) -> None:
    maker = store_on(api)
    await maker.create(make_owner(name))
    text = await give_key(maker, name)
    async with behind_a_door() as (_, watched):
        store = store_on(watched, fresh=3600)
        calls = _count(watched)
        assert all(await asyncio.gather(*(store.find(text) for _ in range(50))))
        assert len(calls) == 1


def _count(api: PrefectApi) -> list[str]:
    """The requests from now on."""
    calls: list[str] = []

    async def note(request: Any) -> None:
        calls.append(request.url.path)

    api._client.event_hooks["request"].append(note)
    return calls


async def test_changes_by_this_store_are_seen_at_once(api: PrefectApi, name: str) -> None:
    store = store_on(api, fresh=3600)
    assert await store.get(name) is None
    await store.create(make_owner(name))
    assert await store.get(name)
    text = await give_key(store, name)
    assert await store.find(text)
    await store.delete(name)
    assert await store.get(name) is None
    assert await store.find(text) is None


async def test_no_change_is_lost_between_two_processes(api: PrefectApi, name: str) -> None:
    other = connect(patience=20.0)
    stores = [store_on(api), store_on(other)]
    await stores[0].create(make_owner(name))
    texts = await asyncio.gather(*(give_key(store, name) for store in stores for _ in range(4)))
    await other.aclose()
    owner = await stores[0].need(name)
    assert {key.id for key in owner.keys} == {id_of(text) for text in texts}


async def test_a_lock_lets_one_in_at_a_time(api: PrefectApi, name: str) -> None:
    inside, most = 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with shared_lock(api, name):
            inside += 1
            most = max(most, inside)
            await api.ask("/variables/count", {})
            inside -= 1

    await asyncio.gather(*(work() for _ in range(6)))
    assert most == 1


async def test_the_lock_of_a_dead_holder_is_taken_over(api: PrefectApi, name: str) -> None:
    await api.post("/variables/", {"name": name, "value": "of a process that is no more"})
    async with shared_lock(api, name, lease=0.3):
        held = await api.get(f"/variables/name/{name}")
        assert held["value"] != "of a process that is no more"
        with pytest.raises(PrefectUnavailable, match="Another process"):
            async with shared_lock(api, name, lease=60, patience=0.2):
                raise AssertionError("two are inside")
    assert await api.ask("/variables/filter", {"variables": {"name": {"any_": [name]}}}) == []


async def test_who_comes_back_late_does_not_end_the_lock_of_the_next(
    api: PrefectApi, name: str
) -> None:
    async with shared_lock(api, name):
        first = await api.get(f"/variables/name/{name}")
        await api.delete(f"/variables/{first['id']}")
        next_one = await api.post("/variables/", {"name": name, "value": "the next"})
    assert (await api.get(f"/variables/name/{name}"))["id"] == next_one["id"]


async def test_an_owner_is_made_once_and_only_what_is_there_is_changed(
    api: PrefectApi, name: str
) -> None:
    store = store_on(api)
    await store.create(make_owner(name))
    with pytest.raises(RequestRejected, match="already"):
        await store.create(make_owner(name, jobs_per_day=1))
    assert (await store.need(name)).quota.jobs_per_day == 0
    await store.delete(name)
    for call in (
        store.delete(name),
        store.need(name),
        store.change(name, lambda owner: owner, "owner.changed"),
    ):
        with pytest.raises(RequestRejected, match="there is no owner"):
            await call
    with pytest.raises(RequestRejected, match="no key"):
        await store.owner_of("abcdefghij27")
    with pytest.raises(RequestRejected, match="1 to 40"):
        await store.delete("../../flow_runs")


async def test_a_refused_change_changes_nothing(api: PrefectApi, name: str) -> None:
    audit = Audit()
    store = store_on(api, audit=audit)
    await store.create(make_owner(name))
    await give_key(store, name)
    before = await store.need(name)

    def too_long(owner: Owner) -> Owner:
        for number in range(10):
            owner = add_receiver(owner, f"https://a.example/{number}{'a' * 475}")
        return owner

    with pytest.raises(RequestRejected, match="5000"):
        await store.change(name, too_long, "webhook.url_registered")
    assert await store.need(name) == before
    assert [action for action, _ in audit.told] == ["owner.created", "key.created"]


async def test_prefect_takes_as_much_as_we_think(api: PrefectApi, name: str) -> None:
    def body(size: int) -> dict[str, Any]:
        value = {"a": "b" * (size - len('{"a":""}'))}
        return {"name": f"size-{name}-{size}", "value": value}

    await api.post("/variables/", body(JSON_LIMIT))
    with pytest.raises(PrefectRefused) as caught:
        await api.post("/variables/", body(JSON_LIMIT + 1))
    assert caught.value.status == 422


async def test_a_full_owner_is_stored_and_read_as_it_was(api: PrefectApi, name: str) -> None:
    store, at = store_on(api), datetime.now(UTC)
    owner = make_owner(name, ceiling="backlog", jobs_waiting=3, jobs_per_day=4)
    for _ in range(KEYS_LIMIT):
        key = make_key(
            new_key_text(), scopes=["read", "admin"], at=at, expires=at + timedelta(days=9)
        )
        owner = add_key(owner, key, at=at)
    owner = add_receiver(owner, "http://10.0.0.7/done?a=%20&b=ü".replace("ü", "%C3"), plain=True)
    await store.create(owner)
    assert await store_on(api).get(name) == owner
    assert owner in await store.all()


async def test_more_owners_than_prefect_gives_at_once(api: PrefectApi, name: str) -> None:
    for number in range(201):
        await api.post("/variables/", {"name": f"{VARIABLE}{name}-{number}", "value": {}})
    found = {owner.name for owner in await store_on(api).all()}
    assert {f"{name}-{number}" for number in range(201)} <= found
    for number in range(201):
        await api.delete(f"/variables/name/{VARIABLE}{name}-{number}")


async def test_variables_that_are_not_ours_are_left_alone(api: PrefectApi, name: str) -> None:
    await api.post("/variables/", {"name": f"my_{VARIABLE}{name}", "value": {}})
    await api.post("/variables/", {"name": f"stillreel-owner-{name}", "value": {}})
    assert name not in str(await store_on(api).all())


async def test_an_owner_that_someone_broke_keeps_no_other_out(
    api: PrefectApi, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_on(api)
    await store.create(make_owner(name))
    text = await give_key(store, name)
    await api.post("/variables/", {"name": f"{VARIABLE}{name}-broken", "value": {"keys": 7}})
    assert await store.find(text)
    assert await store.find(text)
    assert sum(f"{name}-broken does not hold" in line for line in caplog.messages) == 1
    with pytest.raises(SettingsInvalid, match="does not hold an owner"):
        await store.change(f"{name}-broken", lambda owner: owner, "owner.changed")
    await store.delete(f"{name}-broken")


# --- the environment --------------------------------------------------------------------------


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """The first owner, with everything that the environment can give it."""
    monkeypatch.setenv("API_KEY", f" {CHOSEN}\n")
    monkeypatch.setenv("STILLREEL_API_OWNER", name)
    monkeypatch.setenv("WEBHOOK_SECRET", HIDDEN)
    monkeypatch.setenv("STILLREEL_WEBHOOK_SECRET_PREVIOUS", "the one before")
    monkeypatch.setenv("STILLREEL_WEBHOOK_URL", "http://10.0.0.7/done")
    monkeypatch.setenv("STILLREEL_WEBHOOK_PLAIN_URLS", "http://10.0.0.8/done")
    return name


async def test_the_environment_makes_the_first_owner(api: PrefectApi, first: str) -> None:
    store = store_on(api)
    caller = await store.find(CHOSEN)
    assert caller
    assert (caller.owner, caller.key_id, caller.ceiling) == (first, ENVIRONMENT, "high")
    assert caller.scopes == {"generate", "read", "admin"}
    assert await store.find(f" {CHOSEN}") is None
    assert first in [owner.name for owner in await store.all()]
    assert await store.webhook_secrets(first) == [HIDDEN, "the one before"]
    assert await store.receivers(first) == (
        Receiver(url="http://10.0.0.7/done", default=True),
        Receiver(url="http://10.0.0.8/done", plain=True),
    )
    assert await store.webhook_secrets("") == [HIDDEN, "the one before"]


async def test_the_first_owner_has_what_is_stored_besides(api: PrefectApi, first: str) -> None:
    store = store_on(api)
    text = await give_key(store, first)
    salt = new_salt(store.secret, first)
    await store.change(first, lambda owner: add_salt(owner, salt), "webhook.secret_rotated")
    await store.change(
        first,
        lambda owner: changed(
            add_receiver(owner, "https://a.example", default=True), ceiling="default"
        ),
        "webhook.url_registered",
    )
    callers = [await store.find(CHOSEN), await store.find(text)]
    assert [(c.owner, c.ceiling) for c in callers if c] == [(first, "default")] * 2
    assert len(await store.webhook_secrets(first)) == 3
    assert [r.url for r in await store.receivers(first) if r.default] == ["https://a.example"]
    stored = json.dumps(await api.get(f"/variables/name/{VARIABLE}{first}"))
    for secret in (CHOSEN, HIDDEN, text[-43:], *(await store.webhook_secrets(first))[2:]):
        assert secret not in stored
    await store.delete(first)
    assert await store.find(CHOSEN)
    assert await store.find(text) is None


async def test_another_owner_has_nothing_of_the_environment(
    api: PrefectApi, first: str, name: str
) -> None:
    store, other = store_on(api), f"{name}-other"
    await store.create(make_owner(other))
    assert await store.webhook_secrets(other) == []
    assert await store.receivers(other) == ()


@pytest.mark.parametrize("key", ["", " ", "\n"])
async def test_an_empty_key_opens_nothing(
    api: PrefectApi, name: str, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("API_KEY", key)
    store = store_on(api)
    assert [await store.find(text) for text in ("", " ", key)] == [None] * 3


async def test_whether_there_is_any_key(
    api: PrefectApi, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in await api.ask("/variables/filter", {}):
        await api.delete(f"/variables/{variable['id']}")
    store = store_on(api)
    await store.create(make_owner(name))
    await give_key(store, name, expires=datetime.now(UTC) - timedelta(seconds=5))
    assert not await store.has_keys()
    text = await give_key(store, name)
    assert await store.has_keys()
    await store.change(name, lambda owner: revoke_key(owner, id_of(text)), "key.revoked")
    assert not await store.has_keys()


# --- Prefect away -----------------------------------------------------------------------------


async def test_known_keys_are_known_while_prefect_is_away(api: PrefectApi, name: str) -> None:
    maker = store_on(api)
    await maker.create(make_owner(name))
    text = await give_key(maker, name)
    async with behind_a_door() as (door, watched):
        store = store_on(watched)
        assert await store.find(text)
        await door.shut()
        assert await store.find(text)
        assert await store.find(f"sr_{id_of(text)}_{'A' * 43}") is None
        assert await store.find("no key at all") is None
        with pytest.raises(PrefectUnavailable):
            await store.find(new_key_text())
        with pytest.raises(PrefectUnavailable):
            await store.change(name, lambda owner: owner, "owner.changed")
        assert await store.get(name)
        later = await give_key(maker, name)
        await door.open()
        assert await store.find(later)


async def test_only_the_environments_key_is_known_where_prefect_never_answered(
    first: str, prefect_server: None
) -> None:
    async with behind_a_door() as (door, watched):
        await door.shut()
        store = store_on(watched, fresh=5)
        assert await store.has_keys()
        found = await asyncio.gather(*(store.find(CHOSEN) for _ in range(20)))
        assert {caller.owner for caller in found if caller} == {first}
        with pytest.raises(PrefectUnavailable):
            await store.find(new_key_text())
        with pytest.raises(PrefectUnavailable):
            await store.get(first)
        await door.open()


# --- the command line -------------------------------------------------------------------------


@pytest.fixture
def run(prefect_server: None) -> Iterator[Any]:
    """`run("keys", "list")` is the command line in this process."""
    root = typer.Typer()
    root.add_typer(cli_owners.owners, name="owners")
    root.add_typer(cli_keys.keys, name="keys")
    before = dict(os.environ)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(root, arguments)

    yield call
    os.environ.clear()
    os.environ.update(before)


def done(result: Result) -> str:
    assert result.exit_code == 0, (result.exception, result.stderr)
    return result.stdout.strip()


def refused(result: Result) -> str:
    assert isinstance(result.exception, StillreelError), result.output
    return result.exception.message


def test_the_life_of_a_key_on_the_command_line(run: Any, name: str) -> None:
    assert done(run("owners", "create", name, "--jobs-waiting", "5")).startswith("whsec_")
    text = done(run("keys", "create", name, "--scope", "read", "--expires", "30"))
    old = id_of(text)
    [listed] = json.loads(done(run("keys", "list", name, "--json")))
    assert (listed["id"], listed["scopes"], listed["valid"]) == (old, ["read"], True)
    made = json.loads(done(run("keys", "rotate", old, "--json")))
    assert (made["owner"], made["replaces"], made["id"]) == (name, old, id_of(made["key"]))
    assert "replaced by" in refused(run("keys", "rotate", old))
    done(run("keys", "revoke", old))
    assert "there is no key" in refused(run("keys", "revoke", old))
    now = done(run("keys", "rotate", made["id"], "--now"))
    listing = done(run("keys", "list", name))
    assert id_of(now) in listing
    assert made["id"] not in listing
    for secret in (text[-43:], made["key"][-43:], now[-43:]):
        assert secret not in listing
    done(run("owners", "delete", name))
    assert "there is no owner" in refused(run("keys", "list", name))


def test_an_owner_on_the_command_line(run: Any, name: str) -> None:
    first = json.loads(done(run("owners", "create", name, "--json")))["webhook_secret"]
    assert "already" in refused(run("owners", "create", name))
    done(run("owners", "set", name, "--jobs-per-day", "9", "--max-priority", "high"))
    done(run("owners", "webhook", name, "--url", "http://10.0.0.7/done", "--plain"))
    second = done(run("owners", "webhook", name, "--rotate-secret"))
    assert second.startswith("whsec_")
    assert second != first
    shown = run("owners", "show", name, "--json")
    facts = json.loads(done(shown))
    assert (facts["jobs_waiting"], facts["jobs_per_day"]) == (0, 9)
    assert (facts["max_priority"], facts["keys"]) == ("high", [])
    assert facts["receivers"] == [{"url": "http://10.0.0.7/done", "plain": True, "default": False}]
    assert first not in shown.output
    assert second not in shown.output
    assert name in done(run("owners", "list"))
    assert "10.0.0.7" not in done(
        run("owners", "webhook", name, "--remove-url", "http://10.0.0.7/done")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("owners", "create", "A b"), "1 to 40"),
        (("owners", "create", "ok", "--max-priority", "urgent"), "'high', 'default' or"),
        (("owners", "webhook", "ok"), "give one of"),
        (("owners", "webhook", "ok", "--rotate-secret", "--url", "http://a"), "give one of"),
        (("owners", "webhook", "default", "--url", "ftp://a"), "http"),
        (("owners", "show", "nobody"), "there is no owner 'nobody'"),
        (("keys", "create", "nobody"), "there is no owner 'nobody'"),
        (("keys", "create", "default", "--scope", "write"), "'generate', 'read' or 'admin'"),
        (("keys", "revoke", "environment"), "STILLREEL_API_KEY"),
        (("keys", "rotate", "../x"), "there is no key"),
    ],
)
def test_what_cannot_be_is_refused(run: Any, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(run(*arguments))


def test_the_environments_key_is_listed_without_its_text(run: Any, first: str) -> None:
    listed = done(run("keys", "list"))
    assert ENVIRONMENT in listed
    assert CHOSEN not in listed
