"""All groups of checks at once, each in its own time; no secret leaves in what they say."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Thread

from pydantic import SecretStr

from stillreel.doctor import api, clock, machine, prefect, storage, weights
from stillreel.doctor.finding import Finding, failed, ok
from stillreel.doctor.prefect import PrefectAddress
from stillreel.errors import SettingsInvalid, StillreelError
from stillreel.settings import CONCERNS, Settings, get_settings, make_home

Look = Callable[[], Iterator[Finding]]
Hide = Callable[[str], str]
_END = None


@dataclass(frozen=True)
class Examined:
    """What one group of checks found."""

    group: str
    findings: tuple[Finding, ...]


def examine(*, seconds: float) -> Iterator[Examined]:
    """What all groups find, in their order, each after `seconds` at the latest."""
    settings, found = _settings()
    if settings is None:
        yield Examined("settings", (found,))
        yield next(run_all({"machine": lambda: machine.look(None)}, seconds, hide=str))
        return
    address = prefect.find_address(settings)
    hide = hider(_secrets(settings, address))
    yield Examined("settings", (hide_in(found, hide),))
    yield from run_all(_looks(settings, address), seconds, hide)


def _looks(settings: Settings, address: PrefectAddress) -> Mapping[str, Look]:
    return {
        "machine": lambda: machine.look(settings),
        "weights": lambda: weights.look(settings),
        "storage": lambda: storage.look(settings),
        "prefect": lambda: prefect.look(settings, address),
        "api": lambda: api.look(settings, address),
        "clock": lambda: clock.look(settings, address),
    }


def _settings() -> tuple[Settings | None, Finding]:
    try:
        settings = get_settings()
        home = make_home(settings)
    except SettingsInvalid as exc:
        fix = "correct what is named here; docs/settings.md has every variable"
        return None, failed("settings", exc.message, fix)
    given = sorted({name for concern in CONCERNS for name in _given(settings, concern)})
    return settings, ok("settings", f"can be used; {len(given)} are set, the home is {home}")


def _given(settings: Settings, concern: str) -> set[str]:
    return getattr(settings, concern).model_fields_set


def run_all(looks: Mapping[str, Look], seconds: float, hide: Hide) -> Iterator[Examined]:
    """All at once, each in a thread that this process does not wait for when it ends."""
    deadline = time.monotonic() + seconds
    running: list[tuple[str, SimpleQueue[Finding | None]]] = []
    for group, look in looks.items():
        queue: SimpleQueue[Finding | None] = SimpleQueue()
        Thread(target=_fill, args=(group, look, queue), name=f"doctor-{group}", daemon=True).start()
        running.append((group, queue))
    for group, queue in running:
        findings: list[Finding] = []
        try:
            while finding := queue.get(timeout=max(0.0, deadline - time.monotonic())):
                findings.append(hide_in(finding, hide))
        except Empty:
            note = (
                f"nothing more was heard within {seconds:g} s; what comes after was not looked at"
            )
            fix = "something it asks takes connections and does not answer; see what comes before"
            findings.append(failed(group, note, fix))
        yield Examined(group, tuple(findings))


def _fill(group: str, look: Look, queue: SimpleQueue[Finding | None]) -> None:
    try:
        for finding in look():
            queue.put(finding)
    except StillreelError as exc:
        queue.put(failed(group, exc.message, "see the message"))
    except Exception as exc:  # a doctor reports what it stumbles over and goes on
        note = f"this check broke off ({type(exc).__name__}: {exc})"
        queue.put(failed(group, note[:400], "report it: a check is to name what it sees"))
    finally:
        queue.put(_END)


def hide_in(finding: Finding, hide: Hide) -> Finding:
    """The same finding without secrets."""
    return replace(finding, note=hide(finding.note), fix=hide(finding.fix))


def _secrets(settings: Settings, address: PrefectAddress) -> set[str]:
    texts = set(address.secrets)
    for name in CONCERNS:
        concern = getattr(settings, name)
        for field in type(concern).model_fields:
            value = getattr(concern, field)
            if isinstance(value, SecretStr):
                texts.add(value.get_secret_value())
    return {text for text in texts if text}


def hider(secrets: set[str]) -> Hide:
    """Takes known secrets, users in addresses, and signatures in signed ones out of a text."""
    longest_first = sorted(secrets, key=len, reverse=True)

    def hide(text: str) -> str:
        for secret in longest_first:
            text = text.replace(secret, "***")
        text = re.sub(r"(?<=://)[^/@\s]+@", "***@", text)
        return re.sub(r"([?&](?:X-Amz-|sig|token|key)[^=\s]*=)[^&\s]+", r"\1***", text, flags=re.I)

    return hide
