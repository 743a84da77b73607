"""Where webhooks may be sent: which URLs can be registered, which addresses connected to. Touches no row, asks no DNS.

A node sends from inside the network that it stands in. So only public addresses pass, of the IPv6 ones only those that
are handed out to networks: whatever carries an IPv4 address inside (NAT64, 6to4, Teredo and others) does not, but for
IPv4-mapped ones, which are judged as the address they carry. Two settings of the operator open more:

| setting | opens | metadata services |
|---|---|---|
| WEBHOOK_ALLOW_PRIVATE | loopback and private addresses (PRIVATE) | never |
| WEBHOOK_ALLOWED_CIDRS | what lies in its networks | only those named exactly, as a /32 or /128 |

Both open HTTP and any port, but only to what they open themselves: the URL may then be registered, and each attempt
looks at the addresses again. check_url() is for registration and for each attempt, check_address() for each address.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from django.conf import settings
from yarl import URL

from k1node.lib.errors import Detail

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_URL = 2048
PORTS = {"https": (443, 8443), "http": (80, 8080)}  # that need no permission; the first is the scheme's own
HOW_TO_ALLOW = "An operator can allow a network with WEBHOOK_ALLOWED_CIDRS"
HOW_TO_ALLOW_METADATA = "An operator can allow it only by naming exactly this address in WEBHOOK_ALLOWED_CIDRS"


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(word) for word in text.split())


PRIVATE = _networks("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 127.0.0.0/8 100.64.0.0/10 ::1/128 fc00::/7")
# Where clouds give credentials to whoever asks, and what is reached like it.
METADATA = _networks(
    "169.254.0.0/16 168.63.129.16/32 100.100.100.200/32 192.0.0.192/32"
    " fe80::/10 fd00:ec2::/32 fd20:ce::/32 fd00:42::42/128 fd00:c1::a9fe:a9fe/128"
)
# What the registries of special addresses name; they are written out, because Python's own list changes.
NOT_PUBLIC = _networks(
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24"
    " 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
    " 168.63.129.16/32 2001::/23 2001:db8::/32 2002::/16 3fff::/20"
)
GIVEN_OUT = IPv6Network("2000::/3")  # everything else of IPv6 is special or nobody's
LOOPBACK = _networks("127.0.0.0/8 ::1/128")

COMPATIBLE, TRANSLATED, NAT64, LOCAL_NAT64 = _networks("::/96 ::ffff:0:0:0/96 64:ff9b::/96 64:ff9b:1::/48")
SIX_TO_FOUR, TEREDO = _networks("2002::/16 2001::/32")
ISATAP = (0x0000_5EFE, 0x0200_5EFE)

# Characters of RFC 3986; a browser and a client must not read two hosts out of one text.
URL_FORM = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>[/?](?:[A-Za-z0-9._~:/?@!$&'()*+,;=\[\]-]|%[0-9A-Fa-f]{2})*)?"
)
LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


@dataclass(frozen=True, slots=True)
class Rules:
    """What this node's operator lets webhooks reach."""

    allow_private: bool = False
    allowed: tuple[Network, ...] = ()
    production: bool = True

    @property
    def opens_something(self) -> bool:
        return self.allow_private or bool(self.allowed)


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL says about where to connect to; `address` is there when its host is one."""

    scheme: str
    host: str  # lower case, without brackets
    port: int
    address: Address | None

    def needs_permission(self, rules: Rules) -> str:
        """Return what makes this more than a usual target, "" if nothing does: it may go to opened addresses alone."""
        if self.scheme == "http" and rules.production:
            return "Plain HTTP"
        return "" if self.port in PORTS[self.scheme] else f"Port {self.port}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an address may be connected to."""

    refused: str = ""  # why, as a sentence without its full stop; "" if it may
    remedy: str = ""  # what can be done about it, another one
    allowed_by: str = ""  # the network or the setting that lets it pass, "" for a public one


def rules() -> Rules:
    """Return what the settings say."""
    return Rules(
        allow_private=settings.WEBHOOK_ALLOW_PRIVATE,
        allowed=tuple(settings.WEBHOOK_ALLOWED_CIDRS),
        production=settings.PRODUCTION,
    )


# --- URLs ---


def check_url(url: str, rules: Rules) -> list[Detail]:
    """Return what is wrong with `url` as the target of a webhook; a name in it is not looked up."""
    target, problems = read(url)
    return check_target(target, rules) if target is not None else problems


