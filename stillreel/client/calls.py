"""Calls to the API as values: where it is, what is sent, and how the answer is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import httpx
from pydantic import ValidationError

from stillreel import __version__
from stillreel.client.failures import failure_of, unreachable
from stillreel.errors import SettingsInvalid
from stillreel.settings import ApiSettings, HostSettings

S = TypeVar("S", ApiSettings, HostSettings)

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
PATIENCE = 60.0
"""Seconds after which a call is not repeated any more."""
RETRIES: dict[str, Any] = {
    "attempts": 6,
    "wait_initial": 0.3,
    "wait_max": 10.0,
    "wait_jitter": 0.5,
}
"""How often a call is repeated, and after how many seconds; for stamina."""
NO_PROXY: dict[str, None] = {
    "all://localhost": None,
    "all://127.0.0.1": None,
    "all://[::1]": None,
}
"""A proxy of the environment is never asked for what is on this machine; for httpx's mounts."""


@dataclass(frozen=True)
class Call:
    """One request to a path of the API, or to a signed URL of storage, which gets no key."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    json: Any = None
    form: Mapping[str, str] | None = None
    files: Mapping[str, tuple[str, bytes, str]] | None = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    repeatable: bool = True
    """Whether doing it twice is the same as once."""
    read_seconds: float = READ_SECONDS


class Server:
    """An API: its address, and the key that is shown to it."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._key = key

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    @classmethod
    def find(cls, url: str | None = None, key: str | None = None) -> Server:
        """What is given, else the settings', else what `stillreel up` made on this machine.

        Raises SettingsInvalid where there is no key, and for what cannot be an address or a key.
        """
        key = (key or "").strip()
        if url and key:
            return cls(_checked_url(url), _checked_key(key))
        settings = _settings(ApiSettings)
        own = settings.local_url
        found = _checked_url(url or own)
        key = key or settings.api_key.get_secret_value().strip()
        # The file's key belongs to this machine's own API; no other address is shown it.
        key = key or (_kept_key() if found == own else "")
        if not key:
            raise SettingsInvalid(
                f"There is no API key for {found}; set STILLREEL_API_KEY. On the machine of "
                "`stillreel up` none is needed: it makes a key, which its user's commands find."
            )
        return cls(found, _checked_key(key))

    def headers(self) -> dict[str, str]:
        """What says to this API who is asking."""
        return {"Authorization": f"Bearer {self._key}"}

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell of what fails on the network as ApiUnreachable."""
        try:
            yield
        except httpx.RequestError as exc:
            raise unreachable(exc, self.url) from exc

    def arguments(self, call: Call) -> dict[str, Any]:
        """What httpx is to be called with."""
        headers = {"User-Agent": f"stillreel-python/{__version__}", **call.headers}
        url, is_ours = call.path, call.path.startswith("/")
        if is_ours:
            url = self.url + url
            headers |= self.headers()
        return {
            "method": call.method,
            "url": url,
            "params": {k: v for k, v in call.params.items() if v is not None} or None,
            "json": call.json,
            "data": call.form,
            "files": call.files,
            "content": call.content,
            "headers": headers,
            "follow_redirects": not is_ours,
            "timeout": httpx.Timeout(call.read_seconds, connect=CONNECT_SECONDS),
        }


def check(response: httpx.Response) -> httpx.Response:
    """The response, when it is a success; its body was read. Raises ApiFailure."""
    if not response.is_success:
        raise failure_of(response)
    return response


def _kept_key() -> str:
    from stillreel.owner_store import KEY_FILE

    path = _settings(HostSettings).home / KEY_FILE
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsInvalid(
            f"the API key in {path} cannot be read ({exc}); set STILLREEL_API_KEY"
        ) from exc


def _settings(concern: type[S]) -> S:
    """Settings of one concern: a client's machine need not have the others right."""
    try:
        return cast("Callable[[], S]", concern)()
    except ValidationError as exc:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        raise SettingsInvalid(f"settings cannot be used: {wrong}") from exc


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsInvalid(
            f"{text[:100]!r} is no address of an API; give one like https://videos.example.com"
        )
    if url.userinfo or url.query or url.fragment:
        raise SettingsInvalid("The API's address is to have no user, no query and no #; drop them.")
    return text.rstrip("/")


def _checked_key(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise SettingsInvalid("The API key has characters that no key has; copy it again.")
    return text
