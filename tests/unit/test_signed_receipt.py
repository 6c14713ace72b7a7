"""Signed receipts: what verifies, what does not, and what `stillreel verify` says of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from av import VideoFrame
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from typer.testing import CliRunner

from stillreel.cli import app, exit_code
from stillreel.encoder import movie
from stillreel.errors import NotVerified, RequestRejected, StillreelError
from stillreel.job import JobSpec
from stillreel.receipt import without_texts
from stillreel.signed_receipt import PAYLOAD_TYPE, SigningKey, open_envelope, read_public_key
from tests.receiver import Exchange, answer, receiver

KEY = SigningKey(b"secret of the installation")
JOB = "job_0123"
Envelope = dict[str, Any]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short MP4 that says which job it is of."""
    path = tmp_path_factory.mktemp("video") / "photo.mp4"
    prompt = "a prompt with\nstillreel job_of_another in it"
    comment = f"{prompt}\nstillreel {JOB} model=preview/1 seed=7 steps=0 encoder=libx264"
    with movie(path, (64, 64), fps=24, metadata={"comment": comment}) as write:
        for n in range(2):
            frame = VideoFrame(64, 64, "yuv420p")
            frame.pts = n
            write(frame)
    return path


def receipt_of(path: Path) -> dict[str, Any]:
    return {
        "job_id": JOB,
        "model": {"version": "preview/1", "seed": 7, "steps": 0},
        "input": {"prompt": "slow zoom in — ½", "image_sha256": None},
        "video": {"sha256": sha256(path.read_bytes()).hexdigest()},
    }


@pytest.fixture
def envelope(video: Path) -> Envelope:
    return KEY.sign(receipt_of(video), at=datetime(2026, 1, 18, tzinfo=UTC))


@pytest.fixture
def files(tmp_path: Path, envelope: Envelope) -> tuple[Path, Path]:
    """The signed receipt and the public key, as a caller has kept them."""
    receipt, key = tmp_path / "receipt.json", tmp_path / "key.json"
    receipt.write_text(json.dumps(envelope))
    key.write_text(json.dumps(KEY.public.to_json()))
    return receipt, key


def verify(*arguments: object, code: int = 0) -> str:
    """What the command prints on stdout; the exit code has to be this one."""
    done = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    if isinstance(done.exception, StillreelError):
        assert exit_code(done.exception) == code, done.exception
        return done.exception.message
    assert done.exit_code == code, done.output
    return done.stdout


def test_what_is_signed_is_what_another_implementation_verifies(envelope: Envelope) -> None:
    """By the text of DSSE, without a line of ours."""
    payload = base64.b64decode(envelope["payload"])
    kind = b"application/vnd.stillreel.receipt+json"
    signed = b"DSSEv1 38 " + kind + b" " + str(len(payload)).encode() + b" " + payload
    raw = base64.b64decode(KEY.public.to_json()["public_key"])
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    Ed25519PublicKey.from_public_bytes(raw).verify(signature, signed)


def test_every_process_of_an_installation_has_the_same_key() -> None:
    assert SigningKey(b"secret of the installation").public == KEY.public
    assert SigningKey(b"of another").public != KEY.public


def changed(envelope: Envelope, **values: Any) -> Envelope:
    return envelope | values


def other_prompt(envelope: Envelope) -> Envelope:
    payload = base64.b64decode(envelope["payload"]).replace(b"slow", b"fast")
    return changed(envelope, payload=base64.b64encode(payload).decode())


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(other_prompt, id="another-text"),
        pytest.param(lambda it: changed(it, payloadType="text/plain"), id="another-type"),
        pytest.param(lambda it: changed(it, signatures=[]), id="no-signature"),
        pytest.param(
            lambda _: SigningKey(b"of another").sign({"job_id": JOB}, at=datetime.now(UTC)),
            id="another-key",
        ),
    ],
)
def test_a_forgery_is_not_verified(
    envelope: Envelope, forge: Callable[[Envelope], Envelope]
) -> None:
    assert open_envelope(envelope, KEY.public)["receipt"]["job_id"] == JOB
    with pytest.raises(NotVerified):
        open_envelope(forge(envelope), KEY.public)


