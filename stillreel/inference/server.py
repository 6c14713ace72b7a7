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
from stillreel.inference.runner import Patience, Runner
from stillreel.inference.watchdog import watch_over
from stillreel.job import ModelName, Phase
from stillreel.lock import make_private, only_one
from stillreel.models.registry import get_model, load_backend
from stillreel.process import NO_RESTART
from stillreel.settings import InferenceSettings, get_settings

log = logging.getLogger("stillreel.inference")

LONGEST_WAIT = 30.0
REMOTE_EXTRA_SECONDS = 3600.0
"""For a video elsewhere to come over, beyond the time that it may be made in."""
LOCK_SECONDS = 10.0
"""How long the end of a server that was killed may take: the driver gives its memory back first."""


def make_app(runner: Runner, *, work_dir: Path | None = None) -> FastAPI:
    """The server's routes over a runner, which works while the app is up.

    With a `work_dir`, orders whose files lie elsewhere are refused with 422.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        thread = threading.Thread(target=runner.run, name="gpu", daemon=True)
        thread.start()
        yield
        runner.stop()
        thread.join(timeout=30)

    def check_paths(*paths: str) -> None:
        for path in filter(None, paths):
            if work_dir and work_dir.resolve() not in Path(path).resolve().parents:
                raise HTTPException(422, "the files of an order lie in the work directory")

    app = FastAPI(title="stillreel inference", lifespan=lifespan, openapi_url=None)

    @app.get("/health")
    def health() -> Health:
        return runner.health()

    @app.put("/inferences/{run_id}")
    def start_inference(run_id: str, order: InferenceOrder) -> Entry:
        check_paths(order.latents_path, order.image_path)
        return runner.start(Kind.INFERENCE, run_id, order)

    @app.put("/decodes/{run_id}")
    def start_decode(run_id: str, order: DecodeOrder) -> Entry:
        check_paths(order.latents_path, order.spool_dir)
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
    """Serve until SIGTERM; the exit code NO_RESTART says that another try would end the same."""
    parser = argparse.ArgumentParser(description="stillreel's inference server")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", default="", help="load this model before the first job")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, in order
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs addresses, signatures and all
    socket: Path = arguments.socket
    make_private(socket.parent)
    taken = f"another process serves on {socket.name} of this home already; stop it first"
    try:
        with only_one(socket.with_name(f"{socket.name}.lock"), taken=taken, wait=LOCK_SECONDS):
            _run(arguments.model, socket)
    except StillreelError as exc:
        log.error("the inference server cannot start: %s", exc.message)
        raise SystemExit(1 if exc.retryable else NO_RESTART) from exc


def _run(model: str, socket: Path) -> None:
    settings = get_settings()
    inference = settings.inference
    runner = Runner(
        lambda name: load_backend(get_model(name), inference),
        claim_seconds=inference.claim_seconds,
        patience=patience_on(inference),
    )
    watch_over(runner)
    if model:
        runner.preload(cast(ModelName, model))
    _serve(make_app(runner, work_dir=settings.host.work_dir), socket)


def patience_on(settings: InferenceSettings) -> Patience:
    """How long models may be silent on this host, which may be slower than they expect."""

    def patience(model: ModelName, phase: Phase) -> float:
        spec = get_model(model)
        if spec.elsewhere:  # it bounds itself, and then ends what it has ordered
            return settings.remote_seconds + REMOTE_EXTRA_SECONDS
        return max(spec.patience(phase), settings.stall_seconds)

    return patience


def _serve(app: FastAPI, socket: Path) -> None:
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
