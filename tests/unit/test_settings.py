"""Settings: the names of both design documents, every mistake at once, no secret in any text."""

from __future__ import annotations

import pickle
from operator import attrgetter
from pathlib import Path
from typing import NoReturn

import pytest
from pydantic import SecretStr

from stillreel import settings_docs
from stillreel.errors import SettingsInvalid
from stillreel.settings import CONCERNS, Settings, get_settings, make_home

R2 = {
    "R2_BUCKET": "videos",
    "R2_ENDPOINT": "https://r2.example",
    "R2_ACCESS_KEY": "r2-id",
    "R2_SECRET_KEY": "r2-hidden",
}
S3 = {"S3_BUCKET": "videos"}
AWS_KEYS = {"AWS_ACCESS_KEY_ID": "aws-id", "AWS_SECRET_ACCESS_KEY": "aws-hidden"}


def configured(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return get_settings()


def mistakes(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsInvalid) as caught:
        configured(monkeypatch, environment)
    return [line for line in caught.value.message.splitlines() if line.startswith("  - ")]


def plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def test_nothing_configured_is_a_local_installation() -> None:
    settings = get_settings()
    assert settings.storage.kind == "local"
    assert settings.webhook.webhook_secret.get_secret_value() == ""
    assert settings.fetch.allow_addresses == ()
    assert settings.host.work_dir == settings.host.home / "work"


def test_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_settings()
    monkeypatch.setenv("STILLREEL_LIMIT", "7")
    assert get_settings() is first


@pytest.mark.parametrize(
    ("name", "field", "rest"),
    [
        pytest.param(name, field, rest, id=name)
        for name, field, rest in [
            ("R2_BUCKET", "storage.r2_bucket", R2),
            ("R2_ENDPOINT", "storage.r2_endpoint", R2),
            ("R2_ACCESS_KEY", "storage.r2_access_key", R2),
            ("R2_SECRET_KEY", "storage.r2_secret_key", R2),
            ("R2_PUBLIC_URL", "storage.r2_public_url", R2),
            ("S3_BUCKET", "storage.s3_bucket", {}),
            ("S3_REGION", "storage.s3_region", S3),
            ("S3_ENDPOINT", "storage.s3_endpoint", S3),
            ("AWS_REGION", "storage.s3_region", {}),
            ("AWS_DEFAULT_REGION", "storage.s3_region", {}),
            ("AWS_ACCESS_KEY_ID", "storage.s3_access_key_id", AWS_KEYS),
            ("AWS_SECRET_ACCESS_KEY", "storage.s3_secret_access_key", AWS_KEYS),
            ("MODEL_PATH", "inference.model_path", {}),
            ("WEBHOOK_SECRET", "webhook.webhook_secret", {}),
        ]
    ],
)
def test_names_of_the_design_documents_work(
    monkeypatch: pytest.MonkeyPatch, name: str, field: str, rest: dict[str, str]
) -> None:
    settings = configured(monkeypatch, {**rest, name: "the-value"})
    assert plain(attrgetter(field)(settings)) == "the-value"


def test_our_own_name_wins_over_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"AWS_REGION": "theirs", "S3_REGION": "shorter", "STILLREEL_S3_REGION": "ours"}
    both |= S3
    assert configured(monkeypatch, both).storage.s3_region == "ours"


@pytest.mark.parametrize("name", ["STILLREEL_LIMIT", "WEBHOOK_SECRET", "S3_BUCKET"])
def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    unset = get_settings()
    get_settings.cache_clear()
    assert configured(monkeypatch, {name: ""}) == unset


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        pytest.param({}, "local", id="nothing"),
        pytest.param({"STILLREEL_STORAGE_DIR": "/srv/videos"}, "local", id="directory"),
        pytest.param({"S3_BUCKET": "videos"}, "s3", id="s3 with the machine's role"),
        pytest.param({"S3_BUCKET": "videos", **AWS_KEYS}, "s3", id="s3 with keys"),
        pytest.param(R2, "r2", id="r2"),
        pytest.param({**R2, **AWS_KEYS}, "r2", id="r2 beside keys of AWS for other things"),
    ],
)
def test_storage_is_what_is_configured(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], kind: str
) -> None:
    assert configured(monkeypatch, environment).storage.kind == kind


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        pytest.param({"S3_BUCKET": "videos", **R2}, {"S3_BUCKET", "R2_BUCKET"}, id="s3 and r2"),
        pytest.param(
            {"STILLREEL_STORAGE_DIR": "/srv", "S3_BUCKET": "videos"},
            {"STILLREEL_STORAGE_DIR", "S3_BUCKET"},
            id="directory and s3",
        ),
        pytest.param(
            {"STILLREEL_STORAGE_DIR": "/srv", **R2},
            {"STILLREEL_STORAGE_DIR", "R2_BUCKET"},
            id="directory and r2",
        ),
        pytest.param(
            {"S3_BUCKET": "videos", "R2_SECRET_KEY": "r2-hidden"},
            {"S3_BUCKET", "R2_BUCKET"},
            id="s3 and a part of r2",
        ),
    ],
)
def test_two_storages_at_once_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: set[str]
) -> None:
    (line,) = mistakes(monkeypatch, environment)
    storages = ("STILLREEL_STORAGE_DIR", "S3_BUCKET", "R2_BUCKET")
    assert {name for name in storages if name in line} == named


