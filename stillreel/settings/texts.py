"""Texts that several settings read: lists, and hosts with their ports."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Any

LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
"""A regular expression of one label of a host name."""


def comma_separated(value: Any) -> Any:
    """The parts of a text with commas; anything else as it came, for pydantic to judge."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def host_and_port(text: str) -> str:
    """The pair as the guard compares it: lower case, an address in its one canonical form.

    Raises ValueError.
    """
    found = _PAIR.fullmatch(text)
    try:
        if not found or not 0 < int(found["port"]) < 65536:
            raise ValueError("is no pair")
        if found["v6"]:
            return f"[{IPv6Address(found['v6'])}]:{int(found['port'])}"
        host = found["name"].lower()
        if _NUMERIC.fullmatch(host.rpartition(".")[2]):  # then a resolver reads it as an address
            host = str(IPv4Address(host))
        return f"{host}:{int(found['port'])}"
    except ValueError as exc:
        raise ValueError(
            f"{text[:80]!r} is not one host and its port; write e.g. 127.0.0.1:9000, [::1]:9000 "
            "or minio.internal:9000"
        ) from exc


_PAIR = re.compile(
    rf"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>{LABEL}(?:\.{LABEL})*)):(?P<port>[0-9]{{1,5}})"
)
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
