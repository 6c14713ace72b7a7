"""The resident inference server: HTTP on a unix socket, one GPU, one model at a time.

`python -m stillreel.inference.server --socket PATH [--model NAME]`
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import uvicorn
from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import Response

from stillreel.errors import StillreelError
from stillreel.inference.entry import DecodeOrder, Entry, Health, InferenceOrder, Kind
from stillreel.inference.runner import Runner
from stillreel.job import ModelName
from stillreel.models.registry import get_model, load_backend
from stillreel.settings import get_settings

LONGEST_WAIT = 30.0


def make_app(runner: Runner) -> FastAPI:
    """The server's routes over a runner, which works while the app is up."""

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        thread = threading.Thread(target=runner.run, name="gpu", daemon=True)
        thread.start()
        yield
        runner.stop()
        thread.join(timeout=30)

    app = FastAPI(title="stillreel inference", lifespan=lifespan, openapi_url=None)

    @app.get("/health")
    def health() -> Health:
        return runner.health()

    @app.put("/inferences/{run_id}")
    def start_inference(run_id: str, order: InferenceOrder) -> Entry:
        return runner.start(Kind.INFERENCE, run_id, order)

    @app.put("/decodes/{run_id}")
    def start_decode(run_id: str, order: DecodeOrder) -> Entry:
        return runner.start(Kind.DECODE, run_id, order)

    @app.get("/{kind}/{run_id}")
    def watch(
        kind: Kind, run_id: str, after: int = -1, wait: float = Query(0.0, ge=0, le=LONGEST_WAIT)
    ) -> Entry:
        entry = runner.watch(kind, run_id, after=after, wait=wait)
        if entry is None:
            raise HTTPException(404, "no such work")
        return entry

    @app.delete("/{kind}/{run_id}")
    def cancel(kind: Kind, run_id: str) -> Response:
        return Response(status_code=204 if runner.cancel(kind, run_id) else 404)

    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="stillreel's inference server")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", default="", help="load this model before the first job")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, in order
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    settings = get_settings().inference
    runner = Runner(
        lambda name: load_backend(get_model(name), settings), claim_seconds=settings.claim_seconds
    )
    try:
        if arguments.model:
            runner.preload(cast(ModelName, arguments.model))
    except StillreelError as exc:
        raise SystemExit(f"cannot load {arguments.model}: {exc.message}") from exc
    _serve(make_app(runner), arguments.socket)


def _serve(app: FastAPI, socket: Path) -> None:
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)
    config = uvicorn.Config(
        app, uds=str(socket), log_level="warning", timeout_graceful_shutdown=1, access_log=False
    )
    server = _Server(config)
    signal.signal(signal.SIGTERM, partial(_stop, server))
    server.run()
    socket.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """One that leaves the signals to us; uvicorn would take Ctrl-C as well."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _stop(server: uvicorn.Server, *_: object) -> None:
    server.should_exit = True


if __name__ == "__main__":
    main()