@pytest.mark.parametrize("text", ["{}", "[]", '{"payload": 1}', '{"job_id": "job_1"}', "null"])
def test_what_is_no_envelope_is_refused(text: str) -> None:
    with pytest.raises(RequestRejected, match=r"no signed receipt"):
        open_envelope(json.loads(text), KEY.public)


@pytest.mark.parametrize("text", ["", "c2hvcnQ=", "{}", '{"public_key": 3}', "not base64"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(RequestRejected, match=r"no public key"):
        read_public_key(text)


def test_a_key_is_read_as_the_api_tells_it_or_bare() -> None:
    facts = KEY.public.to_json()
    assert read_public_key(json.dumps(facts)) == read_public_key(facts["public_key"]) == KEY.public


# --- the command --------------------------------------------------------------------------------


def test_a_video_is_verified_without_a_network(video: Path, files: tuple[Path, Path]) -> None:
    receipt, key = files
    told = verify(video, "--receipt", receipt, "--key", key)
    assert "byte for byte" in told
    assert KEY.public.id in told
    facts = json.loads(verify(video, "--receipt", receipt, "--key", key, "--json"))
    assert facts["verified"] == {"signature": True, "video": True}


def test_a_receipt_alone_says_that_no_video_was_looked_at(files: tuple[Path, Path]) -> None:
    receipt, key = files
    assert "not looked at" in verify(receipt, "--key", key)


def test_another_video_is_not_verified(
    video: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    receipt, key = files
    other = tmp_path / "other.mp4"
    other.write_bytes(video.read_bytes() + b"\0")
    told = verify(other, "--receipt", receipt, "--key", key, code=1)
    assert "is not the video of this receipt" in told


@pytest.fixture
def served(envelope: Envelope, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Verifies this file with an API that has the receipt; the paths that were asked for."""
    table = {"/api/v1/receipt-key": KEY.public.to_json(), f"/api/v1/jobs/{JOB}/receipt": envelope}

    def act(exchange: Exchange) -> None:
        body = table.get(exchange.handler.path)
        problem = b'{"code": "job_unknown", "detail": "none"}'
        answer(200 if body else 404, json.dumps(body).encode() if body else problem)(exchange)

    def run(*arguments: str) -> list[str]:
        with receiver(act) as server:
            monkeypatch.setenv("STILLREEL_API_URL", server.url)
            monkeypatch.setenv("STILLREEL_API_KEY", "some-key")
            assert "byte for byte" in verify(*arguments)
        return [request.path for request in server.requests]

    return run


def test_receipt_and_key_come_from_the_api(
    video: Path, served: Callable[..., list[str]], files: tuple[Path, Path]
) -> None:
    assert served(str(video)) == ["/api/v1/receipt-key", f"/api/v1/jobs/{JOB}/receipt"]
    assert served(str(video), "--key", str(files[1])) == [f"/api/v1/jobs/{JOB}/receipt"]


@pytest.mark.parametrize("content", [b"neither", b"", b"{not json", b"{}"])
def test_what_is_no_video_is_refused(
    content: bytes, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    verify(path, "--key", files[1], code=2)
    verify(tmp_path / "nothing", "--key", files[1], code=2)


# --- the prompt ---------------------------------------------------------------------------------


def test_a_host_may_leave_prompts_out_whatever_the_order_says() -> None:
    spec = JobSpec.model_validate({"prompt": "slow zoom in"})
    assert without_texts(spec, embed_prompt=True).embed_prompt
    assert not without_texts(spec, embed_prompt=False).embed_prompt
    hidden = spec.model_copy(update={"embed_prompt": False})
    assert not without_texts(hidden, embed_prompt=True).embed_prompt


def test_the_type_is_the_documented_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "provenance.md").read_text()
    assert PAYLOAD_TYPE in page
