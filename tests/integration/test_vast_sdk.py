"""The official SDK and our driver ask the same Vast.ai for the same things in the same words.

The SDK's exact pins clash with ours, so it lives in an environment of its own, which
`make services` makes; TESTS_VASTAI_PYTHON names the Python of another one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from stillreel.fleet.labels import Label
from stillreel.fleet.needs import NEEDS
from stillreel.fleet.provider import Boot
from stillreel.fleet.vast import Vast, search_body
from tests.fleet.fake_vast import KEY, FakeVast, Seen
from tests.fleet.test_orders import UNTIL

PYTHON = os.environ.get("TESTS_VASTAI_PYTHON") or str(
    Path(__file__).parents[2] / ".venv-vastai" / "bin" / "python"
)
NEED = NEEDS["ltx-2"]
BOOT = Boot(Label("main", str(UUID(int=9)), 1), "a100", "ltx-2", UNTIL, {"A": "1"}, 150)
SCRIPT = """
import json, sys
from vastai import VastAI
url, key, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
vast = VastAI(api_key=key, server_url=url, retry=1)
vast.search_offers(query=asked["query"], type=asked["type"], order="dph_total", limit=64,
                   storage=150.0)
made = vast.create_instance(id=1, **asked["rental"])
vast.show_instance(id=made["new_contract"])
vast.show_instances()
vast.destroy_instance(id=made["new_contract"])
"""


@pytest.fixture
def fake() -> Iterator[FakeVast]:
    with FakeVast() as running:
        running.offer(1)
        yield running


def by_sdk(fake: FakeVast, *, interruptible: bool) -> list[Seen]:
    query = search_body(NEED, interruptible)
    for name in ("order", "type", "limit", "allocated_storage"):
        query.pop(name)
    rental: dict[str, Any] = {
        "image": "worker@sha256:1",
        "disk": 150,
        "env": {"A": "1"},
        "label": str(BOOT.label),
        "runtype": "args",
        "args": ["--pool", "a100", "--model", "ltx-2"],
        "cancel_unavail": True,
    }
    if interruptible:
        rental["bid_price"] = 0.33
    asked = {"query": query, "type": "bid" if interruptible else "on-demand", "rental": rental}
    done = subprocess.run(
        [PYTHON, "-c", SCRIPT, fake.url, KEY, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(fake.seen)


def by_us(fake: FakeVast, *, interruptible: bool) -> list[Seen]:
    driver = Vast(KEY, image="worker@sha256:1", url=fake.url)
    (offer,) = driver.offers(NEED, interruptible=interruptible)
    made = driver.create(offer, BOOT)
    driver.get(made.id)
    driver.list("stillreel-main-")
    driver.destroy(made.id)
    driver.close()
    return list(fake.seen)


@pytest.mark.parametrize("interruptible", [False, True], ids=["on-demand", "bid"])
def test_both_send_the_same(
    fake: FakeVast, require: Callable[[str, bool], None], interruptible: bool
) -> None:
    require("the vastai SDK (make services)", Path(PYTHON).exists())
    theirs = by_sdk(fake, interruptible=interruptible)
    fake.seen.clear()
    ours = by_us(fake, interruptible=interruptible)

    assert [words(seen) for seen in ours] == [words(seen) for seen in theirs]


def words(seen: Seen) -> tuple[str, str, str, Any]:
    """Method, path without the machine's number and the query, key, and what the body says."""
    path = "/".join("N" if part.isdigit() else part for part in seen.path.split("?")[0].split("/"))
    body = {k: v for k, v in (seen.body or {}).items() if v not in (None, False, "", [], {})}
    return seen.method, path, seen.authorization, body
