"""Vast.ai on loopback: the part of its API that we use, with its faults at hand."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, RLock, Thread
from types import TracebackType
from typing import Any, Self

KEY = "the-account-key"
SECRET = "the-instance-secret"

OFFER: dict[str, Any] = {
    "gpu_name": "A100 PCIE",
    "num_gpus": 1,
    "gpu_ram": 40960,
    "cpu_ram": 64000,
    "disk_space": 500.0,
    "cuda_max_good": 12.8,
    "inet_down": 800.0,
    "inet_up": 400.0,
    "inet_down_cost": 0.0,
    "inet_up_cost": 0.0,
    "reliability": 0.995,
    "storage_cost": 0.1,
    "dph_total": 0.66,
    "min_bid": 0.3,
    "duration": 864000,
}


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    method: str
    path: str
    body: Any
    authorization: str


@dataclass
class FakeVast:
    """Faults are taken in order, one per call of `offers create get list destroy`.

    `hang` and `error` on a create take effect first; `lost` on a destroy answers success and does
    nothing; a number is an answer with that status and without effect; a dict is one with 200.
    """

    offers: list[dict[str, Any]] = field(default_factory=list)
    on_create: Callable[[dict[str, Any], dict[str, Any]], None] | None = None
    """Called with the machine and the rental's body: it boots."""
    on_destroy: Callable[[dict[str, Any]], None] | None = None
    lag: float = 0.0
    """Seconds until a new machine is seen in the list."""
    status: str = "loading"
    """What a new machine shows until somebody changes it."""

    def __post_init__(self) -> None:
        self.lock = RLock()
        self.machines: dict[int, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.seen: list[Seen] = []
        self.faults: dict[str, deque[Any]] = defaultdict(deque)
        self._closing = Event()
        self._next = 1000

    def offer(self, number: int, **values: Any) -> None:
        """Put a machine on offer."""
        self.offers.append({"id": number, "machine_id": number + 7000, **OFFER, **values})

    def living(self) -> list[str]:
        """The labels of all machines that cost."""
        with self.lock:
            return [machine["label"] for machine in self.machines.values()]

    def calls(self, name: str) -> list[Seen]:
        """The requests of one kind."""
        return [seen for seen in self.seen if _kind(seen.method, seen.path) == name]

    def __enter__(self) -> Self:
        fake = self

        class Handler(_Handler):
            vast = fake

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def handle(self, seen: Seen) -> tuple[int, Any]:
        self.seen.append(seen)
        kind = _kind(seen.method, seen.path)
        number = int(found[1]) if (found := re.search(r"/(\d+)/", seen.path)) else 0
        if not self._may(seen, kind, number):
            return 401, {"success": False, "error": "auth_error", "msg": "Invalid key"}
        fault = self.faults[kind].popleft() if self.faults[kind] else None
        if isinstance(fault, int):
            return fault, {"success": False, "error": "fault"}
        if isinstance(fault, dict):
            return 200, fault
        with self.lock:
            answer = getattr(self, f"_{kind}")(seen, number, fault)
        if fault == "hang":
            self._closing.wait()
        if fault == "error":
            return 500, {"success": False, "error": "server_error"}
        return answer

    def _may(self, seen: Seen, kind: str, number: int) -> bool:
        """The account's key may do all; a machine's own key destroys that machine only."""
        if seen.authorization == f"Bearer {KEY}":
            return True
        own = self.machines.get(number, {}).get("key")
        return kind == "destroy" and bool(own) and seen.authorization == f"Bearer {own}"

    def _offers(self, seen: Seen, number: int, fault: Any) -> tuple[int, Any]:
        rented = {machine["machine_id"] for machine in self.machines.values()}
        free = [offer for offer in self.offers if offer["machine_id"] not in rented]
        return 200, {"offers": [offer for offer in free if _matches(offer, seen.body)]}

    def _create(self, seen: Seen, number: int, fault: Any) -> tuple[int, Any]:
        rented = {machine["machine_id"] for machine in self.machines.values()}
        offer = next((o for o in self.offers if o["id"] == number), None)
        if offer is None or offer["machine_id"] in rented or fault == "gone":
            return 410, {"success": False, "error": "no_such_ask", "msg": "gone"}
        self._next += 1
        is_bid = "price" in seen.body
        machine = {
            "id": self._next,
            "label": seen.body["label"],
            "machine_id": offer["machine_id"],
            "actual_status": self.status,
            "intended_status": "running",
            "cur_state": "running",
            "status_msg": "",
            "dph_total": seen.body["price"] if is_bid else offer["dph_total"],
            "start_date": time.time(),
            "extra_env": [],
            "is_bid": is_bid,
            "key": f"{SECRET}-{self._next}",
            "visible_at": time.monotonic() + self.lag,
        }
        low_bid = fault == "low bid"
        if low_bid:
            machine |= {"actual_status": "created", "intended_status": "stopped"}
        self.machines[self._next] = machine
        self.created.append(machine)
        if self.on_create and not low_bid:
            self.on_create(machine, seen.body)
        made = {"new_contract": self._next, "instance_api_key": machine["key"]}
        if low_bid:
            return 400, {"success": False, "error": "bid_too_low", **made}
        return 200, {"success": True, **made}

    def _get(self, seen: Seen, number: int, fault: Any) -> tuple[int, Any]:
        machine = self.machines.get(number)
        return 200, {"instances": machine and _shown(machine)}

    def _list(self, seen: Seen, number: int, fault: Any) -> tuple[int, Any]:
        now = time.monotonic()
        visible = [m for m in self.machines.values() if m["visible_at"] <= now]
        after = int(found[1]) if (found := re.search(r"after_token=(\d+)", seen.path)) else 0
        limit = int(found[1]) if (found := re.search(r"limit=(\d+)", seen.path)) else 25
        page = visible[after : after + limit]
        rest = after + limit < len(visible)
        return 200, {
            "instances": [_shown(machine) for machine in page],
            "next_token": str(after + limit) if rest else None,
            "total_instances": len(visible),
        }

    def _destroy(self, seen: Seen, number: int, fault: Any) -> tuple[int, Any]:
        if number not in self.machines:
            return 404, {"success": False, "error": "no_such_instance"}
        if fault != "lost":
            machine = self.machines.pop(number)
            if self.on_destroy:
                self.on_destroy(machine)
        return 200, {"success": True}


class _Handler(BaseHTTPRequestHandler):
    vast: FakeVast

    def _act(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        authorization = self.headers.get("Authorization", "")
        status, answer = self.vast.handle(Seen(self.command, self.path, body, authorization))
        data = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client did not wait, which is what some faults are for
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = _act  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


def _kind(method: str, path: str) -> str:
    if path.startswith("/api/v0/bundles/"):
        return "offers"
    if path.startswith("/api/v0/asks/"):
        return "create"
    if path.startswith("/api/v1/instances/"):
        return "list"
    return "destroy" if method == "DELETE" else "get"


def _matches(offer: dict[str, Any], query: dict[str, Any]) -> bool:
    """Whether the offer meets each condition on a field that it has."""
    checks: dict[str, Callable[[Any, Any], bool]] = {
        "eq": lambda value, wanted: value == wanted,
        "gte": lambda value, wanted: value >= wanted,
        "lte": lambda value, wanted: value <= wanted,
        "in": lambda value, wanted: value in wanted,
    }
    return all(
        checks[op](offer[name], wanted)
        for name, condition in query.items()
        if isinstance(condition, dict) and name in offer
        for op, wanted in condition.items()
    )


def _shown(machine: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if name not in ("key", "visible_at")}
