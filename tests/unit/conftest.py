"""Unit tests reach this machine only: connecting to any address but loopback fails the test."""

from __future__ import annotations

from pytest_socket import socket_allow_hosts

_LOOPBACK = ["127.0.0.1", "::1", "localhost"]
_RESOLVED: dict[str, set[str]] = {}


def pytest_runtest_setup() -> None:
    # pytest-socket's own teardown lifts this. Its `disable_socket` would refuse loopback too:
    # it forbids making a socket, this forbids connecting one.
    socket_allow_hosts(_LOOPBACK, allow_unix_socket=True, resolution_cache=_RESOLVED)
