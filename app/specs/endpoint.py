"""Servers of checkpoints: what a base URL may be, and which addresses a request may reach.

Pure rules: the web asks them when a URL is saved, the workers at every request, after the name was
resolved, and they connect to the address that was judged.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
PORTS = {"http": 80, "https": 443}
MOST_CHARACTERS = 500
_METADATA = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local: the metadata service of most clouds
        "fe80::/10",
        "fd00:ec2::/32",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "168.63.129.16/32",
    )
)
"""Never reached, whatever is allowed: these answer with a machine's credentials."""
_NAT64 = ip_network("64:ff9b::/96")
SETTING = "STILLHOUSE_ENDPOINT_HOSTS"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a URL leads: its host as written, in lower case and without brackets, and its port."""

    scheme: str
    host: str
    port: int

    @property
    def named(self) -> str:
        """host:port, as the allow-list writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def url_problem(url: str) -> str | None:
    """Return why a base URL cannot be one, naming the mend; None where it can."""
    if len(url) > MOST_CHARACTERS or any(c.isspace() or not c.isprintable() for c in url):
        return f"A base URL has no spaces and at most {MOST_CHARACTERS} characters."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "This is no URL. Write it as https://host:port/v1."
    if parts.scheme not in PORTS or not parts.hostname:
        return "A server is reached by http or https. Write its URL as https://host:port/v1."
    if parts.username is not None or parts.password is not None:
        return "No name or password belongs into the URL. Give the API key in its own field."
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "The base URL ends before any ? or #, such as https://host:port/v1."
    return "Port 0 cannot be reached." if port == 0 else None


def base_url_of(text: str) -> str:
    """Return a base URL without what may follow it by mistake: a slash, or an operation's path."""
    url = text.strip().rstrip("/")
    for tail in ("/chat/completions", "/completions", "/models"):
        url = url.removesuffix(tail)
    return url


def place_of(url: str) -> Place:
    """Return where a URL leads; only of one without a `url_problem`."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    return Place(parts.scheme, host, parts.port or PORTS[parts.scheme])


def literal_address(host: str) -> Address | None:
    """Return the address a host is written as, in any spelling (127.1, 0x7f000001); None: a name.

    No name is looked up; `localhost` and what ends in it is loopback by definition.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return IPv4Address("127.0.0.1")
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def refusal(place: Place, address: Address, allowed: Sequence[str]) -> str | None:
    """Return why a request to `place`, which is at `address`, is refused; None where it may go.

    Public addresses may be reached; private, loopback and reserved ones where `allowed` names the
    host or a network with them (`host`, `host:port`, `10.0.0.0/8`, `10.0.0.0/8:8000`). Those that
    answer with a machine's credentials never.
    """
    real = _embedded(address)
    if real.is_multicast or real.is_unspecified or any(_within(real, net) for net in _METADATA):
        return f"{place.named} is at {address}, which no request may reach."
    if real.is_global and real == address:
        return None
    if any(_allows(entry, place, real) for entry in allowed):
        return None
    return (
        f"{place.named} is at {address}, which is no public address, so it is not asked. Who runs "
        f"this installation can allow it: {SETTING}='[\"{place.named}\"]'."
    )


def saved_refusal(url: str, allowed: Sequence[str]) -> str | None:
    """Return why a URL cannot be saved, as far as no name must be looked up."""
    problem = url_problem(url)
    if problem is not None:
        return problem
    place = place_of(url)
    address = literal_address(place.host)
    return None if address is None else refusal(place, address, allowed)


def _embedded(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one stands for, else itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _within(address: Address, network: object) -> bool:
    return address.version == getattr(network, "version", 0) and address in network  # type: ignore[operator] # a network of the same version


def _allows(entry: str, place: Place, address: Address) -> bool:
    """Whether an entry of the allow-list names this host or a network with its address."""
    host, port = _split(entry.strip().lower())
    if port is not None and port != place.port:
        return False
    if host == place.host:
        return True
    try:
        return _within(address, ip_network(host, strict=False))
    except ValueError:
        return False


def _split(entry: str) -> tuple[str, int | None]:
    """Return host (or network) and port of an entry; brackets stand around IPv6 with a port."""
    if entry.startswith("["):
        host, _, tail = entry[1:].partition("]")
        host += tail.partition(":")[0]
        port = tail.rpartition(":")[2]
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    else:
        host, port = entry, ""
    return host, int(port) if port.isdecimal() else None
