"""The HTTP API: a thin shim over Prefect and storage, with no store of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from stillreel import __version__
from stillreel.api import (
    batches,
    catalog,
    deletion,
    docs,
    events,
    files,
    generate,
    health,
    jobs,
    lease_storage,
    metrics,
    openai,
    presign,
    receipts,
    studio,
    usage,
    webhooks,
)
from stillreel.api.auth import describe_security
from stillreel.api.bodies import name_bodies
from stillreel.api.error_handlers import install_problems
from stillreel.api.lease import lease_routes
from stillreel.api.metrics import Metrics
from stillreel.api.middleware import install_middleware
from stillreel.api.polls import Polls
from stillreel.api.services import Services, build_services
from stillreel.arrival.inspect import warn_where_unconfined
from stillreel.audit import auditing
from stillreel.gateway.desk import Desk
from stillreel.gateway.door import LeaseDoor
from stillreel.gateway.intake import Intake
from stillreel.guard import warn_of_allowed
from stillreel.jobs.record import Record
from stillreel.keeper import Keeper, keeping
from stillreel.prefect_api import connect
from stillreel.settings import Settings

DESCRIPTION = """
One still image (or only a prompt) in, one finished video out.

Send your key as `Authorization: Bearer <key>` or as `X-API-Key: <key>`. Errors are
`application/problem+json` (RFC 9457); under `/v1` they have OpenAI's form.
"""


async def _has_video(services: Services, job_id: str) -> bool:
    """Whether a job's video is stored; its receipt is the last thing that is."""
    return await services.reader.receipt(job_id) is not None


def create_app(settings: Settings) -> FastAPI:
    """The API as an ASGI application; Prefect's address comes from Prefect's own settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        def on_submitted(record: Record) -> None:
            keeper.fetch(record)

        warn_of_allowed(settings)
        if settings.fleet.rented_via == "gateway" and settings.api.api_url:
            warn_where_unconfined()
        api = connect(settings.api.prefect_seconds)
        # Of its own, so that hosts that ask much keep neither callers nor the keeper waiting.
        hosts_api = connect(settings.api.prefect_seconds)
        try:
            services = build_services(settings, api, on_submitted=on_submitted)
            keeper = Keeper(services)
            app.state.services, app.state.keeper = services, keeper
            desk = Desk(
                hosts_api,
                installation=settings.fleet.installation,
                has_video=partial(_has_video, services),
            )
            api.on_write = desk.leases.written
            door = LeaseDoor(desk, services.reader)
            app.state.desk, app.state.intake = desk, Intake(services.storage, settings, door)
            app.state.receipt_turns = asyncio.Semaphore(receipts.AT_ONCE)
            app.state.checks = health.Checks(services)
            app.state.metrics = Metrics(
                keeper_actions=keeper.counts, webhook_attempts=services.deliveries.counts
            )
            async with auditing(api), keeping(keeper):
                yield
            await app.state.intake.aclose()
        finally:
            await hosts_api.aclose()
            await api.aclose()

    app = FastAPI(
        title="stillreel",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.add_middleware(Polls)
    install_problems(app)
    install_middleware(
        app, body_max_bytes=settings.api.body_max_bytes, body_seconds=settings.api.body_seconds
    )
    for module in (
        generate,
        jobs,
        deletion,
        events,
        batches,
        openai,
        presign,
        receipts,
        webhooks,
        health,
        files,
        catalog,
        usage,
        metrics,
        docs,
        studio,
    ):
        app.include_router(module.router)
    if settings.fleet.rented_via == "gateway":
        app.include_router(lease_storage.router)
        app.router.routes += lease_routes()
    describe = app.openapi
    app.openapi = lambda: name_bodies(describe_security(describe()))
    return app
