"""Vast.ai: machines of many owners, who can read whatever lies on them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import stamina

from stillreel.errors import (
    CreateUnknown,
    OfferGone,
    ProviderRefused,
    ProviderUnavailable,
)
from stillreel.fleet.labels import parse_label
from stillreel.fleet.provider import Boot, Host, HostState, Leftover, Need, Offer

OFFERS = 64
"""So many are asked for; the search has a daily quota, so one call has to do."""
PAGE = 25
CALL_SECONDS, PATIENCE_SECONDS = 30.0, 60.0
OVERBID = 1.1
"""A bid of exactly the minimum loses to the next one."""
HOURS_A_MONTH = 730.0

_STOPPED = frozenset({"stopped", "frozen"})
_LOST = frozenset({"exited", "unknown", "offline"})
_BROKEN = "oci runtime create failed"
_GONE = frozenset({"no_such_instance", "no_such_contract"})
_PASSING = frozenset({429, 500, 502, 503, 504})


class Vast:
    """The provider Vast.ai. Its answer to a create holds a secret, so no answer is ever shown."""

    name = "vast"
    is_trusted = False

    def __init__(
        self,
        api_key: str,
        *,
        image: str,
        url: str = "https://console.vast.ai",
        call_seconds: float = CALL_SECONDS,
        patience: float = PATIENCE_SECONDS,
        first_wait: float = 1.0,
    ) -> None:
        self._image = image
        self._patience, self._first_wait = patience, first_wait
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=call_seconds,
            trust_env=False,
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def offers(self, need: Need, *, interruptible: bool = False) -> list[Offer]:
        """What could be rented, searched once."""
        answer = self._ask("POST", "/api/v0/bundles/", search_body(need, interruptible))
        return [
            offer_of(row, need, interruptible=interruptible) for row in answer.get("offers") or ()
        ]

    def create(self, offer: Offer, boot: Boot) -> Host:
        """Rent the machine by one call that is never repeated."""
        try:
            response = self._http.put(f"/api/v0/asks/{offer.id}/", json=self._rental(offer, boot))
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:  # it never left
            raise ProviderUnavailable from exc
        except httpx.TransportError as exc:
            raise CreateUnknown from exc
        try:
            answer = _json(response)
        except ProviderUnavailable as exc:
            raise CreateUnknown from exc
        made = answer.get("new_contract")
        if response.is_success and answer.get("success") and made:
            return Host(
                str(made),
                self.name,
                boot.label,
                HostState.BOOTING,
                offer.usd_per_hour,
                offer.machine,
                owner=offer.owner,
            )
        # An error may have made a stopped machine (a bid too low), and says so or not.
        status = response.status_code
        if made or response.is_success or status >= 500 or status == 408:
            raise CreateUnknown
        raise _refusal(response.status_code, answer)

    def get(self, host_id: str) -> Host | None:
        """The host now; None when it is gone.

        One that has lost our label is not gone: it costs, so that is ProviderUnavailable.
        """
        answer = self._ask("GET", f"/api/v0/instances/{host_id}/", gone_is_fine=True)
        if "instances" not in answer:  # only null says that it is gone
            raise ProviderUnavailable("Vast.ai's answer about a machine cannot be read")
        row = answer["instances"]
        if not row:
            return None
        with _readable():
            if host := host_of(row):
                return host
        raise ProviderUnavailable(f"Vast.ai shows machine {host_id} without our label")

    def list(self, prefix: str) -> list[Host]:
        """Our hosts: all pages are read, and other people's machines are left out."""
        rows: list[Mapping[str, Any]] = []
        token, seen = "", set[str]()
        while True:
            query = f"?limit={PAGE}" + (f"&after_token={token}" if token else "")
            answer = self._ask("GET", f"/api/v1/instances/{query}")
            page = answer.get("instances")
            if not isinstance(page, list):
                raise ProviderUnavailable("Vast.ai's list of machines cannot be read")
            rows += page
            token = str(answer.get("next_token") or "")
            if not token:
                break
            if token in seen:
                raise ProviderUnavailable("Vast.ai's list of machines has no end")
            seen.add(token)
        with _readable():
            ours = (row for row in rows if str(row.get("label") or "").startswith(prefix))
            return [host for host in map(host_of, ours) if host]

    def destroy(self, host_id: str) -> None:
        """Give the machine back; fine when it is gone."""
        self._ask("DELETE", f"/api/v0/instances/{host_id}/", {}, gone_is_fine=True)

    def leftovers(self, prefix: str) -> list[Leftover]:  # noqa: ARG002 - the port's
        """None: a destroyed machine takes its disk along."""
        return []

    def remove(self, leftover: Leftover) -> None:
        """Nothing is ever left."""
        raise ProviderRefused(f"Vast.ai knows no {leftover.kind}")

    def _rental(self, offer: Offer, boot: Boot) -> dict[str, Any]:
        body: dict[str, Any] = {
            "client_id": "me",
            "image": self._image,
            "env": dict(boot.env),
            "disk": boot.disk_gb,
            "label": str(boot.label),
            "runtype": "args",  # keeps the image's entrypoint, and opens no ssh
            "args": ["--pool", boot.pool, "--model", boot.model],
            "cancel_unavail": True,  # fail, rather than leave a stopped machine that costs
        }
        return body | ({"price": offer.bid} if offer.is_interruptible else {})

    def _ask(
        self, method: str, path: str, body: Any = None, *, gone_is_fine: bool = False
    ) -> dict[str, Any]:
        """The answer to a call that may be repeated."""
        for attempt in stamina.retry_context(
            on=ProviderUnavailable,
            attempts=None,
            timeout=self._patience,
            wait_initial=self._first_wait,
            wait_jitter=self._first_wait,
            wait_max=15.0,
        ):
            with attempt, _transport():
                response = self._http.request(method, path, json=body)
                answer = _json(response)
                gone = response.status_code == 404 or answer.get("error") in _GONE
                if gone_is_fine and gone:
                    return {"instances": None}
                if not response.is_success or answer.get("success") is False:
                    raise _refusal(response.status_code, answer)
                return answer
        raise ProviderUnavailable


