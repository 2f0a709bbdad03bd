"""Which hosts and which addresses a tool may reach: a list, and no private network unless it is on the list."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from dougong.base import DougongError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNICAST, _DOCUMENTATION = ipaddress.ip_network("2000::/3"), ipaddress.ip_network("3fff::/20")


@dataclass(frozen=True)
class Host:
    """An entry of the list: a name ("*.": any below it too) or a network, and a port or None for 80 and 443."""

    name: str | None
    network: Network | None
    port: int | None

    def is_port(self, port: int) -> bool:
        return port == self.port if self.port is not None else port in (80, 443)


class Allowed:
    """Hosts that may be asked: "example.com", "*.example.com", "example.com:8080", "10.0.0.0/8", "localhost:8000".

    A name lets its public addresses be reached. Addresses of private networks, of the machine itself or of its cloud
    are refused even when a name leads there (DNS rebinding), unless they are listed as addresses; "localhost", listed,
    is the machine itself.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        if isinstance(hosts, str):
            raise DougongError(f"the allowed hosts are {hosts!r:.60}; expected a list of them")
        self.hosts = tuple(_entry(host) for host in hosts)

    def __str__(self) -> str:
        return ", ".join(str(host.name or host.network) for host in self.hosts)

    def reach(self, name: str, port: int) -> list[Address]:
        """The addresses of a host, all of which may be reached. Raises DougongError where one may not, or is unknown.

        A caller connects to one of these and never resolves the name again.
        """
        self.check_name(name, port)
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise DougongError(f"the host {name!r:.80} is unknown") from None
        addresses = list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found))
        for address in addresses:
            if not is_public(address) and not self._lists(name, address, port):
                raise DougongError(f"the host {name!r:.80} leads to {address}, a private address that is not allowed")
        return addresses

    def check_name(self, name: str, port: int) -> None:
        for host in self.hosts:
            if host.is_port(port) and _names(host, name):
                return
        raise DougongError(f"the host {name!r:.80}, port {port}, is not allowed; allowed: {self}")

    def _lists(self, name: str, address: Address, port: int) -> bool:
        inner = unwrapped(address)
        if inner.is_loopback and name == "localhost":
            return any(host.name == "localhost" and host.is_port(port) for host in self.hosts)
        return any(
            host.network is not None and inner.version == host.network.version and inner in host.network
            for host in self.hosts
            # A name's port stands beside the name; an address without one lends its network to every name.
            if host.port is None or host.port == port
        )


def _names(host: Host, name: str) -> bool:
    if host.network is not None:
        try:
            return unwrapped(ipaddress.ip_address(name)) in host.network
        except ValueError:
            return False
    wanted = host.name or ""
    return name == wanted or (wanted.startswith("*.") and name.endswith(wanted[1:]))


def _entry(text: str) -> Host:
    """Read an entry of the list. Raises DougongError."""
    given = text.strip().lower()
    name, _, number = given.rpartition(":") if given.count(":") == 1 or "]:" in given else (given, "", "")
    if number and not (number.isdecimal() and 0 < int(number) < 65536):
        raise DougongError(f"the allowed host {text!r:.80} has the port {number!r:.20}; expected 1 to 65535")
    port = int(number) if number else None
    name = name.strip("[]").rstrip(".")
    try:
        return Host(None, ipaddress.ip_network(name, strict=False), port)
    except ValueError:
        pass  # no address: a name, which is looked at next
    bare = name.removeprefix("*.")
    if not bare or any(not (sign.isalnum() or sign in "-._") for sign in bare):
        raise DougongError(f"the allowed host {text!r:.80} is no host; write example.com, *.example.com or host:port")
    return Host(ascii_name(name), None, port)


def ascii_name(name: str) -> str:
    """A host name as it goes over the wire: lower case, no final dot, other scripts in Punycode."""
    name = name.rstrip(".").lower()
    if name.isascii():
        return name
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError:
        raise DougongError(f"the host {name!r:.80} is no host name") from None


def unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only carries it (mapped, 6to4, Teredo, NAT64), else itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inner is None and address in ipaddress.ip_network("64:ff9b::/96"):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet. Of IPv6 that is only what is given out for it (RFC 4291, 2.4):
    the rest is kept back, or carries addresses of IPv4 in one of many ways."""
    inner = unwrapped(address)
    if isinstance(inner, ipaddress.IPv6Address) and (inner not in _UNICAST or inner in _DOCUMENTATION):
        return False
    return inner.is_global and not inner.is_multicast
