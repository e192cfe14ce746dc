"""What of the internet a group's agent may reach: its policy by name, and the addresses that no policy opens."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

_KINDS = ("none", "public", "bridge")
#: The ports of a host that is named without one: HTTP and HTTPS.
_PORTS = (80, 443)
_MAX_HOSTS = 200
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ENTRY = re.compile(r"(?P<any>\*\.)?(?P<host>[^:*]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: What no agent may reach: everything that the IANA registries of special-purpose addresses (RFC 6890) call not
#: globally reachable, and multicast. Loopback, private and link-local addresses, where clouds keep the metadata of a
#: machine, are among them.
_NOT_PUBLIC: tuple[_Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        # A public address at which Azure's machines find their metadata.
        "168.63.129.16/32",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
    )
)
#: All other IPv6 addresses that there are on the internet.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
#: IPv6 addresses that stand for an IPv4 one: NAT64 (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def normal_host(host: str) -> str:
    """A host name in lower case and ASCII (RFC 5891), or an address, as it is written everywhere; ValueError."""
    text = host.strip().removesuffix(".").lower()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        text = text.encode("idna").decode() if not text.isascii() else text
    except UnicodeError:
        text = ""
    if not _HOST_NAME.fullmatch(text) or len(text) > 253:
        raise ValueError(f"{host[:80]!r} is no host name")
    return text


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """A host that a policy names: `subdomains` for all names below it instead, `port` None for the web's two."""

    host: str
    subdomains: bool = False
    port: int | None = None

    def allows(self, host: str, port: int) -> bool:
        """Whether this is what it names; `host` as `normal_host` returns it."""
        named = host.endswith(f".{self.host}") if self.subdomains else host == self.host
        return named and (port == self.port if self.port else port in _PORTS)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'*.' if self.subdomains else ''}{host}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """`none`, `public` (every public address), `bridge` (the runtime's own network), or a list of hosts."""

    kind: Literal["none", "public", "bridge", "hosts"]
    hosts: tuple[AllowedHost, ...] = ()

    @classmethod
    def parse(cls, text: str) -> NetworkPolicy:
        """Read a policy as people write it: one of the words, or hosts with commas between them; ValueError."""
        word = text.strip().lower()
        if word in _KINDS:
            return cls(word)
        hosts = tuple(dict.fromkeys(_allowed_host(entry.strip()) for entry in word.split(",") if entry.strip()))
        if not hosts or len(hosts) > _MAX_HOSTS:
            raise ValueError(
                f"a network policy is `none`, `public`, `bridge`, or one to {_MAX_HOSTS} hosts with commas between them"
            )
        return cls("hosts", hosts)

    def __str__(self) -> str:
        return ",".join(map(str, self.hosts)) if self.hosts else self.kind

    def refusal(self, host: str, port: int) -> str | None:
        """Why a connection to this host is not made, None where it may be; `host` as `normal_host` returns it."""
        if self.kind == "public" or any(one.allows(host, port) for one in self.hosts):
            return None
        if self.kind == "hosts":
            return f"this chat's network policy does not name {host}:{port}"
        return "this chat's network policy allows no connection"


def _allowed_host(entry: str) -> AllowedHost:
    match = _ENTRY.fullmatch(entry)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 0 < port < 65536):
        raise ValueError(f"{entry[:80]!r} is no host: write NAME, *.NAME or NAME:PORT")
    host = normal_host(match["host"])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if "." not in host:  # a word that was meant to be another, or a name of the local network
            raise ValueError(f"{entry[:80]!r} is no host of the internet: its name has no dot") from None
    else:
        if forbidden(address):
            raise ValueError(f"{host} is no public address, and a policy opens no other")
    return AllowedHost(host, bool(match["any"]), port)


def forbidden(address: Address) -> bool:
    """Whether no policy opens this address: it is not public, or stands for one that is not."""
    if isinstance(address, ipaddress.IPv6Address):
        for inner in _embedded(address):
            if forbidden(inner):
                return True
        if address.ipv4_mapped or address in _NAT64:
            return False
        if address not in _GLOBAL_UNICAST:
            return True
    return any(address.version == network.version and address in network for network in _NOT_PUBLIC)


def _embedded(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that packets to this one may end at."""
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]
