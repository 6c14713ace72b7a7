"""A spot host hears of its end from EC2's instance metadata."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from threading import Event, Thread
from time import monotonic

import httpx
import pytest

from stillreel.spot import Metadata, wait_for_notice
from tests.instance_metadata import ACTION, InstanceMetadata

SECONDS = 30.0


@pytest.fixture
def instance() -> Iterator[InstanceMetadata]:
    with InstanceMetadata() as running:
        yield running


@pytest.fixture
def metadata(instance: InstanceMetadata) -> Iterator[Metadata]:
    made = Metadata(instance.url)
    yield made
    made.close()


def test_there_is_no_notice_until_it_is_given(
    instance: InstanceMetadata, metadata: Metadata
) -> None:
    assert [metadata.notice(), metadata.notice()] == ["", ""]
    instance.give_notice()
    assert "terminate" in metadata.notice()
    assert (set(instance.asked), instance.made) == ({ACTION}, 1)


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_whatever_happens_to_the_instance_its_jobs_go_back(
    instance: InstanceMetadata, metadata: Metadata, action: str
) -> None:
    instance.give_notice(action)
    assert action in metadata.notice()


def test_a_token_that_has_expired_is_replaced(
    instance: InstanceMetadata, metadata: Metadata
) -> None:
    assert metadata.notice() == ""
    instance.tokens.clear()
    instance.give_notice()
    assert "terminate" in metadata.notice()
    assert instance.made == 2


@pytest.mark.parametrize("trouble", [403, 500, 503])
def test_metadata_that_cannot_be_read_is_an_error(
    instance: InstanceMetadata, metadata: Metadata, trouble: int
) -> None:
    instance.trouble = trouble
    with pytest.raises(httpx.HTTPStatusError):
        metadata.notice()


def test_who_waits_is_told_after_trouble_and_not_of_it(
    instance: InstanceMetadata, metadata: Metadata, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    told: list[str] = []
    instance.trouble = 500
    waiting = Thread(target=lambda: told.append(wait_for_notice(metadata, look_seconds=0.01)))
    waiting.start()
    try:
        wait_until(lambda: "cannot be read" in caplog.text)
        instance.trouble = 0
        wait_until(lambda: len(instance.asked) > 2)
        assert told == []
    finally:
        instance.trouble = 0
        instance.give_notice()
        waiting.join(SECONDS)
    assert "terminate" in told[0]
    assert caplog.text.count("cannot be read") == 1


def wait_until(enough: Callable[[], bool]) -> None:
    deadline = monotonic() + SECONDS
    while not enough():
        assert monotonic() < deadline
        Event().wait(0.01)