@pytest.mark.parametrize("given", list(R2))
def test_a_part_of_r2_is_refused_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (line,) = mistakes(monkeypatch, {given: R2[given]})
    assert {name for name in R2 if name in line} == set(R2) - {given}


@pytest.mark.parametrize("given", list(AWS_KEYS))
def test_half_a_pair_of_s3_keys_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    (line,) = mistakes(monkeypatch, {"S3_BUCKET": "videos", given: AWS_KEYS[given]})
    assert all(name in line for name in AWS_KEYS)


@pytest.mark.parametrize(
    "given", ["S3_ENDPOINT", "STILLREEL_S3_REGION", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"]
)
def test_s3_without_a_bucket_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    (line,) = mistakes(monkeypatch, {given: "s3-hidden"})
    assert "S3_BUCKET" in line
    assert given.removeprefix("STILLREEL_") in line
    assert "hidden" not in line


def test_what_aws_itself_reads_asks_for_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1", **AWS_KEYS}
    assert configured(monkeypatch, theirs).storage.kind == "local"


@pytest.mark.parametrize("secret", ["whsec_!!!", "whsec_", " blank", "line\nbreak"])
@pytest.mark.parametrize("name", ["WEBHOOK_SECRET", "WEBHOOK_SECRET_PREVIOUS"])
def test_a_secret_that_cannot_sign_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, secret: str
) -> None:
    (line,) = mistakes(monkeypatch, {f"STILLREEL_{name}": secret})
    assert line.startswith(f"  - STILLREEL_{name}: ")
    assert "!!!" not in line


@pytest.mark.parametrize("name", ["STILLREEL_WEBHOOK_URL", "STILLREEL_WEBHOOK_PLAIN_URLS"])
def test_a_receiver_without_a_secret_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (line,) = mistakes(monkeypatch, {name: "https://app.example/hook"})
    assert line.startswith(f"  - {name}: ")
    assert "STILLREEL_WEBHOOK_SECRET" in line


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://me:p%40ss@db:5432/x", "postgresql+asyncpg://me:p%40ss@db:5432/x"),
        ("postgresql://me:pw@db/x", "postgresql+asyncpg://me:pw@db/x"),
        ("postgresql+asyncpg://me:pw@db/x", "postgresql+asyncpg://me:pw@db/x"),
        ("postgres://me@db/x?sslmode=require", "postgresql+asyncpg://me@db/x?ssl=require"),
        (
            "postgres://me@db/x?sslmode=verify-full&channel_binding=require",
            "postgresql+asyncpg://me@db/x?ssl=verify-full",
        ),
        ("", ""),
    ],
)
def test_the_database_is_named_as_asyncpg_takes_it(
    monkeypatch: pytest.MonkeyPatch, given: str, used: str
) -> None:
    settings = configured(monkeypatch, {"DATABASE_URL": given})
    assert settings.server.database_url.get_secret_value() == used


@pytest.mark.parametrize(
    "given",
    [
        "mysql://me:hidden@db/x",
        "postgresql+psycopg2://me:hidden@db/x",
        "sqlite:///hidden.db",
        "me:hidden@db/x",
        "postgres://me:hidden@db:port/x",
    ],
)
def test_a_database_that_is_no_postgres_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (line,) = mistakes(monkeypatch, {"DATABASE_URL": given})
    assert "DATABASE_URL" in line
    assert "postgresql://" in line
    assert "hidden" not in line