def search_body(need: Need, interruptible: bool) -> dict[str, Any]:
    """The search for this need; Vast.ai counts memory in MB, and disks in GB."""
    body: dict[str, Any] = {
        "verified": {"eq": True},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "num_gpus": {"eq": 1},
        "gpu_ram": {"gte": need.gpu_gb[0] * 1000, "lte": need.gpu_gb[1] * 1000},
        "cpu_ram": {"gte": need.ram_gb[0] * 1000},
        "reliability": {"gte": need.reliability},
        "cuda_max_good": {"gte": need.cuda},
        "inet_down": {"gte": need.inet_down},
        "disk_space": {"gte": need.disk_gb},
        "order": [["dph_total", "asc"]],
        "type": "bid" if interruptible else "on-demand",
        "limit": OFFERS,
        "allocated_storage": need.disk_gb,
    }
    return body | ({"gpu_name": {"in": list(need.gpu_names)}} if need.gpu_names else {})


def offer_of(row: Mapping[str, Any], need: Need, *, interruptible: bool) -> Offer:
    """An offer as Vast.ai's search gives it; `dph_total` holds the disk that was asked for."""
    bid = round(_number(row, "min_bid") * OVERBID, 4) if interruptible else 0.0
    disk = _number(row, "storage_cost") * need.disk_gb / HOURS_A_MONTH
    return Offer(
        id=str(row["id"]),
        provider="vast",
        usd_per_hour=bid + disk if interruptible else _number(row, "dph_total"),
        machine=f"vast/{row['machine_id']}" if row.get("machine_id") else "",
        owner=f"vast/owner/{row['host_id']}" if row.get("host_id") else "",
        gpu_name=str(row.get("gpu_name") or ""),
        gpu_count=int(_number(row, "num_gpus", 1)),
        gpu_gb=_number(row, "gpu_ram") / 1000,
        ram_gb=_number(row, "cpu_ram") / 1000,
        disk_gb=_number(row, "disk_space"),
        cuda=_number(row, "cuda_max_good"),
        inet_down=_number(row, "inet_down"),
        reliability=_number(row, "reliability", _number(row, "reliability2")),
        usd_per_gb_down=_number(row, "inet_down_cost"),
        usd_per_gb_up=_number(row, "inet_up_cost"),
        is_interruptible=interruptible,
        bid=bid,
        hours_left=_number(row, "duration", 3.6e9) / 3600,
    )


def host_of(row: Mapping[str, Any]) -> Host | None:
    """A machine as Vast.ai shows it; None when its label is not one of ours."""
    label = parse_label(str(row.get("label") or ""))
    if label is None:
        return None
    started = row.get("start_date")
    return Host(
        id=str(row["id"]),
        provider="vast",
        label=label,
        state=state_of(row),
        usd_per_hour=_number(row, "dph_total"),
        machine=f"vast/{row['machine_id']}" if row.get("machine_id") else "",
        owner=f"vast/owner/{row['host_id']}" if row.get("host_id") else "",
        created_at=datetime.fromtimestamp(float(started), UTC) if started else None,
        note=str(row.get("status_msg") or "")[:200],
    )


def state_of(row: Mapping[str, Any]) -> HostState:
    """What its three statuses come to; a word that we do not know is left to the deadlines."""
    actual = str(row.get("actual_status") or "")
    if actual in _LOST or _BROKEN in str(row.get("status_msg") or "").lower():
        return HostState.LOST
    if actual in _STOPPED or row.get("intended_status") == "stopped":  # outbid, or a failed bid
        return HostState.STOPPED
    return HostState.RUNNING if actual == "running" else HostState.BOOTING


@contextmanager
def _transport() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as exc:
        raise ProviderUnavailable from exc


@contextmanager
def _readable() -> Iterator[None]:
    """One of ours that is told of in a way that we cannot read costs, so it is not skipped."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ProviderUnavailable("Vast.ai's words about a machine cannot be read") from exc


def _refusal(
    status: int, answer: Mapping[str, Any]
) -> ProviderRefused | OfferGone | ProviderUnavailable:
    code = str(answer.get("error") or "")
    code = code if re.fullmatch(r"[a-z0-9_]{1,60}", code) else ""  # a code, and never a secret
    words = f"Vast.ai answers {status}{f' ({code})' if code else ''}"
    if code == "search_quota_exceeded":
        return ProviderRefused(f"{words}: no more searches until midnight UTC")
    if status in _PASSING:
        return ProviderUnavailable(words)
    if code == "no_such_ask" or status in (404, 410):
        return OfferGone(f"{words}: somebody else has this machine")
    if status in (401, 403):
        return ProviderRefused(f"{words}; check VAST_API_KEY and what it may do")
    return ProviderRefused(words)


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    if response.is_success:
        raise ProviderUnavailable("the answer is not Vast.ai's")
    return {}


def _number(row: Mapping[str, Any], name: str, default: float = 0.0) -> float:
    value = row.get(name)
    return default if value is None else float(value)
