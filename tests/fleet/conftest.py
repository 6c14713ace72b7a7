"""Tests of rented machines reach this machine only, as the unit tests do."""

from __future__ import annotations

from pytest_socket import socket_allow_hosts

_RESOLVED: dict[str, set[str]] = {}


def pytest_runtest_setup() -> None:
    socket_allow_hosts(
        ["127.0.0.1", "::1", "localhost"], allow_unix_socket=True, resolution_cache=_RESOLVED
    )
