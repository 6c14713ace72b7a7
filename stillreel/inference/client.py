"""The client of this host's inference servers: start or attach, follow, and read the frames."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import stamina

from stillreel.errors import (
    InferenceCancelled,
    InferenceServerAway,
    SettingsInvalid,
    error_of,
)
from stillreel.inference.entry import (
    DecodeOrder,
    Entry,
    Health,
    InferenceOrder,
    Kind,
    State,
)
from stillreel.inference.spool import is_whole, read_spool
from stillreel.job import Phase
from stillreel.models.base import Decoded
from stillreel.settings import Settings

log = logging.getLogger("stillreel.inference")

WAIT_SECONDS = 20.0
LOSSES = 20
"""How often a server may end while one piece of work waits for it; whose end it is, it tells."""
ANSWER_SECONDS = 10.0
"""A server that takes longer for a word about itself is not well."""

OnEntry = Callable[[Entry], None]


def socket_path(home: Path, name: str = "gpu0") -> Path:
    """Where the server of one GPU listens; short, because a socket's name has about 100 bytes.

    Under a long home it lies in a directory of this user in the system's temporary one, which is
    made here. Raises SettingsInvalid when somebody else has made it, or can write there.
    """
    path = home / "run" / f"{name}.sock"
    if len(str(path).encode()) < 100:
        return path
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"stillreel-{os.getuid()}-{digest}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError as exc:
        raise SettingsInvalid(
            f"{folder} cannot be made ({exc.strerror}); set a shorter STILLREEL_HOME"
        ) from exc
    private = stat.S_ISDIR(facts.st_mode) and stat.S_IMODE(facts.st_mode) == 0o700
    if not private or facts.st_uid != os.getuid():
        raise SettingsInvalid(
            f"{folder} must be a directory of this user with mode 0700, and is not; delete it, or "
            "set a shorter STILLREEL_HOME"
        )
    return folder / f"{name}.sock"


def sockets_of(settings: Settings) -> list[Path]:
    """Where the inference servers of this host listen. Raises SettingsInvalid."""
    home, own = settings.host.home, settings.inference.inference_socket
    return [own] if own else [socket_path(home, f"gpu{n}") for n in range(settings.host.gpus)]


def answers(socket: Path) -> bool:
    """Whether a server listens there and says something about itself."""
    client = InferenceClient(socket, wait_for_server=0)
    try:
        client.health()
    except (InferenceServerAway, ValueError):  # or an answer that is none
        return False
    finally:
        client.close()
    return True


def is_silent(socket: Path, *, within: float = ANSWER_SECONDS) -> bool:
    """Whether a server listens there, and says nothing about itself within so many seconds.

    One that does not listen, because it loads its model first, or has ended, is not silent.
    """
    client = InferenceClient(socket, wait_for_server=0)
    try:
        client.health(within=within)
    except InferenceServerAway as exc:
        return isinstance(exc.__cause__, httpx.TimeoutException)
    except ValueError:  # it says something, if nothing that we know
        return False
    finally:
        client.close()
    return False


class InferenceClient:
    """Work on one inference server; every call waits for a server that is coming back."""

    def __init__(self, socket: Path, *, wait_for_server: float) -> None:
        self._wait_for_server = wait_for_server
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)),
            base_url="http://inference",
            timeout=httpx.Timeout(10.0, read=WAIT_SECONDS + 20),
            trust_env=False,
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def health(self, *, within: float = ANSWER_SECONDS) -> Health:
        """What the server says about itself; InferenceServerAway at once when it is not there."""
        try:
            response = self._http.get("/health", timeout=within)
        except httpx.TransportError as exc:
            raise InferenceServerAway from exc
        return Health.model_validate(response.json())

    def find(self, kind: Kind, run_id: str) -> Entry | None:
        """The entry of this run, without waiting; InferenceServerAway when nobody answers."""
        try:
            return self._get(kind, run_id, after=-1, wait=0)
        except httpx.TransportError as exc:
            raise InferenceServerAway from exc

    def infer(self, run_id: str, order: InferenceOrder, *, on_entry: OnEntry) -> Entry:
        """The finished entry of an inference, started here or attached to.

        `on_entry` is called with each change. Raises the server's error: InferenceServerDied or
        InferenceStalled where it ended under this work, InferenceServerAway when it does not come
        back. While the work is in the queue, a server that ends is only waited for.
        """
        return self._follow(Kind.INFERENCE, run_id, order, lambda _: False, on_entry=on_entry)

    @contextmanager
    def decode(self, run_id: str, order: DecodeOrder, *, on_entry: OnEntry) -> Iterator[Decoded]:
        """The frames of stored latents, readable while they are made; the spool ends with it.

        Raises as `infer`, and InferenceServerAway when the server starts again in the middle.
        """

        def follow(enough: Callable[[Entry], bool]) -> None:
            nonlocal seen
            seen = self._follow(Kind.DECODE, run_id, order, enough, on_entry=on_entry, known=seen)

        def wait_for(frames: int) -> None:
            follow(lambda e: e.phase is Phase.DECODE and e.step >= max(1, frames))

        seen: Entry | None = None
        try:
            yield read_spool(Path(order.spool_dir), wait_for)
            follow(lambda _: False)  # its end brings the seconds that it took, or a late failure
        finally:
            self.cancel(Kind.DECODE, run_id)

    def cancel(self, kind: Kind, run_id: str) -> None:
        """Stop and forget this work; a server that is away has forgotten it already."""
        try:
            self._http.delete(f"/{kind}/{run_id}")
        except httpx.TransportError:
            log.info("inference server away while cancelling run %s", run_id)

    def _follow(
        self,
        kind: Kind,
        run_id: str,
        order: InferenceOrder | DecodeOrder,
        enough: Callable[[Entry], bool],
        *,
        on_entry: OnEntry,
        known: Entry | None = None,
    ) -> Entry:
        entry, losses = known or self._start(kind, run_id, order), 0
        on_entry(entry)
        while entry.state.is_live and not enough(entry):
            latest = self._watch(kind, run_id, after=entry.version)
            if latest is None:
                losses += 1
                if losses > LOSSES:
                    raise InferenceServerAway(
                        "the inference server of this host ends again and again; its log says why"
                    )
                latest = self._return_to(kind, run_id, order, known)
            entry = latest
            on_entry(entry)
        return _checked(entry)

    def _return_to(
        self, kind: Kind, run_id: str, order: InferenceOrder | DecodeOrder, known: Entry | None
    ) -> Entry:
        """The entry on a server that has lost it; `known` is what a reader has gone by so far."""
        if known is not None and _is_decoded(order):
            return known.model_copy(update={"state": State.FINISHED, "step": known.steps})
        log.warning("the inference server was lost to run %s, which asks it again", run_id)
        entry = self._start(kind, run_id, order)
        if known is not None and entry.state.is_live and not entry.attached:
            raise InferenceServerAway(
                "the inference server was started again while its frames were read"
            )
        return entry

    def _start(self, kind: Kind, run_id: str, order: InferenceOrder | DecodeOrder) -> Entry:
        body = order.model_dump(mode="json")
        try:
            for attempt in stamina.retry_context(
                on=httpx.TransportError,
                attempts=None,
                timeout=self._wait_for_server,
                wait_initial=0.2,
                wait_max=1.0,
                wait_jitter=0.2,
            ):
                with attempt:
                    response = self._http.put(f"/{kind}/{run_id}", json=body)
                    response.raise_for_status()
                    return Entry.model_validate(response.json())
        except httpx.HTTPError as exc:
            raise InferenceServerAway(
                "the inference server of this host does not answer; start it with `stillreel host`"
            ) from exc
        raise InferenceServerAway

    def _watch(self, kind: Kind, run_id: str, *, after: int) -> Entry | None:
        try:
            return self._get(kind, run_id, after=after, wait=WAIT_SECONDS)
        except httpx.TransportError:
            return None

    def _get(self, kind: Kind, run_id: str, *, after: int, wait: float) -> Entry | None:
        response = self._http.get(f"/{kind}/{run_id}", params={"after": after, "wait": wait})
        return None if response.is_error else Entry.model_validate(response.json())


@contextmanager
def connect(settings: Settings, run_id: str) -> Iterator[InferenceClient]:
    """A client of the server that already has this run, else of the one with the least to do."""
    wait = settings.inference.server_wait_seconds
    clients = [InferenceClient(socket, wait_for_server=wait) for socket in sockets_of(settings)]
    try:
        yield clients[0] if len(clients) == 1 else min(clients, key=lambda c: _load_of(c, run_id))
    finally:
        for client in clients:
            client.close()


def _load_of(client: InferenceClient, run_id: str) -> int:
    try:
        if client.find(Kind.INFERENCE, run_id) or client.find(Kind.DECODE, run_id):
            return -1
        health = client.health()
    except InferenceServerAway:
        return 1_000_000
    return health.queued + (health.running is not None)


def _is_decoded(order: InferenceOrder | DecodeOrder) -> bool:
    return isinstance(order, DecodeOrder) and is_whole(Path(order.spool_dir))


def _checked(entry: Entry) -> Entry:
    if entry.state in (State.FAILED, State.CANCELLED):
        if entry.problem is None:
            raise InferenceCancelled
        raise error_of(entry.problem.code, entry.problem.message)
    return entry
