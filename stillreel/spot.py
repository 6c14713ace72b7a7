"""EC2's notice that a spot host is taken away in two minutes: its jobs go back at once.

The notice is read from the instance's metadata (IMDSv2). The earlier word that an instance is
likely to be taken away (`rebalance`) is not acted upon: most of these hosts go on for hours.
"""

from __future__ import annotations

import logging
import os
import signal
import threading

import httpx

from stillreel.settings import Settings

ADDRESS = "http://169.254.169.254"
"""Of the metadata, on every EC2 instance."""
LOOK_SECONDS = 5.0
"""As often as AWS says."""
PATIENCE_SECONDS = 2.0
TOKEN_SECONDS = 6 * 3600

log = logging.getLogger("stillreel.spot")


class Metadata:
    """What an EC2 instance is told about itself; holds a token, and takes a new one when due."""

    def __init__(self, address: str = ADDRESS) -> None:
        self._client = httpx.Client(
            base_url=f"{address}/latest", timeout=PATIENCE_SECONDS, trust_env=False
        )
        self._token = ""

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def notice(self) -> str:
        """What AWS is about to do with this instance, and when; empty while it stays.

        Raises httpx.HTTPError where the metadata cannot be read.
        """
        answer = self._ask()
        if answer.status_code == httpx.codes.UNAUTHORIZED:  # the token has expired
            self._token = ""
            answer = self._ask()
        if answer.status_code == httpx.codes.NOT_FOUND:
            return ""
        answer.raise_for_status()
        return " ".join(answer.text.split())[:200] or "no word of what"

    def _ask(self) -> httpx.Response:
        self._token = self._token or self._new_token()
        headers = {"X-aws-ec2-metadata-token": self._token}
        return self._client.get("/meta-data/spot/instance-action", headers=headers)

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        answer = self._client.put("/api/token", headers=headers)
        answer.raise_for_status()
        return answer.text


def hand_back_on_notice(settings: Settings) -> None:
    """End this host as by SIGTERM once EC2 gives notice; STILLREEL_SPOT_NOTICE turns it on."""
    if settings.host.spot_notice:
        watch = threading.Thread(target=_watch, args=(Metadata(ADDRESS),), daemon=True)
        watch.start()


def wait_for_notice(metadata: Metadata, *, look_seconds: float = LOOK_SECONDS) -> str:
    """The notice, whenever it comes; metadata that cannot be read is no notice."""
    ticker, is_away = threading.Event(), False
    while True:
        # First a pause: a signal that comes before the host listens for it would only kill it.
        ticker.wait(look_seconds)
        try:
            if notice := metadata.notice():
                return notice
        except httpx.HTTPError as exc:
            if not is_away:  # once per outage
                log.warning("the spot notice cannot be read: %s", exc)
            is_away = True
        else:
            is_away = False


def _watch(metadata: Metadata) -> None:
    notice = wait_for_notice(metadata)
    log.warning("this spot host is taken away, its jobs go back to the queue: %s", notice)
    os.kill(os.getpid(), signal.SIGTERM)
