"""No address a caller chose reaches the private network, a full memory or an endless wait."""

from __future__ import annotations

import asyncio
import datetime
import gzip
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
    SettingsInvalid,
    StillreelError,
)
from stillreel.guard import GuardedTransport, fetch_bytes, wait_for
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

LOOPBACK = ("127.0.0.1",)
Resolve = Callable[..., None]


def fetch(url: str, *, allow: tuple[str, ...] = LOOPBACK, seconds: float = 10) -> bytes:
    return wait_for(fetch_bytes(url, limit=100_000, seconds=seconds, allow=allow))[0]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """`resolve("10.0.0.1", ["1.1.1.1", "::1"])`: what the next lookups answer, the last on."""

    def plan(*answers: str | list[str] | OSError) -> None:
        queue = list(answers)

        async def getaddrinfo(loop: Any, host: str, port: int, **_: Any) -> list[Any]:
            found = queue.pop(0) if len(queue) > 1 else queue[0]
            if isinstance(found, OSError):
                raise found
            addresses = [found] if isinstance(found, str) else found
            return [(0, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)

    return plan


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.1",
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
    transport = GuardedTransport()
    assert not transport._may_call(address) or ip_address(str(address)).is_global


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


def test_an_allowed_address_is_fetched_with_its_name_as_host(resolve: Resolve) -> None:
    resolve("127.0.0.1")
    with receiver(answer(200, b"picture", Content_Type="image/png")) as server:
        url = f"http://media.example:{server.port}/a?b=c"
        fetched = wait_for(fetch_bytes(url, limit=7, seconds=10, allow=LOOPBACK))
    assert fetched == (b"picture", "image/png")
    assert server.requests[0].path == "/a?b=c"
    assert server.requests[0].headers["host"] == f"media.example:{server.port}"


def test_a_second_dns_answer_is_never_asked_for(resolve: Resolve) -> None:
    resolve("127.0.0.1", "127.0.0.2")
    with (
        receiver(answer(200, b"outer")) as outer,
        receiver(answer(200, b"inner"), host="127.0.0.2", port=outer.port) as inner,
    ):
        assert fetch(f"http://rebind.example:{outer.port}/") == b"outer"
    assert inner.requests == []


def test_each_hop_of_a_redirect_is_checked_again(resolve: Resolve) -> None:
    resolve("127.0.0.1", "127.0.0.2")
    with (
        receiver(redirect("/again")) as outer,
        receiver(host="127.0.0.2", port=outer.port) as inner,
        pytest.raises(AddressRefused),
    ):
        fetch(f"http://rebind.example:{outer.port}/")
    assert [request.path for request in outer.requests] == ["/"]
    assert inner.requests == []


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
        assert fetch(f"http://two.example:{server.port}/", allow=("::1", *LOOPBACK)) == b"picture"


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


def test_an_allow_that_is_no_network_names_its_variable() -> None:
    with pytest.raises(SettingsInvalid, match=r"STILLREEL_ALLOW_ADDRESSES.*localhost"):
        fetch("http://127.0.0.1/", allow=("localhost",))


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
        transport = GuardedTransport(LOOPBACK, tls=tls)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            return (await client.get(f"https://{host}:{port}/")).content

    with receiver(answer(200, b"picture"), tls=server_tls) as server:
        assert wait_for(get("media.example", server.port)) == b"picture"
        assert wait_for(get("media.example.", server.port)) == b"picture"
        with pytest.raises(httpx.ConnectError, match="certificate"):
            wait_for(get("other.example", server.port))
    assert len(server.requests) == 2
