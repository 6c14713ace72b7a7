"""Owners and keys: what is accepted, what a rotation does, what is stored and what never is."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from stillreel.errors import RequestRejected, SettingsInvalid
from stillreel.job import PRIORITIES, Priority
from stillreel.owner_store import KEY_FILE, first_key
from stillreel.owners import (
    GRACE,
    JSON_LIMIT,
    KEYS_LIMIT,
    SCOPES,
    ApiKey,
    Caller,
    Owner,
    Quota,
    Receiver,
    add_key,
    add_receiver,
    add_salt,
    changed,
    digest,
    from_variable,
    lower,
    make_key,
    make_owner,
    new_key_text,
    new_salt,
    parse_key,
    remove_receiver,
    replace_key,
    revoke_key,
    to_variable,
    variable_name,
    webhook_secret,
)
from stillreel.settings import get_settings
from stillreel.signing import standard_secret

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
SERVER_SECRET = b"s" * 32
KEY_ID, SECRET = "abcdefghij27", "A" * 42 + "_"
TEXT = f"sr_{KEY_ID}_{SECRET}"


def owner_with(*texts: str, **values: Any) -> Owner:
    owner = make_owner("acme")
    for text in texts:
        key = make_key(text, **{"scopes": ["generate", "read"], "at": AT} | values)
        owner = add_key(owner, key, at=AT)
    return owner


def ids(owner: Owner) -> list[str]:
    return [key.id for key in owner.keys]


def id_of(text: str) -> str:
    parsed = parse_key(text)
    assert parsed
    return parsed[0]


# --- the text of a key ------------------------------------------------------------------------


def test_new_keys_differ_and_have_32_random_bytes() -> None:
    texts = {new_key_text() for _ in range(50)}
    assert len(texts) == 50
    for text in texts:
        parsed = parse_key(text)
        assert parsed
        assert text == f"sr_{parsed[0]}_{parsed[1]}"
        assert len(base64.urlsafe_b64decode(parsed[1] + "=")) == 32


def test_a_secret_with_underscores_is_parsed_whole() -> None:
    assert parse_key(TEXT) == (KEY_ID, SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sr_",
        "sr__",
        TEXT.upper(),
        TEXT + "A",
        TEXT[:-1],
        TEXT + "\n",
        " " + TEXT,
        TEXT.replace("sr_", "sk_"),
        TEXT.replace("27_", "28_"),
        TEXT.replace("A", "\u0410"),
        TEXT.replace("A", "/", 1),
        "sr_" + "a" * 10_000,
        "\x00",
        "\ud800",
    ],
)
def test_any_other_text_is_no_key(text: str) -> None:
    assert parse_key(text) is None


def test_no_secret_is_kept() -> None:
    key = make_key(TEXT, scopes=["read"], at=AT)
    owner = add_key(make_owner("acme"), key, at=AT)
    assert key.sha256 == hashlib.sha256(SECRET.encode()).hexdigest() == digest(SECRET).hex()
    assert SECRET not in json.dumps(to_variable(owner))
    for text in (repr(key), repr(owner)):
        assert SECRET not in text
        assert key.sha256 not in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["write"]}, "'generate', 'read' or 'admin'"),
        ({"ceiling": "urgent"}, "'high', 'default' or 'backlog'"),
        ({"expires": datetime(2027, 1, 1)}, "timezone"),  # noqa: DTZ001
    ],
)
def test_a_key_that_cannot_be_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestRejected, match=words):
        make_key(TEXT, **{"scopes": ["read"], "at": AT} | values)


def test_scopes_are_a_set() -> None:
    key = make_key(TEXT, scopes=["read", "generate", "read"], at=AT)
    assert key.scopes == ("generate", "read")


# --- expiry, revocation, rotation -------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "valid"),
    [(AT, True), (AT + DAY - SECOND, True), (AT + DAY, False), (AT + 2 * DAY, False)],
)
def test_a_key_ends_when_it_expires(at: datetime, valid: bool) -> None:
    assert make_key(TEXT, scopes=["read"], at=AT, expires=AT + DAY).is_valid(at) is valid


def test_a_key_without_expiry_does_not_end() -> None:
    assert make_key(TEXT, scopes=["read"], at=AT).is_valid(AT + 36500 * DAY)


def test_revoking_takes_one_key_and_leaves_the_others() -> None:
    one, two = new_key_text(), new_key_text()
    owner = owner_with(one, two)
    assert ids(revoke_key(owner, id_of(one))) == [id_of(two)]
    assert ids(owner) == [id_of(one), id_of(two)]


def test_both_keys_are_valid_for_the_grace_after_a_rotation() -> None:
    old, new = new_key_text(), new_key_text()
    owner = replace_key(owner_with(old, scopes=["admin"]), id_of(old), new, at=AT)
    before, after = owner.keys
    assert (before.id, after.id) == (id_of(old), id_of(new))
    assert before.is_valid(AT + GRACE - SECOND)
    assert not before.is_valid(AT + GRACE)
    assert after.is_valid(AT + 365 * DAY)
    assert after.scopes == ("admin",)


def test_a_rotation_without_grace_leaves_the_new_key_alone() -> None:
    old, new = new_key_text(), new_key_text()
    owner = replace_key(owner_with(old), id_of(old), new, at=AT, grace=timedelta(0))
    assert ids(owner) == [id_of(new)]


def test_a_rotation_gives_neither_more_time_nor_more_rights() -> None:
    old, new = new_key_text(), new_key_text()
    owner = owner_with(old, expires=AT + timedelta(hours=1), ceiling="backlog")
    before, after = replace_key(owner, id_of(old), new, at=AT).keys
    assert before.expires == after.expires == AT + timedelta(hours=1)
    assert (after.scopes, after.ceiling) == (("generate", "read"), "backlog")


def test_a_key_that_was_replaced_cannot_be_rotated_again() -> None:
    old, new = new_key_text(), new_key_text()
    owner = replace_key(owner_with(old), id_of(old), new, at=AT)
    with pytest.raises(RequestRejected, match=f"replaced by {id_of(new)}"):
        replace_key(owner, id_of(old), new_key_text(), at=AT)


@pytest.mark.parametrize(("key_id", "at"), [(KEY_ID, AT), ("", AT + 2 * DAY)])
def test_a_key_that_is_not_valid_cannot_be_rotated(key_id: str, at: datetime) -> None:
    old = new_key_text()
    owner = owner_with(old, expires=AT + DAY)
    with pytest.raises(RequestRejected, match="no valid key"):
        replace_key(owner, key_id or id_of(old), new_key_text(), at=at)


def test_ten_valid_keys_are_enough_and_expired_ones_make_room() -> None:
    texts = [new_key_text() for _ in range(KEYS_LIMIT)]
    owner = owner_with(*texts, expires=AT + DAY)
    more = make_key(TEXT, scopes=["read"], at=AT)
    with pytest.raises(RequestRejected, match="10 valid keys, 10 at most"):
        add_key(owner, more, at=AT)
    assert ids(add_key(owner, more, at=AT + DAY)) == [KEY_ID]


# --- priority ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("high", "high", "high"),
        ("high", "default", "default"),
        ("backlog", "high", "backlog"),
        ("default", "backlog", "backlog"),
    ],
)
def test_the_lower_of_two_priorities(one: Priority, other: Priority, expected: Priority) -> None:
    assert lower(one, other) == expected


@pytest.mark.parametrize(
    ("ceiling", "may"),
    [
        ("high", ["high", "default", "backlog"]),
        ("default", ["default", "backlog"]),
        ("backlog", ["backlog"]),
    ],
)
def test_a_caller_may_use_its_ceiling_and_what_is_below(ceiling: Priority, may: list[str]) -> None:
    caller = Caller("acme", KEY_ID, frozenset(["read"]), ceiling)
    assert [priority for priority in PRIORITIES if caller.may_use(priority)] == may
    assert caller.may("read")
    assert not caller.may("admin")


# --- webhooks ---------------------------------------------------------------------------------


def test_a_webhook_secret_signs_and_does_not_stand_in_the_variable() -> None:
    salt = new_salt(SERVER_SECRET, "acme")
    secret = webhook_secret(SERVER_SECRET, "acme", salt)
    assert secret == webhook_secret(SERVER_SECRET, "acme", salt)
    assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"))) <= 64
    assert standard_secret(secret) == secret
    signature = Webhook(secret).sign("id", AT, "body")
    assert Webhook(secret).sign("id", AT, "body") == signature
    assert secret not in json.dumps(to_variable(add_salt(make_owner("acme"), salt)))


def test_each_owner_and_each_rotation_has_a_secret_of_its_own() -> None:
    made = {
        webhook_secret(SERVER_SECRET, name, new_salt(SERVER_SECRET, name))
        for name in ("acme", "acme", "acm", "other")
    }
    assert len(made) == 4


@pytest.mark.parametrize(
    ("secret", "owner", "end"),
    [(b"t" * 32, "acme", None), (SERVER_SECRET, "other", None), (SERVER_SECRET, "acme", 20)],
    ids=["other server secret", "other owner", "cut off"],
)
def test_a_salt_that_is_not_ours_is_not_signed_with(
    secret: bytes, owner: str, end: int | None
) -> None:
    salt = new_salt(SERVER_SECRET, "acme")[:end]
    with pytest.raises(SettingsInvalid, match="another STILLREEL_SERVER_SECRET"):
        webhook_secret(secret, owner, salt)


def test_two_webhook_secrets_at_most_the_newest_first() -> None:
    salts = [new_salt(SERVER_SECRET, "acme") for _ in range(3)]
    owner = make_owner("acme")
    for salt in salts:
        owner = add_salt(owner, salt)
    assert owner.salts == (salts[2], salts[1])
    assert add_salt(owner, salts[0], keep_previous=False).salts == (salts[0],)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a.example",
        "a.example/done",
        "//a.example",
        "http://",
        "https://user:pass@a.example",
        "https://a.example/#part",
        "https://a.example/a b",
        "https://a.example/\n",
        "https://b\u00fccher.example",
        "https://a.example/" + "a" * 500,
        "http://[::1",
    ],
)
def test_a_url_that_cannot_be_called_is_not_registered(url: str) -> None:
    with pytest.raises(RequestRejected, match="url"):
        add_receiver(make_owner("acme"), url)


def test_a_private_url_may_be_registered_and_one_is_the_default() -> None:
    owner = add_receiver(make_owner("acme"), "http://10.0.0.7/a", plain=True, default=True)
    owner = add_receiver(owner, "http://10.0.0.7/b", default=True)
    assert owner.receivers == (
        Receiver(url="http://10.0.0.7/a", plain=True),
        Receiver(url="http://10.0.0.7/b", default=True),
    )
    owner = add_receiver(owner, "http://10.0.0.7/a")
    assert not owner.receivers[0].plain
    assert len(remove_receiver(owner, "http://10.0.0.7/b").receivers) == 1


# --- the stored form --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "-a", "_a", "A", "a b", "a.b", "a/b", "..", "a" * 41, "a\n", "\u00e4", "a\x00"]
)
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(RequestRejected, match="1 to 40"):
        make_owner(name)
    with pytest.raises(RequestRejected, match="1 to 40"):
        variable_name(name)


def test_names_that_look_alike_have_variables_of_their_own() -> None:
    assert len({variable_name(name) for name in ("a-b", "a_b", "ab", "a--b")}) == 4


MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
KEYS = st.builds(
    ApiKey,
    id=st.from_regex(r"[a-z2-7]{12}", fullmatch=True),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    scopes=st.lists(st.sampled_from(SCOPES), min_size=1).map(tuple),
    created=MOMENTS,
    expires=st.none() | MOMENTS,
    ceiling=st.sampled_from(PRIORITIES),
    replaced_by=st.just("") | st.from_regex(r"[a-z2-7]{12}", fullmatch=True),
)
RECEIVERS = st.builds(
    Receiver,
    url=st.from_regex(r"https?://[a-z]{1,9}\.example(/[!-\"$-~]{0,20})?", fullmatch=True),
    plain=st.booleans(),
    default=st.booleans(),
)
OWNERS = st.builds(
    Owner,
    name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,39}", fullmatch=True),
    ceiling=st.sampled_from(PRIORITIES),
    quota=st.builds(
        Quota,
        jobs_waiting=st.integers(0, 1_000_000_000),
        jobs_per_day=st.integers(0, 1_000_000_000),
    ),
    keys=st.lists(KEYS, max_size=KEYS_LIMIT).map(tuple),
    salts=st.lists(st.just("ab" * 12), max_size=2).map(tuple),
    receivers=st.lists(RECEIVERS, max_size=10).map(tuple),
)


@given(owner=OWNERS)
def test_what_is_stored_is_what_is_read(owner: Owner) -> None:
    value = to_variable(owner)
    assert from_variable(variable_name(owner.name), json.loads(json.dumps(value))) == owner


def test_an_owner_with_all_its_keys_fits() -> None:
    owner = owner_with(*(new_key_text() for _ in range(KEYS_LIMIT)), expires=AT + DAY)
    assert len(json.dumps(to_variable(owner))) < JSON_LIMIT / 2


def json_of(owner: Owner) -> str:
    value = owner.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    return json.dumps(value, separators=(",", ":"))


def owner_of(size: int) -> Owner:
    """An owner whose variable has this many characters of JSON."""
    owner = owner_with(*(new_key_text() for _ in range(KEYS_LIMIT)))
    for number in range(7):
        owner = add_receiver(owner, f"https://a.example/{number}{'a' * 450}")
    *others, last = owner.receivers
    longer = changed(last, url=last.url + "a" * (size - len(json_of(owner))))
    return changed(owner, receivers=(*others, longer))


def test_an_owner_is_refused_clearly_from_the_first_character_too_many() -> None:
    assert len(json_of(owner_of(JSON_LIMIT))) == JSON_LIMIT
    assert to_variable(owner_of(JSON_LIMIT))
    with pytest.raises(RequestRejected, match=r"acme would take 5001 characters.*5000"):
        to_variable(owner_of(JSON_LIMIT + 1))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        7,
        [],
        {"keys": 1},
        {"quota": {"jobs_waiting": -1}},
        {"quota": {"jobs_waiting": "many"}},
        {"unknown": 1},
        {"name": "other"},
        {"keys": [{"id": "x"}]},
        {"receivers": [{"url": "ftp://a"}]},
    ],
)
def test_a_variable_that_holds_no_owner_is_named_and_not_guessed_at(value: Any) -> None:
    with pytest.raises(SettingsInvalid, match="stillreel_owner_acme does not hold an owner"):
        from_variable("stillreel_owner_acme", value)


def test_a_value_cannot_be_changed_into_what_cannot_be() -> None:
    with pytest.raises(RequestRejected, match="ceiling"):
        changed(make_owner("acme"), ceiling="urgent")
    with pytest.raises(RequestRejected, match="jobs_per_day"):
        make_owner("acme", jobs_per_day=-1)


# --- the key that `up` makes ------------------------------------------------------------------


def test_the_first_key_is_made_once_and_for_this_user_only(tmp_path: Path) -> None:
    text, new = first_key(get_settings(), tmp_path)
    assert new
    assert parse_key(text)
    assert first_key(get_settings(), tmp_path) == (text, False)
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_a_configured_key_is_the_first_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_SECRET_KEY", "chosen by me")
    assert first_key(get_settings(), tmp_path) == ("chosen by me", False)
    assert not list(tmp_path.iterdir())


def test_a_key_file_that_cannot_be_used_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("\n")
    with pytest.raises(SettingsInvalid, match=r"api\.key is empty"):
        first_key(get_settings(), tmp_path)
    with pytest.raises(SettingsInvalid, match="cannot be used"):
        first_key(get_settings(), tmp_path / "missing")