def check_target(target: Target, rules: Rules) -> list[Detail]:
    """Return why nothing may be sent to `target`, as far as that can be said without looking its name up."""
    reason = target.needs_permission(rules)
    if reason and not rules.opens_something:
        return [_unusual(target, reason)]
    if target.address is not None:
        verdict = check_address(target, target.address, rules)
        return [_problem(verdict.refused, verdict.remedy)] if verdict.refused else []
    if (target.host in LOCAL_NAMES or target.host.endswith(".localhost")) and not _opens_loopback(rules):
        return [_problem(f"{target.host} is this node itself", HOW_TO_ALLOW)]
    return []


def read(url: str) -> tuple[Target | None, list[Detail]]:
    """Return where `url` points to, or None and what is wrong with the way it is written."""
    if len(url) > LONGEST_URL:
        return None, [_problem(f"The URL has more than {LONGEST_URL} characters", "Use a shorter path")]
    if not url.isascii():
        return None, [_problem("The URL has characters beyond ASCII", _in_ascii(url))]
    if "#" in url:
        return None, [_problem("A fragment (#...) is never sent", "Leave it out")]
    found = URL_FORM.fullmatch(url)
    if found is None:
        return None, [_malformed(url)]
    scheme, authority = found["scheme"].lower(), found["authority"]
    if scheme not in PORTS:
        return None, [_problem(f"The scheme {scheme} cannot be sent to", "Begin with https://")]
    if "@" in authority:
        return None, [
            _problem("The URL must not hold a user name or password", "Send an Authorization header of your own")
        ]
    host, port, problem = _split(authority, scheme)
    if problem is None:
        address, problem = _read_host(host)
        if problem is None:
            name = host.strip("[]").lower()
            return Target(scheme, name, port, address), []
    return None, [problem]


def is_same_place(url: str, other: str) -> bool:
    """Say whether two URLs lead to the same scheme, host and port."""
    target, _ = read(url)
    return target is not None and target == read(other)[0]


def _malformed(url: str) -> Detail:
    if "://" not in url:
        return _problem("This is not a URL", "Write it in full, such as https://example.com/hooks")
    return _problem("The URL has characters that no URL may have", "Write them as % and two hexadecimal digits")


def _in_ascii(url: str) -> str:
    """Return what to write for a URL with characters beyond ASCII."""
    try:
        asked = URL(url)
        return f"Write the host as {asked.raw_host}, and other characters as % and two hexadecimal digits"
    except ValueError:
        return "Write the host name in its xn-- form, and other characters as % and two hexadecimal digits"


def _split(authority: str, scheme: str) -> tuple[str, int, Detail | None]:
    """Return the host, with its brackets, and the port."""
    host, port = authority, ""
    end = authority.rfind("]") + 1 if authority.startswith("[") else authority.find(":")
    if end > 0 or authority.startswith(":"):
        host, port = authority[:end], authority[end:]
    if not port:
        return host, PORTS[scheme][0], None
    digits = port.removeprefix(":")
    if not (port.startswith(":") and len(digits) <= 5 and digits.isdigit() and 1 <= int(digits) <= 65535):
        return "", 0, _problem(f"{port!r} is not a port", "Write a number from 1 to 65535 after the colon, or none")
    return host, int(digits), None


def _read_host(host: str) -> tuple[Address | None, Detail | None]:
    """Return the address that a host is, None for a name; or what is wrong with it."""
    host = host.lower()
    if not host:
        return None, _problem("The URL names no host", "Write it in full, such as https://example.com/hooks")
    if host.startswith("["):
        try:
            # With a zone it would mean another place on each machine.
            return IPv6Address(host[1:-1] if "%" not in host and host.endswith("]") else ""), None
        except ValueError:
            return None, _problem(f"{host} is not an IPv6 address", "Write it in brackets, without a zone")
    labels = host.split(".")
    if NUMERIC_LABEL.fullmatch(labels[-1]) or (not labels[-1] and NUMERIC_LABEL.fullmatch(labels[-2])):
        try:
            return IPv4Address(host), None
        except ValueError:
            return None, _problem(
                f"{host} is not an IPv4 address in its usual form",
                "Write four decimal numbers without leading zeros, such as 203.0.113.7",
            )
    if host.endswith("."):
        return None, _problem("The host name ends in a dot", "Leave the last dot out")
    if len(host) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        return None, _problem(f"{host[:100]} is not a host name", "Use letters, digits, hyphens and single dots")
    return None, None


