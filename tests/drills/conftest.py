"""The drills share one installation whose `preview` takes its time, so that there is time to kill.

A drill that kills the installation itself starts its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack import Stack, running_stack

SLOW = {"STILLREEL_PREVIEW_SECONDS_PER_STEP": "0.75", "STILLREEL_ENCODE_THREADS": "1"}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack(**SLOW) as running:
        yield running
