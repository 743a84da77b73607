"""Lists of networks, as keys have them: written the one way, and asked whether a client is in one of them."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from k1node.lib.errors import Detail

MOST = 50
EXAMPLE = "Use an address or a network such as 10.0.0.0/8 or 2001:db8::/32"


def read(texts: Iterable[str], field: str = "allowed_cidrs") -> tuple[list[str], list[Detail]]:
    """Return the networks in their usual form, each once, and what is wrong with those that are none."""
    networks: list[str] = []
    problems = []
    for index, text in enumerate(texts):
        try:
            networks.append(str(ip_network(text.strip())))
        except ValueError:
            problems.append(Detail(f"{field}[{index}]", f"{text[:60]!r} is no network", _suggestion(text)))
    if len(networks) > MOST:
        problems.append(Detail(field, f"Must have at most {MOST} networks"))
    return list(dict.fromkeys(networks)), problems


def _suggestion(text: str) -> str:
    try:
        meant = ip_network(text.strip(), strict=False)
    except ValueError:
        return EXAMPLE
    return f"Did you mean {meant}?"  # bits beyond its length are set


def contains(networks: Sequence[str], address: str) -> bool:
    """Say whether `address` lies in one of `networks`; one that is not known does not."""
    try:
        client = ip_address(address)
    except ValueError:
        return False
    return any(client in network for network in _parsed(tuple(networks)))


@lru_cache(maxsize=1024)
def _parsed(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(network) for network in networks)
