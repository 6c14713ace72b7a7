"""A video says in itself, signed, that a model made it; whoever changes it breaks the signature."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import av
import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from stillreel import credentials
from stillreel.credentials import (
    MADE_BY_MODEL,
    check_credentials,
    read_credentials,
    sign_video,
)
from stillreel.encoder import Encoded, encode_video
from stillreel.errors import CredentialsFailed, SettingsInvalid
from stillreel.models.base import Decoded
from stillreel.settings import HostSettings, get_settings
from tests.certificates import SIGNER, time_stamp_authority, write_certificate, write_key
from tests.receiver import receiver

FRAMES = 12
KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
}


@pytest.fixture
def host(tmp_path: Path) -> HostSettings:
    return configured(*write_certificate(tmp_path, KEYS["P-256"]()))


def configured(chain: Path, key: Path, **more: Any) -> HostSettings:
    return HostSettings(c2pa_cert=chain, c2pa_key=key, **more)


def encode(folder: Path, host: HostSettings) -> Encoded:
    pictures = np.random.default_rng(3).integers(0, 255, (FRAMES, 72, 128, 3), np.uint8)
    decoded = Decoded(128, 72, FRAMES, iter([pictures]))
    sign = partial(sign_video, host=host, model="ltx-2/1") if host.c2pa_cert else None
    return encode_video(decoded, folder, stem="clip", fps=24, crop=(128, 72), sign=sign)


@pytest.mark.parametrize("kind", KEYS)
def test_a_signed_video_says_that_a_model_made_it_and_which(kind: str, tmp_path: Path) -> None:
    made = encode(tmp_path, configured(*write_certificate(tmp_path, KEYS[kind]())))

    found = read_credentials(made.video)

    assert found
    assert (found.is_intact, found.signer, found.signed_at) == (True, SIGNER, "")
    (actions,) = [x for x in found.claims["assertions"] if x["label"].startswith("c2pa.actions")]
    (action,) = actions["data"]["actions"]
    assert action["digitalSourceType"] == MADE_BY_MODEL
    assert action["softwareAgent"] == {"name": "ltx-2", "version": "1"}


def test_a_signed_video_plays_and_is_hashed_as_it_is(tmp_path: Path, host: HostSettings) -> None:
    made = encode(tmp_path, host)
    assert made.size == made.video.stat().st_size
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.stem.startswith("clip")) == [
        ".jpg",
        ".mp4",
        ".mp4",
    ]
    data = made.video.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(made.video) as film:
        assert sum(1 for _ in film.decode(video=0)) == FRAMES


def test_a_video_without_them_has_none(tmp_path: Path) -> None:
    made = encode(tmp_path, HostSettings())
    assert read_credentials(made.video) is None


@pytest.mark.parametrize("at", ["mdat", "jumb"])
def test_a_byte_that_was_changed_shows(at: str, tmp_path: Path, host: HostSettings) -> None:
    video = encode(tmp_path, host).video
    data = bytearray(video.read_bytes())
    data[data.index(at.encode()) + 400] ^= 1
    video.write_bytes(data)
    found = read_credentials(video)
    assert found
    assert not found.is_intact


def test_nobody_is_asked_for_credentials_that_lie_elsewhere(
    tmp_path: Path, host: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = encode(tmp_path, HostSettings())
    with receiver() as elsewhere:
        url = f"{elsewhere.url}/manifest.c2pa"
        builder = c2pa.Builder.__init__

        def remote(self: c2pa.Builder, manifest: Any) -> None:
            builder(self, manifest)
            self.set_no_embed()
            self.set_remote_url(url)

        monkeypatch.setattr(c2pa.Builder, "__init__", remote)
        sign_video(made.video, host=host, model="preview/1")
        assert url.encode() in made.video.read_bytes()
        assert read_credentials(made.video) is None
        assert elsewhere.requests == []


def test_a_time_stamp_says_when_it_was_signed(
    tmp_path: Path, host: HostSettings, require: Callable[[str, bool], None]
) -> None:
    require("openssl", bool(shutil.which("openssl")))
    (folder := tmp_path / "authority").mkdir()
    before = datetime.now(UTC).replace(microsecond=0)
    with time_stamp_authority(folder) as url:
        made = encode(tmp_path, host.model_copy(update={"c2pa_timestamp_url": url}))
    found = read_credentials(made.video)
    assert found
    assert found.is_intact
    assert before <= datetime.fromisoformat(found.signed_at) <= datetime.now(UTC)


def test_a_time_stamp_authority_that_is_away_is_told_and_nothing_is_signed(
    tmp_path: Path, host: HostSettings
) -> None:
    bare = encode(tmp_path, HostSettings()).video
    before = bare.read_bytes()
    away = host.model_copy(update={"c2pa_timestamp_url": "http://127.0.0.1:9/"})
    with pytest.raises(CredentialsFailed) as caught:
        sign_video(bare, host=away, model="preview/1")
    assert caught.value.retryable
    assert "127.0.0.1" not in caught.value.message
    assert bare.read_bytes() == before


def test_what_cannot_sign_is_said_before_a_job_comes(
    tmp_path: Path, host: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    check_credentials(host)
    other, none = tmp_path / "other.pem", tmp_path / "none.pem"
    write_key(other, KEYS["P-256"]())
    for files, told in [
        ((chain, other), "not the key of the first certificate"),
        ((chain, chain), "no PEM file of a private key"),
        ((key, key), "no PEM file"),
        ((none, key), "cannot be read"),
    ]:
        with pytest.raises(SettingsInvalid, match=told):
            check_credentials(configured(*files))
    weak = tmp_path / "weak"
    weak.mkdir()
    with pytest.raises(SettingsInvalid, match="2048 bits"):
        check_credentials(
            configured(*write_certificate(weak, rsa.generate_private_key(65537, 1024)))
        )
    (elsewhere := tmp_path / "elsewhere").mkdir()
    pair = write_certificate(elsewhere, KEYS["P-256"](), ExtendedKeyUsageOID.SERVER_AUTH)
    with pytest.raises(SettingsInvalid, match="signs nothing"):
        check_credentials(configured(*pair))
    monkeypatch.setattr(credentials, "find_spec", lambda _: None)
    with pytest.raises(SettingsInvalid, match=r"stillreel\[c2pa\]"):
        check_credentials(host)
    with pytest.raises(CredentialsFailed):
        sign_video(tmp_path / "clip.mp4", host=host, model="preview/1")


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"STILLREEL_C2PA_CERT": "/a.pem"}, "set both or none"),
        ({"STILLREEL_C2PA_TIMESTAMP_URL": "https://time.example.com"}, "set both or none"),
        ({"STILLREEL_C2PA_TIMESTAMP_URL": "time.example.com"}, "no http or https address"),
        ({"STILLREEL_C2PA_TIMESTAMP_URL": "https://a:b@time.example.com"}, "a password"),
        (
            {
                "STILLREEL_C2PA_CERT": "/a.pem",
                "STILLREEL_C2PA_KEY": "/b.pem",
                "STILLREEL_LEASE_URL": "https://api.example.com/lease",
                "STILLREEL_LEASE_TOKEN": "slt_x",
            },
            "a rented host may hold no key of yours",
        ),
    ],
)
def test_half_a_pair_and_a_stranger_s_machine_are_refused(
    env: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=told):
        get_settings()
