"""Which URLs can be registered and which addresses connected to; a corpus of 36 addresses that must never pass."""

from ipaddress import ip_address, ip_network

import pytest

from webhooks import targets
from webhooks.targets import Rules


def words(text: str) -> list[str]:
    return text.split()


CORPUS = words("""
127.0.0.1 0.0.0.0 10.0.0.1 172.16.0.1 192.168.0.1 169.254.169.254 100.64.0.1 192.0.0.170 192.0.2.1 198.18.0.1
192.88.99.1 224.0.0.1 240.0.0.1 255.255.255.255 168.63.129.16 :: ::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254
::127.0.0.1 ::169.254.169.254 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::a9fe:a9fe 2002:7f00:1:: 2002:a9fe:a9fe::
2001:0:a9fe:a9fe:0:0:5601:5601 fe80::1 fec0::1 fc00::1 fd00:ec2::254 ff02::1 100::1 2001:db8::1 3fff::1 5f00::1
""")
METADATA = words("""
169.254.169.254 169.254.170.2 168.63.129.16 100.100.100.200 192.0.0.192 ::ffff:169.254.169.254 ::169.254.169.254
::ffff:100.100.100.200 64:ff9b::a9fe:a9fe 64:ff9b::6464:64c8 64:ff9b:1::a9fe:a9fe 64:ff9b:1:a9fe:a9:fe00::
64:ff9b:1:a9:fe:a9fe:: 64:ff9b:1:0:a9:fea9:fe00:0 2002:a9fe:a9fe:: 2002:a83f:8110::1 2001:0:a9fe:a9fe:0:0:5601:5601
2001:0:808:808:0:0:5601:5601 fe80::1 fe80::a9fe:a9fe fd00:ec2::254 fd00:ec2::23 fd20:ce::254
::ffff:0:a9fe:a9fe
""")
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))
PUBLIC = Rules()
PRIVATE = Rules(allow_private=True)
DEVELOPMENT = Rules(production=False)
LAN = Rules(allowed=(ip_network("10.1.0.0/16"), ip_network("fd12::/16")))


def test_the_corpus_is_whole() -> None:
    assert len(set(CORPUS)) == 36


@pytest.mark.parametrize("text", CORPUS)
def test_no_address_of_the_corpus_passes(text: str) -> None:
    assert targets.address(ip_address(text), PUBLIC).refused
    host = f"[{text}]" if ":" in text else text
    assert targets.check_url(f"https://{host}/hook", PUBLIC)


@pytest.mark.parametrize(
    "text", ["1.1.1.1", "8.8.8.8", "203.0.112.255", "2606:4700::1111", "2a00:1450::1", "::ffff:1.1.1.1"]
)
def test_public_addresses_pass(text: str) -> None:
    assert targets.address(ip_address(text), PUBLIC) == targets.Verdict()


@pytest.mark.parametrize("text", METADATA)
def test_metadata_services_pass_only_when_named_exactly(text: str) -> None:
    address = ip_address(text)

    assert targets.address(address, PRIVATE).refused
    refused = targets.address(address, Rules(allow_private=True, allowed=EVERYTHING))
    assert "naming exactly this address" in refused.remedy
    wider = Rules(allowed=(ip_network((address, address.max_prefixlen - 1), strict=False),))
    assert targets.address(address, wider).refused

    exact = Rules(allowed=(ip_network(text),))
    assert targets.address(address, exact) == targets.Verdict(allowed_by=str(ip_network(text)))


@pytest.mark.parametrize(
    "text", words("127.0.0.1 127.9.9.9 ::1 10.0.0.1 172.31.0.1 192.168.0.1 100.64.0.1 fc00::1 fd12::1 ::ffff:10.0.0.1")
)
def test_private_addresses_pass_if_the_operator_wants_it(text: str) -> None:
    assert targets.address(ip_address(text), PUBLIC).refused
    assert targets.address(ip_address(text), PRIVATE) == targets.Verdict(allowed_by="WEBHOOK_ALLOW_PRIVATE")


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "::127.0.0.1", "64:ff9b::7f00:1", "224.0.0.1", "172.32.0.1"])
def test_private_does_not_mean_anything_else(text: str) -> None:
    assert targets.address(ip_address(text), PRIVATE).allowed_by == ""


