"""The HTTP API, the key that this machine would use, and the receivers of webhooks."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from stillreel.client.calls import NO_PROXY, Server
from stillreel.doctor.finding import Finding, failed, ok, skipped, warning
from stillreel.doctor.prefect import PrefectAddress, receivers_of
from stillreel.errors import SettingsInvalid
from stillreel.settings import Settings

SECONDS = 10.0


def look(settings: Settings, address: PrefectAddress) -> Iterator[Finding]:
    """Whether the API answers and takes our key, and whether receivers are there."""
    with httpx.Client(timeout=SECONDS, mounts=dict(NO_PROXY)) as http:
        yield from _look_at_api(http, settings)
        for url in sorted(receivers_of(settings, address)):
            yield _look_at_receiver(http, url)


def _look_at_api(http: httpx.Client, settings: Settings) -> Iterator[Finding]:
    url = settings.api.local_url
    try:
        health = http.get(f"{url}/health")
        facts = health.json()
    except httpx.HTTPError as exc:
        note = f"nothing answers at {url} ({type(exc).__name__})"
        if not settings.api.api_url:
            yield skipped("HTTP API", note, "`stillreel up` or `stillreel api` starts it")
        else:
            fix = "start it (`stillreel api`), or set STILLREEL_API_URL to where it is"
            yield failed("HTTP API", note, fix)
        return
    except ValueError:
        yield failed("HTTP API", f"{url} is not stillreel's", "set STILLREEL_API_URL or PORT")
        return
    yield _health(url, health.status_code, facts if isinstance(facts, dict) else {})
    yield _key(http, url)


def _health(url: str, status: int, facts: dict[str, object]) -> Finding:
    parts = ", ".join(f"{name} {facts.get(name)}" for name in ("database", "storage", "version"))
    if status != httpx.codes.OK:
        fix = "look at the group prefect; the API answers 503 while Prefect is away"
        return failed("HTTP API", f"{url} answers {status}: {parts}", fix)
    if facts.get("status") != "ok":
        fix = "look at the group storage, on the machine of the API"
        return warning("HTTP API", f"{url} is {facts.get('status')}: {parts}", fix)
    return ok("HTTP API", f"{url}: {parts}")


def _key(http: httpx.Client, url: str) -> Finding:
    check = "API key"
    try:
        headers = Server.find(url).headers()
    except SettingsInvalid as exc:
        return skipped(check, exc.message, "`stillreel keys create` makes one")
    try:
        answer = http.get(f"{url}/api/v1/models", headers=headers)
    except httpx.HTTPError as exc:
        return failed(check, f"was not looked at ({type(exc).__name__})", "try again")
    if answer.status_code in (401, 403):
        fix = "set STILLREEL_API_KEY to a key of this API; `stillreel keys create` makes one"
        return failed(check, f"{url} answers {answer.status_code} to it", fix)
    if not answer.is_success:
        return warning(check, f"{url} answers {answer.status_code}", "see the API's log")
    return ok(check, "is taken")


def _look_at_receiver(http: httpx.Client, url: str) -> Finding:
    """Whether anybody answers there: HEAD, so that no receiver takes it for a notification."""
    address = httpx.URL(url)
    check = f"webhook receiver {address.host}"
    shown = f"{address.scheme}://{address.netloc.decode().rpartition('@')[2]}"  # paths hold secrets
    try:
        status = http.head(url).status_code
    except httpx.HTTPError as exc:
        fix = "start it, or register its new address: stillreel owners webhook OWNER --url URL"
        return failed(check, f"does not answer at {shown} ({type(exc).__name__})", fix)
    # Many know no HEAD, and 501 is how some say so.
    if status >= httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.NOT_IMPLEMENTED:
        return warning(check, f"{shown} answers {status}", "see its log; it is told again")
    return ok(check, f"{shown} answers ({status} to HEAD)")
