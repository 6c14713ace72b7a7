"""No address a caller chose reaches the private network, a full memory or an endless wait."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import logging
import socket
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillreel.errors import (
    AddressRefused,
    ImageFetchFailed,
    ImageRejected,
    ImageTooLarge,
    ImageUnavailable,
    StillreelError,
)
from stillreel.guard import (
    EVERYWHERE,
    GuardedTransport,
    check_url,
    fetch_bytes,
    is_public,
    wait_for,
    warn_of_allowed,
)
from stillreel.settings import get_settings
from tests.receiver import (
    Answer,
    answer,
    drip_body,
    drip_headers,
    endless,
    hang,
    receiver,
    redirect,
    reset,
)

PUBLIC = "1.1.1.1"
Resolve = Callable[..., None]


def pair(url: str) -> str:
    return url.partition("//")[2].partition("/")[0]


def fetch(url: str, *, allow: tuple[str, ...] | None = None, seconds: float = 10) -> bytes:
    """What is at `url`, whose own pair is allowed unless `allow` says what is."""
    pairs = (pair(url),) if allow is None else allow
    return wait_for(fetch_bytes(url, limit=100_000, seconds=seconds, allow=pairs))[0]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """`resolve("10.0.0.1", ["1.1.1.1", "::1"])`: what the next lookups answer, the last on."""

    def plan(*answers: str | list[str] | OSError) -> None:
        queue = list(answers)

        def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            found = queue.pop(0) if len(queue) > 1 else queue[0]
            if isinstance(found, OSError):
                raise found
            addresses = [found] if isinstance(found, str) else found
            return [(0, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return plan


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was dialled; PUBLIC leads to 127.0.0.1, as if a receiver there were in the internet."""
    dialled: list[str] = []
    dial = asyncio.base_events.BaseEventLoop.create_connection

    async def connect(loop: Any, factory: Any, host: str, *args: Any, **options: Any) -> Any:
        dialled.append(host)
        there = "127.0.0.1" if host == PUBLIC else host
        return await dial(loop, factory, there, *args, **options)

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "create_connection", connect)
    return dialled


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.1",
        "0x7F.0.0.01",
        "127.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[fec0::1]",
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[ff02::1]",
        "[ff0e::1]",
    ],
)
def test_private_addresses_are_refused_in_every_spelling(host: str) -> None:
    with receiver() as server, pytest.raises(AddressRefused) as caught:
        fetch(f"http://{host}:{server.port}/", allow=())
    assert caught.value.message == AddressRefused().message
    assert server.requests == []


@pytest.mark.parametrize("host", ["1.1.1.1", "[2606:4700:4700::1111]", "[64:ff9b::101:101]"])
def test_public_addresses_pass_the_check(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[str] = []

    async def connect(loop: Any, factory: Any, host: str, *_: Any, **__: Any) -> Any:
        dialled.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "create_connection", connect)
    with pytest.raises(ImageFetchFailed):
        fetch(f"http://{host}/", allow=())
    assert dialled == [host.strip("[]")]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cat.png",
        "//127.0.0.1/a",
        "ftp://127.0.0.1/a",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "data:image/png;base64,AAAA",
        "http://",
        "http:///a",
        "http://user:word@127.0.0.1/",
        "http://user@127.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:0/",
        "http://a..b/",
        "http://" + "a" * 64 + ".example/",
        "http://[::1",
        "http://exa mple/",
        "http://\x00/",
    ],
)
def test_what_is_no_plain_http_address_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        fetch(url)
    assert caught.value.message == AddressRefused().message


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rest=st.text(max_size=40))
def test_no_text_breaks_the_guard(rest: str, resolve: Resolve) -> None:
    resolve("10.0.0.1")
    with pytest.raises(StillreelError):
        fetch(f"http://{rest}", allow=())


@settings(max_examples=200)
@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6), st.ip_addresses(v=6, network="2000::/3"))
)
def test_no_address_that_ipaddress_calls_private_is_called(address: Any) -> None:
    assert not is_public(address) or ip_address(str(address)).is_global


def test_one_private_address_among_public_ones_refuses_the_host(resolve: Resolve) -> None:
    resolve(["1.1.1.1", "10.0.0.1"])
    with pytest.raises(AddressRefused):
        fetch("http://mixed.example/", allow=())


def test_a_missing_name_and_a_private_one_give_the_same_error(resolve: Resolve) -> None:
    resolve(socket.gaierror(socket.EAI_NONAME, "no such name"), "10.0.0.1", [])
    texts = set()
    for _ in range(3):
        with pytest.raises(AddressRefused) as caught:
            fetch("http://inner.example/", allow=())
        texts.add(caught.value.message)
    assert texts == {AddressRefused().message}


