"""A link is good for one method, object, type and size, until it expires; nobody else makes one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillreel.errors import Forbidden, RequestRejected
from stillreel.links import Links
from stillreel.settings import StorageSettings
from stillreel.storage import LocalStorage, open_storage

SECRET = b"s" * 32
KEY = "outputs/job_01234567/output.mp4"
LINKS = Links("https://videos.example/", SECRET)
texts = st.text(max_size=30)


def parts(url: str) -> tuple[str, dict[str, str]]:
    """The key that a link is for, and its query."""
    split = urlsplit(url)
    query = parse_qs(split.query, keep_blank_values=True)
    return unquote(split.path.partition("/files/")[2]), {k: v for k, (v,) in query.items()}


def check(url: str, method: str, *, links: Links = LINKS, **changed: str) -> None:
    key, query = parts(url)
    query = {"key": key, **query, **changed}
    bound = (query["type"], query["size"]) if "type" in query else ()
    links.check(
        method, query["key"], *bound, expires=query["expires"], signature=query["signature"]
    )


def test_a_download_link_is_for_get_only() -> None:
    url = LINKS.download_url(KEY, 60)
    assert url.startswith(f"https://videos.example/files/{KEY}?expires=")
    check(url, "GET")
    for method in ("PUT", "HEAD", "DELETE", "get", ""):
        with pytest.raises(Forbidden, match="signature is wrong"):
            check(url, method)


def test_an_upload_link_is_for_put_only() -> None:
    url = LINKS.upload_url("inputs/job_01234567/input.png", "image/png", 123, 60)
    assert {"type": "image/png", "size": "123"}.items() <= parts(url)[1].items()
    check(url, "PUT")
    with pytest.raises(Forbidden, match="signature is wrong"):
        check(url, "GET")


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "outputs/job_01234567/poster.jpg"},
        {"key": ""},
        {"key": "outputs/../outputs/job_01234567/output.mp4"},
        {"expires": "99999999999"},
        {"expires": ""},
        {"expires": "never"},
        {"expires": "9" * 5000},
        {"type": "text/html"},
        {"type": ""},
        {"size": "6"},
        {"size": "05"},
        {"size": ""},
        {"signature": ""},
        {"signature": "A" * 24},
        {"signature": "\N{SNOWMAN}"},
        {"signature": "\udc80"},
        {"type": "5", "size": "video/mp4"},
    ],
    ids=lambda changed: f"{next(iter(changed))} {str(next(iter(changed.values())))[:20]!a}",
)
def test_a_changed_link_is_refused(changed: dict[str, str]) -> None:
    url = LINKS.upload_url(KEY, "video/mp4", 5, 60)
    with pytest.raises(Forbidden, match="signature is wrong"):
        check(url, "PUT", **changed)


@given(key=texts, other=texts, content_type=texts, other_type=texts)
def test_no_other_text_has_the_same_signature(
    key: str, other: str, content_type: str, other_type: str
) -> None:
    query = parts(LINKS.upload_url(key, content_type, 5, 60))[1]
    signed = {"expires": query["expires"], "signature": query["signature"]}
    LINKS.check("PUT", key, content_type, "5", **signed)
    if (key, content_type) != (other, other_type):
        with pytest.raises(Forbidden):
            LINKS.check("PUT", other, other_type, "5", **signed)


@pytest.mark.parametrize("seconds", [0, -1, -86400])
def test_a_link_ends(seconds: int) -> None:
    with pytest.raises(Forbidden, match="expired"):
        check(LINKS.download_url(KEY, seconds), "GET")


def test_a_link_of_another_installation_is_refused() -> None:
    with pytest.raises(Forbidden, match="signature is wrong"):
        check(Links("https://videos.example", b"t" * 32).download_url(KEY, 60), "GET")


def test_every_address_of_the_api_takes_the_same_links() -> None:
    check(Links("http://localhost:8000/api", SECRET).download_url(KEY, 60), "GET")


@pytest.mark.parametrize("key", ["a b/c?d=e&f#g.mp4", "100%/%2e%2e/x.png", "é/\N{FIRE}+;.mp4"])
def test_any_key_survives_its_url(key: str) -> None:
    url = LINKS.download_url(key, 60)
    assert url.isascii()
    assert parts(url)[0] == key
    check(url, "GET")


def test_the_secret_is_not_shown() -> None:
    assert SECRET.decode() not in repr(LINKS)
    assert SECRET.decode() not in repr(LocalStorage(Path("/unused"), LINKS))


def test_local_storage_gives_links_where_it_has_them(tmp_path: Path) -> None:
    settings = StorageSettings.model_validate({"storage_dir": tmp_path})
    storage = open_storage(settings, tmp_path / "home", LINKS)
    check(storage.download_url(KEY, seconds=60), "GET")
    check(storage.upload_url(KEY, content_type="video/mp4", size=5, seconds=60), "PUT")
    assert open_storage(settings, tmp_path).download_url(KEY, seconds=60).startswith("file:")


@pytest.mark.parametrize(("key", "seconds"), [("../x", 60), (KEY, 0), (KEY, 604801)])
def test_local_storage_makes_no_link_that_s3_would_not(
    tmp_path: Path, key: str, seconds: int
) -> None:
    storage = LocalStorage(tmp_path, LINKS)
    with pytest.raises(RequestRejected):
        storage.download_url(key, seconds=seconds)
    with pytest.raises(RequestRejected):
        storage.upload_url(key, content_type="video/mp4", size=5, seconds=seconds)