@pytest.mark.parametrize(
    ("text", "network"), [("10.1.2.3", "10.1.0.0/16"), ("::ffff:10.1.2.3", "10.1.0.0/16"), ("fd12::9", "fd12::/16")]
)
def test_the_network_that_let_an_address_pass_is_named(text: str, network: str) -> None:
    assert targets.address(ip_address(text), LAN) == targets.Verdict(allowed_by=network)


def test_a_zone_does_not_hide_an_address() -> None:
    assert targets.address(ip_address("fe80::1%eth0"), Rules(allowed=EVERYTHING)).refused
    assert targets.parse("fe80::1%eth0") == ip_address("fe80::1")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/hooks?a=b%20c",
        "HTTPS://Example.COM:443/",
        "https://example.com:8443/hooks",
        "https://xn--r8jz45g.jp/hooks",
        "https://my_service.example.com/",
        "https://1.1.1.1/",
        "https://[2606:4700::1111]:8443/",
    ],
)
def test_usual_urls_can_be_registered(url: str) -> None:
    assert targets.check_url(url, PUBLIC) == []


REFUSED = {
    "decimal": "https://2130706433/",
    "octal": "https://0177.0.0.1/",
    "hexadecimal": "https://0x7f000001/",
    "a hexadecimal part": "https://127.0.0.0x1/",
    "hexadecimal parts": "https://0x7f.1/",
    "short": "https://127.1/",
    "zero": "https://0/",
    "leading zeros of a public address": "https://01.1.1.1/",
    "too large": "https://256.1.1.1/",
    "a dot behind an address": "https://127.0.0.1./",
    "a dot behind a name": "https://localhost./",
    "a dot behind a public name": "https://example.com./",
    "two dots": "https://example..com/",
    "a mapped address": "https://[::ffff:7f00:1]/",
    "a zone": "https://[fe80::1%25eth0]/",
    "a bare zone": "https://[fe80::1%eth0]/",
    "brackets around IPv4": "https://[127.0.0.1]/",
    "open bracket": "https://[::1/",
    "text behind the bracket": "https://[::1]example.com/",
    "a user": "https://user@example.com/",
    "a password": "https://user:password@example.com/",
    "an empty user": "https://@example.com/",
    "two at signs": "https://example.com@127.0.0.1@1.1.1.1/",
    "a fragment": "https://example.com/#a",
    "an empty fragment": "https://example.com/#",
    "a backslash": "https://example.com\\@127.0.0.1/",
    "a tab": "https://exam\tple.com/",
    "a line break": "https://example.com/\r\nHost: a",
    "a blank in front": " https://example.com/",
    "a blank": "https://example.com/a b",
    "NUL": "https://example.com/\0",
    "a percent in the host": "https://%31%32%37.0.0.1/",
    "half a percent escape": "https://example.com/%2",
    "an ideographic dot": "https://127\u30020\u30020\u30021/",
    "digits of another script": "https://\uff11\uff12\uff17.0.0.1/",
    "a name beyond ASCII": "https://b\u00fccher.example/",
    "no host": "https:///hooks",
    "no host, but a port": "https://:443/",
    "no scheme": "example.com/hooks",
    "another scheme": "ftp://example.com/",
    "a file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:6379/_",
    "no port behind the colon": "https://example.com:/",
    "port 0": "https://example.com:0/",
    "a large port": "https://example.com:65536/",
    "a very large port": "https://example.com:0000443000/",
    "a port with a sign": "https://example.com:+443/",
    "too long": "https://example.com/" + "a" * 2029,
    "a long label": f"https://{'a' * 64}.com/",
    "a long name": f"https://{'a.' * 127}com/",
    "a hyphen at the start": "https://-a.com/",
    "empty": "",
    "localhost": "https://localhost/",
    "a name below localhost": "https://a.localhost/",
    "http": "http://example.com/",
    "another port": "https://example.com:9000/",
}