def test_a_resolver_that_fails_for_now_is_worth_a_retry(resolve: Resolve) -> None:
    resolve(socket.gaierror(socket.EAI_AGAIN, "try again"))
    with pytest.raises(ImageFetchFailed):
        fetch("http://some.example/")


def test_a_pair_is_fetched_with_its_name_as_host(resolve: Resolve) -> None:
    resolve("127.0.0.1")
    with receiver(answer(200, b"picture", Content_Type="image/png")) as server:
        named = f"media.example:{server.port}"
        url = f"http://{named}/a?b=c"
        fetched = wait_for(fetch_bytes(url, limit=7, seconds=10, allow=(named,)))
    assert fetched == (b"picture", "image/png")
    assert server.requests[0].path == "/a?b=c"
    assert server.requests[0].headers["host"] == named


@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("localhost", "LocalHost"),
        ("[::1]", "[::1]"),
    ],
)
def test_a_pair_admits_its_host_and_port(allowed: str, host: str) -> None:
    listening = "::1" if ":" in host else "127.0.0.1"
    with receiver(answer(200, b"picture"), host=listening) as server:
        allow = ("other.example:1", f"{allowed}:{server.port}")
        assert fetch(f"http://{host}:{server.port}/", allow=allow) == b"picture"


@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "127.0.0.1."),
        ("127.0.0.1", "127.1"),
        ("127.0.0.1", "2130706433"),
        ("127.0.0.1", "0x7f000001"),
        ("127.0.0.1", "017700000001"),
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "[::ffff:127.0.0.1]"),
        ("127.0.0.1", "[::ffff:7f00:1]"),
        ("127.0.0.1", "[64:ff9b::7f00:1]"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "user@127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("localhost", "localhost."),
        ("localhost", "a.localhost"),
        ("localhost", "%6cocalhost"),
        ("[::1]", "[0:0:0:0:0:0:0:1]"),
        ("[::1]", "[::0:1]"),
        ("0.0.0.0", "127.0.0.1"),
    ],
)
def test_a_pair_admits_no_other_name_of_its_address(allowed: str, host: str) -> None:
    with receiver() as server, pytest.raises(AddressRefused) as caught:
        fetch(f"http://{host}:{server.port}/", allow=(f"{allowed}:{server.port}",))
    assert caught.value.message == AddressRefused().message
    assert server.requests == []


def test_a_pair_admits_no_other_port() -> None:
    with receiver() as other, receiver() as server, pytest.raises(AddressRefused):
        fetch(other.url, allow=(pair(server.url),))
    assert other.requests == []


@pytest.mark.parametrize(
    ("url", "allowed"), [("http://inner.example/", 80), ("https://inner.example/", 443)]
)
def test_a_url_without_a_port_has_that_of_its_scheme(
    url: str, allowed: int, resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve("10.0.0.1")

    async def connect(*_: Any, **__: Any) -> Any:
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "create_connection", connect)
    with pytest.raises(ImageFetchFailed):
        fetch(url, allow=(f"inner.example:{allowed}",))
    with pytest.raises(AddressRefused):
        fetch(url, allow=("inner.example:8080",))


def test_a_second_dns_answer_is_never_asked_for(resolve: Resolve, internet: list[str]) -> None:
    resolve(PUBLIC, "127.0.0.2")
    with (
        receiver(answer(200, b"outer")) as outer,
        receiver(answer(200, b"inner"), host="127.0.0.2", port=outer.port) as inner,
    ):
        assert fetch(f"http://rebind.example:{outer.port}/", allow=()) == b"outer"
    assert internet == [PUBLIC]
    assert inner.requests == []


def test_a_pairs_name_is_resolved_once_too(resolve: Resolve) -> None:
    resolve("127.0.0.1", "127.0.0.2")
    with (
        receiver(answer(200, b"outer")) as outer,
        receiver(answer(200, b"inner"), host="127.0.0.2", port=outer.port) as inner,
    ):
        assert fetch(f"http://media.example:{outer.port}/") == b"outer"
    assert inner.requests == []


def test_each_hop_of_a_redirect_is_checked_again(resolve: Resolve, internet: list[str]) -> None:
    resolve(PUBLIC, "127.0.0.2")
    with (
        receiver(redirect("/again")) as outer,
        receiver(host="127.0.0.2", port=outer.port) as inner,
        pytest.raises(AddressRefused),
    ):
        fetch(f"http://rebind.example:{outer.port}/", allow=())
    assert [request.path for request in outer.requests] == ["/"]
    assert internet == [PUBLIC]
    assert inner.requests == []


