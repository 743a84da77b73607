"""Where the browser may be sent after consent: https, or a program on the reader's own computer."""

from urllib.parse import urlsplit

# Without TLS only where nothing leaves the machine (RFC 8252 7.3). A name could be resolved to another one.
LOOPBACK = ("127.0.0.1", "::1")


def schemes_for(address: str) -> list[str]:
    """Return the schemes that may be used for `address`."""
    return ["https", "http"] if is_loopback(address) else ["https"]


def is_loopback(address: str) -> bool:
    return urlsplit(address).hostname in LOOPBACK


def problem_with(address: str) -> str:
    """Return what is wrong with a redirect URI that is to be registered, "" if nothing is."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return f"{address} is not an address."
    if parts.hostname == "localhost":
        return f"{address}: write 127.0.0.1 in place of localhost; any port will do then."
    if parts.scheme not in schemes_for(address):
        return f"{address}: must begin with https://, or with http://127.0.0.1 for a program on the user's computer."
    if not parts.hostname or "@" in parts.netloc or "#" in address or "*" in address or port == 0:
        return f"{address}: must be one exact address, without a name before the host, #, or *."
    return ""


def destination(address: str) -> str:
    """Return in words where `address` leads."""
    if is_loopback(address):
        return "a program on this computer"
    return urlsplit(address).netloc
