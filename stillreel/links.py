"""Links to local files over HTTP: signed for one method and object, and good for a time."""

from __future__ import annotations

import hmac
import time
from base64 import urlsafe_b64encode
from urllib.parse import quote, urlencode

from stillreel.errors import Forbidden
from stillreel.server_secret import sign

SIGNATURE_BYTES = 18


class Links:
    """Makes links below `base_url`, and checks those that come back; good for any base.

    All API processes of an installation share the secret, so each takes the links of the others.
    """

    def __init__(self, base_url: str, secret: bytes) -> None:
        self.base_url = base_url.rstrip("/")
        self._secret = secret

    def __repr__(self) -> str:
        return f"Links({self.base_url!r})"

    def download_url(self, key: str, seconds: int) -> str:
        """A link to GET the object from for this many seconds; HEAD works too."""
        return self._link("GET", key, seconds)

    def upload_url(self, key: str, content_type: str, size: int | None, seconds: int) -> str:
        """A link to PUT this type to for this many seconds, of exactly `size` bytes where given."""
        bound = {} if size is None else {"size": str(size)}
        return self._link("PUT", key, seconds, type=content_type, **bound)

    def check(self, method: str, key: str, *bound: str, expires: str, signature: str) -> None:
        """Nothing, when the link is good now: for GET, or for PUT with its type and size `bound`.

        Raises Forbidden.
        """
        right = self._signature(method, key, expires, *bound)
        if not hmac.compare_digest(signature.encode(errors="replace"), right.encode()):
            raise Forbidden(
                "The link's signature is wrong: a link is good as it was made, for one method and "
                "one object; ask the API for a new one."
            )
        if time.time() >= int(expires):
            raise Forbidden("The link has expired; ask the API for a new one.")

    def _link(self, method: str, key: str, seconds: int, **bound: str) -> str:
        expires = str(int(time.time()) + seconds)
        signature = self._signature(method, key, expires, *bound.values())
        query = urlencode({**bound, "expires": expires, "signature": signature})
        return f"{self.base_url}/files/{quote(key)}?{query}"

    def _signature(self, method: str, key: str, expires: str, *bound: str) -> str:
        mac = sign(self._secret, "file-link", method, key, expires, *bound)
        return urlsafe_b64encode(mac[:SIGNATURE_BYTES]).decode()