@pytest.mark.usefixtures("internet")
def test_a_public_server_may_redirect_to_a_pair_only() -> None:
    with receiver(answer(200, b"picture")) as inner, receiver(redirect(inner.url)) as outer:
        url = f"http://{PUBLIC}:{outer.port}/"
        assert fetch(url, allow=(pair(inner.url),)) == b"picture"
        for allow in ((), (f"127.0.0.1:{outer.port}",), (f"localhost:{inner.port}",)):
            with pytest.raises(AddressRefused):
                fetch(url, allow=allow)
    assert len(inner.requests) == 1


def test_a_url_of_the_operators_may_be_anywhere_but_stays_plain_http() -> None:
    with receiver(answer(200, b"picture")) as server:
        assert fetch(server.url, allow=EVERYWHERE) == b"picture"
        for url in ("ftp://127.0.0.1/", f"http://u:p@127.0.0.1:{server.port}/"):
            with pytest.raises(AddressRefused):
                fetch(url, allow=EVERYWHERE)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "allow"),
    [
        ("http://1.1.1.1/a.png", ()),
        ("https://[2606:4700:4700::1111]/", ()),
        ("http://127.0.0.1:9000/", ("127.0.0.1:9000",)),
        ("http://10.0.0.1:9000/", EVERYWHERE),
    ],
)
def test_a_url_that_may_be_called_passes_beforehand(url: str, allow: tuple[str, ...]) -> None:
    wait_for(check_url(url, allow))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://[",
        "http://\x00/",
        "ftp://1.1.1.1/",
        "http://user@1.1.1.1/",
        "http://127.0.0.1:9001/",
        "http://localhost:9000/",
        "http://169.254.169.254/",
    ],
)
def test_a_url_that_may_not_be_called_is_refused_beforehand(url: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        wait_for(check_url(url, ("127.0.0.1:9000",)))
    assert caught.value.message == AddressRefused().message


def test_what_passed_beforehand_is_checked_again_at_the_call(resolve: Resolve) -> None:
    resolve(PUBLIC, "127.0.0.1")
    with receiver() as server:
        url = f"http://rebind.example:{server.port}/"
        wait_for(check_url(url))
        with pytest.raises(AddressRefused):
            fetch(url, allow=())
    assert server.requests == []


def test_a_name_that_cannot_be_resolved_now_passes_beforehand(resolve: Resolve) -> None:
    resolve(socket.gaierror(socket.EAI_AGAIN, "try again"))
    wait_for(check_url("http://some.example/"))


@pytest.mark.parametrize(
    ("allowed", "told"), [("", []), ("127.0.0.1:9000,[::1]:9000", ["127.0.0.1:9000, [::1]:9000"])]
)
def test_allowed_pairs_are_told_in_one_warning(
    allowed: str,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("STILLREEL_ALLOW_ADDRESSES", allowed)
    warn_of_allowed(get_settings())
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [pairs for record in warnings for pairs in record.args or ()] == told


@pytest.mark.parametrize("host", ["[::1]", "10.0.0.1", "2130706434", "169.254.169.254"])
def test_a_redirect_to_a_private_address_is_refused(host: str) -> None:
    with receiver(redirect(f"http://{host}/")) as server, pytest.raises(AddressRefused) as caught:
        fetch(server.url)
    assert caught.value.message == AddressRefused().message


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/"]
)
def test_a_redirect_to_no_plain_http_address_is_refused(target: str) -> None:
    with receiver(redirect(target)) as server, pytest.raises(AddressRefused):
        fetch(server.url)


@pytest.mark.parametrize("target", ["", "http://[", "http:///x", "//", "\xff\xfe", "http://a..b/"])
def test_a_redirect_to_nonsense_is_an_error_of_ours(target: str) -> None:
    with receiver(redirect(target)) as server, pytest.raises(StillreelError):
        fetch(server.url)


def test_a_few_redirects_are_followed() -> None:
    with receiver(*[redirect("/next")] * 5, answer(200, b"picture")) as server:
        assert fetch(server.url) == b"picture"


def test_endless_redirects_end() -> None:
    with receiver(redirect("/again")) as server, pytest.raises(ImageUnavailable, match="5 times"):
        fetch(server.url)
    assert len(server.requests) == 6


def test_the_next_address_is_tried_when_the_first_is_dead(resolve: Resolve) -> None:
    resolve(["::1", "127.0.0.1"])
    with receiver(answer(200, b"picture")) as server:
        assert fetch(f"http://two.example:{server.port}/") == b"picture"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 304])