def _unusual(target: Target, reason: str) -> Detail:
    if target.scheme == "http" and reason == "Plain HTTP":
        return _problem("Plain HTTP is not allowed: anybody on the way could read and change it", "Use https://")
    ports = " or ".join(map(str, PORTS[target.scheme]))
    return _problem(f"{reason} is not allowed for {target.scheme}", f"Use port {ports}. {HOW_TO_ALLOW}, with any port")


def _opens_loopback(rules: Rules) -> bool:
    return rules.allow_private or any(
        network.version == own.version and network.overlaps(own) for network in rules.allowed for own in LOOPBACK
    )


def _problem(message: str, suggestion: str) -> Detail:
    return Detail("url", message, suggestion)


# --- addresses ---


def check_address(target: Target, ip: Address, rules: Rules) -> Verdict:
    """Say whether a request to `target` may be sent to `ip`, one of the addresses of its host."""
    verdict = address(ip, rules)
    reason = target.needs_permission(rules)
    if reason and not verdict.refused and not verdict.allowed_by:
        return Verdict(
            f"{reason} is allowed only to networks that an operator has named, and {ip} is in none", HOW_TO_ALLOW
        )
    return verdict


def address(ip: Address, rules: Rules) -> Verdict:
    """Say whether `ip` may be connected to, and what lets it pass if it is not a public address."""
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        ip = IPv6Address(int(ip))
    judged = (isinstance(ip, IPv6Address) and ip.ipv4_mapped) or ip
    is_metadata = any(_among(each, METADATA) for each in (judged, *_carried(judged)))
    for network in rules.allowed:
        named = ip in network or judged in network
        if named and (not is_metadata or network.num_addresses == 1):
            return Verdict(allowed_by=str(network))
    if is_metadata:
        return Verdict(f"{ip} is an address of a metadata service, which gives away credentials", HOW_TO_ALLOW_METADATA)
    if _is_public(judged):
        return Verdict()
    if rules.allow_private and _among(judged, PRIVATE):
        return Verdict(allowed_by="WEBHOOK_ALLOW_PRIVATE")
    return Verdict(f"{ip} is not a public address", HOW_TO_ALLOW)


def _is_public(ip: Address) -> bool:
    return not _among(ip, NOT_PUBLIC) and (ip.version == 4 or ip in GIVEN_OUT)


def _among(ip: Address, networks: tuple[Network, ...]) -> bool:
    return any(ip in network for network in networks)


def _carried(ip: Address) -> Iterator[IPv4Address]:
    """Give the IPv4 addresses that an IPv6 address may be a way to."""
    if isinstance(ip, IPv4Address):
        return
    number = int(ip)
    if _among(ip, (COMPATIBLE, TRANSLATED, NAT64, LOCAL_NAT64)) or number >> 32 & 0xFFFF_FFFF in ISATAP:
        yield _low(number)
    if ip in LOCAL_NAT64:
        # Longer prefixes inside it: around the eight bits that RFC 6052 leaves out, or behind them.
        yield _low((number >> 64 & 0xFFFF) << 16 | number >> 40 & 0xFFFF)
        yield _low((number >> 64 & 0xFF) << 24 | number >> 32 & 0xFF_FFFF)
        yield _low(number >> 24)
    if ip in SIX_TO_FOUR:
        yield _low(number >> 80)
    if ip in TEREDO:
        yield _low(number >> 64)
        yield _low(~number)


def _low(number: int) -> IPv4Address:
    return IPv4Address(number & 0xFFFF_FFFF)


def parse(text: str) -> Address:
    """Return the address that a resolver or a socket gave; its zone, if it has one, is left out."""
    return ip_address(text.partition("%")[0])


# --- headers of the owner ---

RESERVED = frozenset(
    (
        *("accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "date"),
        *("expect", "host", "http2-settings", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"),
        *("user-agent", "via"),
    )
)
RESERVED_PREFIXES = ("webhook-", "x-k1node-", "proxy-", ":")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")


def header_problem(name: str, value: str) -> str:
    """Return why an owner's header cannot be sent, as a sentence without its full stop; "" if it can."""
    if not HEADER_NAME.fullmatch(name):
        return f"{name[:100]!r} is not the name of a header"
    if name.lower() in RESERVED or name.lower().startswith(RESERVED_PREFIXES):
        return f"{name} is set by the node"
    if not HEADER_VALUE.fullmatch(value):
        return f"The value of {name} must be of visible ASCII characters, and must not begin or end with a blank"
    return ""
