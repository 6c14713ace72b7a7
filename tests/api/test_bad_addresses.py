"""Bad addresses get one error in the same words, however they are written."""

from __future__ import annotations

import pytest

from stillreel.errors import AddressRefused
from tests.api.calls import order
from tests.api.conftest import Api, StartApi
from tests.api.outside import assert_problem
from tests.receiver import Receiver

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


FORBIDDEN = {
    "loopback": "http://127.0.0.1/",
    "its port": "http://127.0.0.1:4200/api/health",
    "all of it": "http://127.1.2.3/",
    "short": "http://127.1/",
    "decimal": "http://2130706433/",
    "octal": "http://0177.0.0.1/",
    "octal in one": "http://017700000001/",
    "hex": "http://0x7f.0.0.1/",
    "hex in one": "http://0x7f000001/",
    "zero": "http://0/",
    "any": "http://0.0.0.0/",
    "name": "http://localhost/",
    "name with a dot": "http://localhost./",
    "upper case": "http://LOCALHOST/",
    "address with a dot": "http://127.0.0.1./",
    "below localhost": "http://a.localhost/",
    "private 10": "http://10.0.0.1/",
    "private 172": "http://172.16.0.1/",
    "private 192": "http://192.168.1.1/",
    "carrier": "http://100.64.0.1/",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "metadata in decimal": "http://2852039166/",
    "metadata of Azure": "http://168.63.129.16/",
    "multicast": "http://224.0.0.1/",
    "broadcast": "http://255.255.255.255/",
    "documentation": "http://192.0.2.1/",
    "v6 loopback": "http://[::1]/",
    "v6 any": "http://[::]/",
    "v6 mapped": "http://[::ffff:127.0.0.1]/",
    "v6 mapped in hex": "http://[::ffff:7f00:1]/",
    "v6 compatible": "http://[::127.0.0.1]/",
    "v6 nat64": "http://[64:ff9b::7f00:1]/",
    "v6 6to4": "http://[2002:7f00:1::]/",
    "v6 link": "http://[fe80::1]/",
    "v6 unique": "http://[fd00::1]/",
    "v6 metadata": "http://[fd00:ec2::254]/",
    "user": "http://user@8.8.8.8/",
    "user and password": "http://example.com:80@127.0.0.1/",
    "backslash": "http://8.8.8.8\\@127.0.0.1/",
    "fullwidth": "http://\uff11\uff12\uff17.0.0.1/",
    "circled": "http://\u2460\u2461\u2466.0.0.1/",
    "ideographic dot": "http://127\u30020\u30020\u30021/",
    "file": "file:///etc/passwd",
    "ftp": "ftp://8.8.8.8/a.png",
    "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
    "data": "data:image/png;base64,AAAA",
    "javascript": "javascript:alert(1)",
    "no scheme": "8.8.8.8/a.png",
    "two slashes": "//8.8.8.8/a.png",
    "no host": "http:///a.png",
    "port 0": "http://8.8.8.8:0/",
    "port 99999": "http://8.8.8.8:99999/",
    "words": "an image of a cat",
    "line break": "http://127.0.0.1/\r\nHost: x",
    "half an address": "http://[::1/",
}


@pytest.mark.parametrize("url", FORBIDDEN.values(), ids=FORBIDDEN)
def test_an_address_that_is_not_public(api: Api, url: str) -> None:
    """For images and webhooks alike, and in the same words: no oracle of what is inside."""
    for field in ("image_url", "webhook_url"):
        problem = assert_problem(order(api, **{field: url}), 422)
        assert problem["code"] == "address_refused"
        assert problem["detail"] == AddressRefused().message


def test_an_address_that_is_too_long(api: Api) -> None:
    for field in ("image_url", "webhook_url"):
        url = "https://8.8.8.8/" + "a" * 3000
        assert_problem(order(api, **{field: url}), 422, field, "2048")


def test_only_the_pair_itself_is_allowed(start_api: StartApi) -> None:
    with Receiver() as server:
        api = start_api(STILLREEL_ALLOW_ADDRESSES=f"127.0.0.1:{server.port}")
        assert order(api, image_url=server.url).status_code == 200
        for host in ("localhost", "127.1", "[::ffff:127.0.0.1]", "127.0.0.1.", "2130706433"):
            assert_problem(order(api, image_url=f"http://{host}:{server.port}/"), 422, "public")
        assert_problem(order(api, image_url="http://127.0.0.1/"), 422, "public")
