"""Which failures of Prefect's engine mean that its server did not answer."""

from __future__ import annotations

import httpx
import pytest
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError

from stillreel.errors import StorageUnavailable
from stillreel.execution import is_prefect_lost
from tests.receiver import Answer, answer, receiver, reset


def failure(*answers: Answer) -> httpx.HTTPError:
    """What a client of a server that answers like this raises."""
    with receiver(*answers) as server, pytest.raises(httpx.HTTPError) as raised:
        httpx.get(server.url, trust_env=False).raise_for_status()
    return raised.value


def test_a_server_that_does_not_answer_is_lost() -> None:
    assert is_prefect_lost(failure(answer(503)))
    assert is_prefect_lost(failure(reset))
    assert is_prefect_lost(
        ConcurrencySlotAcquisitionError("Unable to acquire slots on ['tag:gpu']")
    )


def test_what_it_refuses_and_what_fails_elsewhere_is_not() -> None:
    assert not is_prefect_lost(failure(answer(404)))
    assert not is_prefect_lost(ValueError("no"))
    assert not is_prefect_lost(StorageUnavailable())