@pytest.mark.parametrize("url", REFUSED.values(), ids=REFUSED.keys())
def test_odd_urls_are_refused_with_what_to_do(url: str) -> None:
    problems = targets.check_url(url, PUBLIC)

    assert [(each.field, bool(each.message), bool(each.suggestion)) for each in problems] == [("url", True, True)]


@pytest.mark.parametrize(
    "host", ["2130706433", "017700000001", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.1", "0", "0x"]
)
def test_a_host_that_some_read_as_a_number_never_passes(host: str) -> None:
    everything = Rules(allow_private=True, allowed=EVERYTHING, production=False)

    assert "usual form" in targets.check_url(f"http://{host}/", everything)[0].message


def test_the_way_to_write_a_name_beyond_ascii_is_told() -> None:
    (problem,) = targets.check_url("https://b\u00fccher.example/", PUBLIC)

    assert "xn--bcher-kva.example" in str(problem.suggestion)


@pytest.mark.parametrize("url", ["http://example.com/", "http://example.com:8080/", "https://example.com/"])
def test_development_sends_over_http_too(url: str) -> None:
    assert targets.check_url(url, DEVELOPMENT) == []


@pytest.mark.parametrize("url", ["http://example.com:443/", "https://example.com:80/", "http://127.0.0.1/"])
def test_development_opens_nothing_else(url: str) -> None:
    assert targets.check_url(url, DEVELOPMENT)


@pytest.mark.parametrize("rules", [LAN, PRIVATE])
@pytest.mark.parametrize("url", ["http://printer.lan/", "http://printer.lan:9000/", "https://printer.lan:9000/"])
def test_what_an_operator_opens_is_opened_for_http_and_every_port(url: str, rules: Rules) -> None:
    target, _ = targets.read(url)
    assert target is not None

    assert targets.check_url(url, PUBLIC)
    assert targets.check_url(url, rules) == []
    assert targets.check_address(target, ip_address("1.1.1.1"), rules).refused
    inside = ip_address("10.1.0.1")
    assert targets.check_address(target, inside, rules) == targets.address(inside, rules)


def test_a_public_literal_gets_no_odd_port_by_what_is_opened_for_others() -> None:
    assert "allowed only to networks" in targets.check_url("https://1.1.1.1:9000/", LAN)[0].message
    assert targets.check_url("https://10.1.0.1:9000/", LAN) == []
    assert targets.check_url("http://localhost:9000/", PRIVATE) == []
    assert targets.check_url("http://localhost:9000/", LAN)


@pytest.mark.parametrize("name", words("Authorization X-Api-Key Cookie X-Tenant traceparent"))
def test_owners_may_have_headers_of_their_own(name: str) -> None:
    assert targets.header_problem(name, "Bearer a\tb c") == ""


@pytest.mark.parametrize(
    "name",
    words(
        "Host content-length TRANSFER-ENCODING Connection Content-Type User-Agent X-K1Node-Signature Webhook-Id"
        " webhook-signature Proxy-Authorization Expect Upgrade TE Trailer Keep-Alive Accept-Encoding Content-Encoding"
        " :authority"
    ),
)
def test_headers_of_the_node_cannot_be_replaced(name: str) -> None:
    assert targets.header_problem(name, "a")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "a"),
        ("A b", "a"),
        ("A\r\nB", "a"),
        ("Ä", "a"),
        ("A:", "a"),
        ("A", "a\r\nB: c"),
        ("A", "a\0"),
        ("A", " a"),
        ("A", "ä"),
    ],
)
def test_what_is_no_header_is_refused(name: str, value: str) -> None:
    assert targets.header_problem(name, value)
