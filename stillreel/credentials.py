"""Content Credentials (C2PA) in a video: signed in the file itself, that a model made it and which.

https://spec.c2pa.org; the work is done by c2pa-python, which the extra `c2pa` installs.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import stamina
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from PIL import Image

from stillreel import __version__
from stillreel.errors import CredentialsFailed, SettingsInvalid
from stillreel.settings import HostSettings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

MADE_BY_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""https://cv.iptc.org/newscodes/digitalsourcetype/"""
Pair = tuple[bytes, bytes, str]
"""Certificate chain and private key as PEM, and C2PA's name of the algorithm."""
TRIES = 3
OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}

log = logging.getLogger("stillreel.credentials")


@dataclass(frozen=True)
class Credentials:
    """What a file says of itself, as far as its signature holds."""

    is_intact: bool
    """Its picture, sound and tags are as they were signed, by whomever."""
    signer: str
    """The organisation that the certificate names; anybody can make one of any name."""
    signed_at: str
    """As a time stamp authority says; empty without one."""
    claims: dict[str, Any]
    """The manifest, as c2pa-python gives it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "intact": self.is_intact,
            "signer": self.signer,
            "signed_at": self.signed_at,
            "claims": self.claims,
        }

    def to_text(self) -> str:
        """What a person has to know of them."""
        if not self.is_intact:
            return "there are some, and their signature does not hold"
        when = f" at {self.signed_at}" if self.signed_at else ""
        return f"intact; by their own word signed by {self.signer or 'nobody named'}{when}"


def sign_video(path: Path, *, host: HostSettings, model: str) -> None:
    """Write Content Credentials into this MP4, in its place.

    Raises CredentialsFailed; what exactly went wrong is the host's business and stands in its log.
    """
    try:
        pair = _read(host)
    except SettingsInvalid as exc:
        raise _unsigned(exc) from exc
    import c2pa

    try:
        for attempt in stamina.retry_context(on=c2pa.C2paError, attempts=TRIES, wait_max=5):
            with attempt:  # not the encode again, where a time stamp authority is away for a moment
                _sign(path, "video/mp4", pair, model=model, authority=host.c2pa_timestamp_url)
    except c2pa.C2paError as exc:
        raise _unsigned(exc) from exc


def check_credentials(host: HostSettings) -> None:
    """Nothing, where what is configured can sign; the time stamp authority is not asked.

    Raises SettingsInvalid.
    """
    pair = _read(host)
    import c2pa

    with TemporaryDirectory() as folder:
        picture = Path(folder, "try.jpg")
        Image.new("RGB", (8, 8)).save(picture)
        try:
            _sign(picture, "image/jpeg", pair, model="preview/1", authority="")
        except c2pa.C2paError as exc:
            raise SettingsInvalid(
                f"STILLREEL_C2PA_CERT: C2PA signs nothing with {host.c2pa_cert} ({str(exc)[:300]})"
            ) from exc


def is_installed() -> bool:
    """Whether the extra is there."""
    return find_spec("c2pa") is not None


def read_credentials(path: Path) -> Credentials | None:
    """The Content Credentials in a file; None without them. The extra has to be installed.

    Nothing is asked over the network, whatever address the file names for credentials elsewhere.
    """
    import c2pa

    try:
        with path.open("rb") as file:
            alone = c2pa.Context.from_dict({"verify": OFFLINE})
            reader = c2pa.Reader.try_create("video/mp4", file, context=alone)
            if reader is None:
                return None
            with reader:
                told: dict[str, Any] = json.loads(reader.json())
    except c2pa.C2paError as exc:
        if str(exc).startswith("Remote:"):  # they lie elsewhere, and anybody may say so
            return None
        return Credentials(is_intact=False, signer="", signed_at="", claims={})
    claims = told["manifests"][told["active_manifest"]]
    signature = claims.get("signature_info") or {}
    return Credentials(
        is_intact=told.get("validation_state") in ("Valid", "Trusted"),
        signer=str(signature.get("issuer") or ""),
        signed_at=str(signature.get("time") or ""),
        claims=claims,
    )


def _unsigned(why: Exception) -> CredentialsFailed:
    log.error("a video could not be signed: %s", str(why)[:500])
    return CredentialsFailed(
        "The video could not be signed on its host, whose log says why; start it again once that "
        "is mended."
    )


def _sign(path: Path, kind: str, pair: Pair, *, model: str, authority: str) -> None:
    """Sign a file of this kind in its place. Raises C2paError, and leaves it as it was then."""
    import c2pa

    certificate, key, algorithm = pair
    name, _, version = model.partition("/")
    made = {
        "action": "c2pa.created",
        "digitalSourceType": MADE_BY_MODEL,
        "softwareAgent": {"name": name, "version": version},
    }
    manifest = {
        "claim_generator_info": [{"name": "stillreel", "version": __version__}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [made]}}],
    }
    signed = path.with_suffix(".signed")
    info = c2pa.C2paSignerInfo(algorithm, certificate, key, authority or None)
    with (
        c2pa.Signer.from_info(info) as signer,
        c2pa.Builder(manifest) as builder,
        path.open("rb") as bare,
        signed.open("w+b") as file,
    ):
        builder.sign(signer, kind, bare, file)
    signed.replace(path)


def _read(host: HostSettings) -> Pair:
    """The configured pair. Raises SettingsInvalid."""
    if not is_installed():
        raise SettingsInvalid(
            "STILLREEL_C2PA_CERT: the package that signs is not installed; "
            "pip install 'stillreel[c2pa]', or leave it out"
        )
    chain, key = _pem(host.c2pa_cert, "CERT"), _pem(host.c2pa_key, "KEY")
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except (ValueError, IndexError) as exc:
        raise SettingsInvalid(f"STILLREEL_C2PA_CERT: {host.c2pa_cert} is no PEM file") from exc
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as exc:
        raise SettingsInvalid(
            f"STILLREEL_C2PA_KEY: {host.c2pa_key} is no PEM file of a private key without password"
        ) from exc
    if _bytes(private.public_key()) != _bytes(certificate.public_key()):
        raise SettingsInvalid(
            "STILLREEL_C2PA_KEY: it is not the key of the first certificate in STILLREEL_C2PA_CERT"
        )
    plain = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return chain, plain, _algorithm(private)


def _pem(path: Path | None, name: str) -> bytes:
    try:
        return path.read_bytes() if path else b""
    except OSError as exc:
        raise SettingsInvalid(
            f"STILLREEL_C2PA_{name}: {path} cannot be read ({exc.strerror})"
        ) from exc


def _algorithm(key: PrivateKeyTypes) -> str:
    match key:
        case ec.EllipticCurvePrivateKey() if key.curve.name in CURVES:
            return CURVES[key.curve.name]
        case ed25519.Ed25519PrivateKey():
            return "ed25519"
        case rsa.RSAPrivateKey() if key.key_size >= 2048:
            return "ps256"
        case _:
            raise SettingsInvalid(
                "STILLREEL_C2PA_KEY: C2PA has EC keys on P-256, P-384 and P-521, Ed25519, and RSA "
                "of 2048 bits and more"
            )


def _bytes(key: Any) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
