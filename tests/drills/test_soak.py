"""A small soak; `make drill-soak` is the large one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.compose import PACKAGES
from tests.drills.installation import running_installation
from tests.drills.outcome import to_row
from tests.drills.soak import SECONDS_PER_STEP, run_soak
from tests.services import postgres, radosgw, redis


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_jobs_end_right_while_something_dies_every_few_seconds(
    require: Callable[[str, bool], None],
) -> None:
    require("Postgres (tests/services/install.sh)", postgres.is_installed())
    require("Redis (tests/services/install.sh)", redis.is_installed())
    require("radosgw (tests/services/install.sh)", radosgw.is_installed())
    require("prefect-redis (make services)", (PACKAGES / "prefect_redis").is_dir())
    with running_installation(hosts=2, preview_seconds_per_step=SECONDS_PER_STEP) as installation:
        found, soak = run_soak(installation, jobs=12, seed=1)
    assert soak.strikes
    assert [to_row(outcome) for outcome in found if outcome.wrong] == []