def test_a_source_that_is_finally_bad_is_not_retried(status: int) -> None:
    with receiver(answer(status)) as server, pytest.raises(ImageUnavailable, match=str(status)):
        fetch(server.url)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_source_that_is_bad_for_now_is_retryable(status: int) -> None:
    with receiver(answer(status)) as server, pytest.raises(ImageFetchFailed, match=str(status)):
        fetch(server.url)


@pytest.mark.parametrize(
    "misbehave",
    [
        pytest.param(drip_body, id="body byte by byte"),
        pytest.param(drip_headers, id="header by header"),
        pytest.param(hang, id="no answer"),
    ],
)
def test_the_deadline_holds_against_slow_servers(misbehave: Answer) -> None:
    with receiver(misbehave) as server, pytest.raises(ImageFetchFailed, match=r"0\.3 s"):
        fetch(server.url, seconds=0.3)


def test_the_deadline_covers_a_name_resolution_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    released = Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        released.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        with pytest.raises(ImageFetchFailed, match=r"0\.2 s"):
            fetch("http://slow.example/", seconds=0.2)
        assert not released.is_set()
    finally:
        released.set()


def test_names_that_hang_hold_up_no_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    released = Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60) and [])

    async def work() -> str:
        url = "http://slow.example/"
        fetches = [fetch_bytes(url, limit=1, seconds=5) for _ in range(100)]
        tasks = [asyncio.create_task(each) for each in fetches]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(4):
                return await asyncio.to_thread(str, "done")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    try:
        assert wait_for(work()) == "done"
    finally:
        released.set()


@pytest.mark.parametrize(
    "misbehave",
    [
        pytest.param(reset, id="reset"),
        pytest.param(answer(200, b"short", Content_Length="9"), id="cut off"),
        pytest.param(lambda exchange: exchange.write(b"nonsense\r\n\r\n"), id="not http"),
    ],
)
def test_a_broken_connection_is_retryable(misbehave: Answer) -> None:
    with receiver(misbehave) as server, pytest.raises(ImageFetchFailed) as caught:
        fetch(server.url)
    assert "127.0.0.1" not in caught.value.message


def test_a_closed_port_is_retryable() -> None:
    with receiver() as server:
        pass
    with pytest.raises(ImageFetchFailed):
        fetch(server.url)


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(endless, id="without a length"),
        pytest.param(answer(200, b"", Content_Length="100001"), id="announced"),
        pytest.param(
            answer(200, gzip.compress(bytes(10_000_000)), Content_Encoding="gzip"), id="gzip bomb"
        ),
    ],
)
def test_more_bytes_than_allowed_are_refused(flood: Answer) -> None:
    with receiver(flood) as server, pytest.raises(ImageTooLarge, match="100,000 bytes"):
        fetch(server.url)


def test_exactly_the_allowed_bytes_are_taken() -> None:
    with receiver(answer(200, bytes(100_000))) as server:
        assert fetch(server.url) == bytes(100_000)


def test_a_server_that_compresses_unasked_is_understood() -> None:
    body = answer(200, gzip.compress(b"picture"), Content_Encoding="gzip")
    with receiver(body) as server:
        assert fetch(server.url) == b"picture"
    assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip"])
def test_other_or_damaged_compression_is_refused(encoding: str) -> None:
    damaged = answer(200, b"??", Content_Encoding=encoding)
    with receiver(damaged) as server, pytest.raises(ImageRejected, match="compressed"):
        fetch(server.url)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver(answer(200, b"direct")) as server, receiver(answer(200, b"proxy")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert fetch(server.url) == b"direct"
    assert proxy.requests == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for media.example, with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "media.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("media.example")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "media.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_a_pinned_address_still_has_to_prove_its_name(certificate: Path, resolve: Resolve) -> None:
    resolve("127.0.0.1")
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate)
    tls = ssl.create_default_context(cafile=str(certificate))

    async def get(host: str, port: int) -> bytes:
        transport = GuardedTransport((f"{host}:{port}",), tls=tls)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            return (await client.get(f"https://{host}:{port}/")).content

    with receiver(answer(200, b"picture"), tls=server_tls) as server:
        assert wait_for(get("media.example", server.port)) == b"picture"
        assert wait_for(get("media.example.", server.port)) == b"picture"
        with pytest.raises(httpx.ConnectError, match="certificate"):
            wait_for(get("other.example", server.port))
    assert len(server.requests) == 2
