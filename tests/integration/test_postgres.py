"""`stillreel up` with `DATABASE_URL`: Prefect's server keeps everything in that Postgres."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import asyncpg

from tests.services.postgres import create_database
from tests.stack import running_stack


def test_a_job_completes_and_is_kept_in_postgres(postgres: str) -> None:
    url = create_database(postgres, "jobs")
    with running_stack(DATABASE_URL=url) as stack:
        assert stack.api.get("/health").json() is True
        run_id = stack.submit({"prompt": "zoom in", "duration": 0.5, "width": 128, "height": 72})

        run = stack.wait(run_id)

        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        assert list((stack.home / "prefect").glob("*.db")) == []
    assert asyncio.run(kept_state(url, run_id)) == "COMPLETED"
    assert str(urlsplit(url).password) not in stack.log


async def kept_state(url: str, run_id: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(
            "SELECT state_type::text FROM flow_run WHERE id = $1", run_id
        )
    finally:
        await connection.close()
