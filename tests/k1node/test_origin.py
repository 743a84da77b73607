"""Who a request comes from: behind proxies the address that no client can make up."""

import pytest
from django.test import RequestFactory

from k1node.lib import origin


@pytest.mark.parametrize(
    ("peer", "header", "proxies", "address"),
    [
        pytest.param("192.0.2.1", "203.0.113.9", 0, "192.0.2.1", id="without a proxy the header says nothing"),
        pytest.param("10.0.0.1", "203.0.113.9", 1, "203.0.113.9", id="behind one proxy its entry counts"),
        pytest.param("10.0.0.1", "1.1.1.1, 203.0.113.9", 1, "203.0.113.9", id="what a client puts in front does not"),
        pytest.param("10.0.0.1", "1.1.1.1, 203.0.113.9, 10.0.0.2", 2, "203.0.113.9", id="behind two the second"),
        pytest.param("10.0.0.1", "203.0.113.9", 2, "10.0.0.1", id="a header that did not pass both is not read"),
        pytest.param("10.0.0.1", "<script>", 1, origin.UNKNOWN, id="nonsense is no address"),
        pytest.param("", "", 0, origin.UNKNOWN, id="a Unix socket has none"),
        pytest.param("::ffff:192.0.2.1", "", 0, "192.0.2.1", id="IPv4 written as IPv6"),
        pytest.param("10.0.0.1", "fe80::1%" + "x" * 99, 1, "fe80::1", id="the zone of an address is left out"),
        pytest.param("2001:DB8::0:1", "", 0, "2001:db8::1", id="one spelling of each address"),
    ],
)
def test_the_clients_address(peer: str, header: str, proxies: int, address: str) -> None:
    request = RequestFactory().get("/", REMOTE_ADDR=peer, headers={"X-Forwarded-For": header} if header else {})

    assert origin.client_address(request, proxies) == address


def test_the_origin_lasts_as_long_as_its_request() -> None:
    assert origin.current() is None

    with origin.of(origin.Origin("192.0.2.1", "req-1")) as outer:
        assert origin.current() is outer

    assert origin.current() is None
