"""Two cells of the matrix; `make drill-matrix` tries all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.compose import PACKAGES
from tests.drills.installation import Installation, running_installation
from tests.drills.matrix import Cell, run_cell, to_row
from tests.services import postgres, radosgw, redis


@pytest.fixture(scope="module")
def installation(require: Callable[[str, bool], None]) -> Iterator[Installation]:
    require("Postgres (tests/services/install.sh)", postgres.is_installed())
    require("Redis (tests/services/install.sh)", redis.is_installed())
    require("radosgw (tests/services/install.sh)", radosgw.is_installed())
    require("prefect-redis (make services)", (PACKAGES / "prefect_redis").is_dir())
    with running_installation() as running:
        yield running


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "cell",
    [Cell("flow", "upload", "kill"), Cell("api", "notify", "kill")],
    ids=lambda cell: cell.name,
)
def test_the_job_ends_right(installation: Installation, cell: Cell) -> None:
    found = run_cell(cell, installation)
    assert found.wrong == [], to_row(found)