def test_every_mistake_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "STILLREEL_LIMIT": "many",
        "STILLREEL_GPUS": "0",
        "STILLREEL_FETCH_SECONDS": "nan",
        "STILLREEL_WEBHOOK_SECONDS": "-1",
        "STILLREEL_PREFECT_PORT": "70000",
    }
    lines = mistakes(monkeypatch, {**wrong, "S3_BUCKET": "videos", **R2})
    assert [name for name in wrong if not any(name in line for line in lines)] == []
    assert any("two storages" in line for line in lines)
    assert len(lines) == len(wrong) + 1


SECRETS = {
    "STILLREEL_WEBHOOK_SECRET": "hidden-1",
    "STILLREEL_WEBHOOK_SECRET_PREVIOUS": "whsec_aGlkZGVuLTI=",
    "DATABASE_URL": "postgres://me:hidden-4@db.example/prefect",
    **R2,
}


def test_secrets_are_masked_wherever_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configured(monkeypatch, SECRETS)
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "hidden" not in shown
    assert "aGlkZGVu" not in shown
    assert "r2-id" not in shown
    assert settings.storage.r2_secret_key.get_secret_value() == "r2-hidden"


def test_secrets_are_masked_in_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "STILLREEL_LIMIT": "hidden-3",
        "STILLREEL_WEBHOOK_SECRET": "whsec_hidden!",
        "DATABASE_URL": "mysql://me:hidden-4@db.example/prefect",
    }
    with pytest.raises(SettingsInvalid) as caught:
        configured(monkeypatch, {**SECRETS, **S3, **wrong})
    shown = f"{caught.value!r} {caught.value} {caught.value.__cause__} {caught.value.__context__}"
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("text", "values"),
    [
        pytest.param("127.0.0.1:9000", ("127.0.0.1:9000",), id="one"),
        pytest.param(" [::1]:80 , minio:9000,", ("[::1]:80", "minio:9000"), id="blanks"),
        pytest.param(" , ", (), id="nothing"),
    ],
)
def test_lists_are_comma_separated(
    monkeypatch: pytest.MonkeyPatch, text: str, values: tuple[str, ...]
) -> None:
    settings = configured(
        monkeypatch,
        {
            "STILLREEL_ALLOW_ADDRESSES": text,
            "STILLREEL_WEBHOOK_PLAIN_URLS": text,
            "WEBHOOK_SECRET": "the-value",
        },
    )
    assert settings.fetch.allow_addresses == values
    assert settings.webhook.webhook_plain_urls == values


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("MinIO.Internal:9000", "minio.internal:9000"),
        ("minio_1:09000", "minio_1:9000"),
        ("[0:0:0:0:0:0:0:1]:9000", "[::1]:9000"),
        ("[FD00::A]:65535", "[fd00::a]:65535"),
        ("xn--bcher-kva.internal:80", "xn--bcher-kva.internal:80"),
    ],
)
def test_a_pair_is_kept_in_its_one_form(
    monkeypatch: pytest.MonkeyPatch, text: str, pair: str
) -> None:
    settings = configured(monkeypatch, {"STILLREEL_ALLOW_ADDRESSES": text})
    assert settings.fetch.allow_addresses == (pair,)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "::1",
        "::1:9000",
        "10.0.0.0/8",
        "10.0.0.0/8:80",
        "*",
        "*:80",
        "*.internal:80",
        "http://127.0.0.1:9000",
        "127.0.0.1:9000/path",
        "user@host:80",
        "host.:80",
        ".host:80",
        "bücher.internal:80",
        "host:0",
        "host:65536",
        "host:-1",
        "host:٤",
        ":80",
        "2130706433:80",
        "127.1:80",
        "127.0.0.01:80",
        "0x7f000001:80",
        "0x7f.0.0.0x1:80",
        "[fe80::1%eth0]:80",
    ],
)
def test_what_is_no_pair_is_refused_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (line,) = mistakes(monkeypatch, {"STILLREEL_ALLOW_ADDRESSES": f"127.0.0.1:9000,{text}"})
    assert "STILLREEL_ALLOW_ADDRESSES" in line
    assert repr(text) in line


@pytest.mark.parametrize(
    ("given", "home"),
    [
        pytest.param("~/videos", Path.home() / "videos", id="tilde"),
        pytest.param("/srv/stillreel", Path("/srv/stillreel"), id="absolute"),
        pytest.param("videos", Path.cwd() / "videos", id="relative"),
    ],
)
def test_home_is_absolute(monkeypatch: pytest.MonkeyPatch, given: str, home: Path) -> None:
    assert configured(monkeypatch, {"STILLREEL_HOME": given}).host.home == home


