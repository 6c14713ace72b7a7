"""This machine's clock beside those of the servers that it speaks to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx

from stillreel.client.calls import NO_PROXY
from stillreel.doctor.finding import Finding, failed, ok, skipped, warning
from stillreel.doctor.prefect import PrefectAddress
from stillreel.settings import Settings

SECONDS = 10.0
WARN, FAIL = timedelta(seconds=5), timedelta(seconds=60)
"""Receivers of webhooks take 5 minutes, S3 takes 15; heartbeats and deadlines want it closer."""
RESOLUTION = timedelta(seconds=1)
"""Of the header Date."""
_FIX = "turn on time synchronisation, there or here: timedatectl set-ntp true"


def look(settings: Settings, address: PrefectAddress) -> Iterator[Finding]:
    """How far this clock is from each server's; those that do not answer are left out."""
    servers = {
        "the Prefect server": f"{address.url}/health",
        "the HTTP API": f"{settings.api.local_url}/health",
        "storage": _storage(settings),
    }
    found = 0
    with httpx.Client(timeout=SECONDS, mounts=dict(NO_PROXY)) as http:
        for name, url in servers.items():
            skew = _skew(http, url) if url else None
            if skew is not None:
                found += 1
                yield _judge(f"clock of {name}", skew)
    if not found:
        yield skipped("clock", "no server answers here to compare it with")


def _storage(settings: Settings) -> str:
    if settings.storage.kind == "local":
        return ""
    from stillreel.storage_s3 import bucket_of

    bucket = bucket_of(settings.storage)
    return bucket.endpoint or f"https://s3.{bucket.region or 'us-east-1'}.amazonaws.com"


def _skew(http: httpx.Client, url: str) -> timedelta | None:
    """How far that clock is before ours, at the middle of the call; None where it is not told."""
    before = datetime.now(UTC)
    try:
        there = parsedate_to_datetime(http.get(url).headers["date"])
    except (httpx.HTTPError, KeyError, ValueError):
        return None
    after = datetime.now(UTC)
    there = there if there.tzinfo else there.replace(tzinfo=UTC)
    if before - RESOLUTION <= there <= after:
        return timedelta(0)
    return there - (before + (after - before) / 2)


def _judge(check: str, skew: timedelta) -> Finding:
    seconds = skew.total_seconds()
    text = f"is {abs(seconds):.0f} s {'before' if seconds > 0 else 'behind'} this machine's"
    if abs(skew) > FAIL:
        return failed(check, text, _FIX)
    if abs(skew) > WARN:
        return warning(check, text, _FIX)
    return ok(check, "agrees with this machine's")