def test_a_user_without_a_home_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("STILLREEL_HOME")
    (line,) = mistakes(monkeypatch, {})
    assert line.startswith("  - STILLREEL_HOME: ")


def test_a_home_is_made_for_this_user_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = configured(monkeypatch, {"STILLREEL_HOME": str(tmp_path / "new" / "home")})
    home = make_home(settings)
    assert home == make_home(settings)
    assert home.stat().st_mode & 0o777 == 0o700
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("below", ["file", "file/home"])
def test_a_home_that_cannot_be_made_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").touch()
    settings = configured(monkeypatch, {"STILLREEL_HOME": str(tmp_path / below)})
    with pytest.raises(SettingsInvalid, match="STILLREEL_HOME"):
        make_home(settings)


def test_settings_cannot_be_changed_by_accident() -> None:
    settings = get_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.host.limit = 9
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_every_setting_is_described() -> None:
    undescribed = [
        f"{concern.__name__}.{name}"
        for concern in CONCERNS.values()
        for name, field in concern.model_fields.items()
        if not field.description
    ]
    assert undescribed == []


def test_the_page_of_settings_is_what_the_code_says() -> None:
    written = settings_docs.PAGE.read_text(encoding="utf-8")
    assert written == settings_docs.settings_page(), "run `make docs`"


def test_the_page_of_settings_says_nothing_about_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert settings_docs.settings_page() == settings_docs.PAGE.read_text(encoding="utf-8")


# --- a video server elsewhere -----------------------------------------------------------------


def test_a_remote_server_is_set_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLREEL_REMOTE_URL", "http://10.0.0.7:30000/v1/")
    monkeypatch.setenv("STILLREEL_REMOTE_KEY", "sk-not-shown")
    monkeypatch.setenv("STILLREEL_REMOTE_PARAMETERS", '{"num_frames": "{frames}", "fps": null}')
    monkeypatch.setenv("STILLREEL_REMOTE_ALLOW_ADDRESSES", "MinIO.internal:9000")
    found = get_settings().inference
    assert found.remote_url == "http://10.0.0.7:30000/v1"
    assert found.remote_parameters == {"num_frames": "{frames}", "fps": None}
    assert found.remote_allow_addresses == ("minio.internal:9000",)
    assert "sk-not-shown" not in repr(get_settings())


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"KEY": "sk-secret"}, "STILLREEL_REMOTE_KEY"),
        ({"URL": "gpu-7:30000"}, "http"),
        ({"URL": "http://u:sk-secret@gpu-7/v1"}, "STILLREEL_REMOTE_KEY"),
        ({"URL": "http://gpu-7/v1?key=sk-secret"}, "STILLREEL_REMOTE_KEY"),
        ({"URL": "http://a/v1", "SHAPE": "replicate"}, "STILLREEL_REMOTE_MODEL"),
        ({"URL": "http://a/v1", "SHAPE": "fal"}, "STILLREEL_REMOTE_SHAPE"),
        ({"URL": "http://a/v1", "PARAMETERS": "{sk-secret"}, "is no JSON"),
        ({"URL": "http://a/v1", "PARAMETERS": "[1]"}, "no JSON object"),
        ({"URL": "http://a/v1", "PARAMETERS": '{"a": ["{stepps}"]}'}, "stepps"),
        ({"URL": "http://a/v1", "POLL_SECONDS": "0"}, "STILLREEL_REMOTE_POLL_SECONDS"),
        ({"URL": "http://a/v1", "MODEL": "a b"}, "STILLREEL_REMOTE_MODEL"),
        ({"URL": "http://a/v1", "ALLOW_ADDRESSES": "minio"}, "STILLREEL_REMOTE_ALLOW_ADDRESSES"),
    ],
    ids=str,
)
def test_mistakes_about_a_remote_server_are_told_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], words: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(f"STILLREEL_REMOTE_{name}", value)
    monkeypatch.setenv("STILLREEL_API_PORT", "0")
    with pytest.raises(SettingsInvalid) as caught:
        get_settings()
    assert words in caught.value.message
    assert "STILLREEL_API_PORT" in caught.value.message  # all mistakes at once
    assert "sk-secret" not in caught.value.message
