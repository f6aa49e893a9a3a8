"""Where a receiver listens, for whom, and how much it takes at once. Opens sockets, no loop."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import SettingsError
from ..text import Secret, printable
from .credentials import Tls

OFF = ("", "off")

_ADDRESS = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<name>[\w.-]+)):(?P<port>[0-9]{1,5})", re.ASCII
)

BACKLOG = 512


class Address(NamedTuple):
    """A host and a TCP port; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it; of names, only localhost is trusted."""
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def address_of(text: str) -> Address | None:
    """
    ``127.0.0.1:4318``, ``[::1]:4318`` or ``localhost:0``; None for ``off``.

    Raises:
        SettingsError: It is something else. A port alone is: on which side of the machine?
    """
    if text.strip().lower() in OFF:
        return None
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or int(found["port"]) >= 2**16:
        raise SettingsError(
            f"{printable(text)!r} is no address: write host:port, as 127.0.0.1:4318 or [::1]:4318"
        )
    return Address(found["ipv6"] or found["name"], int(found["port"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """
    What a receiver offers.

    Attributes:
        http: Where OTLP/HTTP is taken, likewise *grpc*; None for nowhere.
        shared: Where both are taken, on one port; without TLS.
        token: Senders must have it.
        tls: Then nothing is taken without TLS.
        is_insecure: An address that others reach needs neither token nor client certificates.
        most_bytes: Of the body of a request, as it comes and decompressed.
        slowest_s: Time for the headers of a request, and for its body.
        most_connections: At a time, of HTTP, and as many on their way to TLS; likewise of gRPC.
    """

    http: Address | None = None
    grpc: Address | None = None
    shared: Address | None = None
    token: Secret | None = None
    tls: Tls | None = None
    is_insecure: bool = False
    most_bytes: int = 64 * 2**20
    slowest_s: float = 30.0
    most_connections: int = 1000


def refusal(doors: Doors) -> str | None:
    """Why *doors* must not be opened; None if they may."""
    if doors.tls is not None and doors.shared is not None:
        return "one port for HTTP and gRPC has no TLS: give each a port of its own"
    is_guarded = doors.token is not None or (doors.tls is not None and doors.tls.client_ca)
    if doors.is_insecure or is_guarded:
        return None
    for address in (doors.http, doors.grpc, doors.shared):
        if address is not None and not address.is_loopback:
            return (
                f"{address} can be reached from other machines, and anybody there could send:"
                " set HUBMETER_SERVE_TOKEN, or say --insecure"
            )
    return None


def listening(address: Address) -> list[socket.socket]:
    """
    Sockets that listen at *address*: one, or one for each protocol that a name stands for.

    Raises:
        OSError: It is in use, not ours, or not allowed; the message says what to do.
    """
    sockets: list[socket.socket] = []
    port = address.port
    try:
        for family, kind, protocol, _, place in _places(address):
            try:
                sockets.append(_listening(family, kind, protocol, (place[0], port, *place[2:])))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or not sockets:  # a machine without IPv6
                    raise
            port = sockets[-1].getsockname()[1]
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise cannot_listen(address, error) from error
    return sockets


def check_free(address: Address) -> None:
    """
    For a server that opens its own sockets, and says less if it cannot.

    Raises:
        OSError: As :func:`listening`.
    """
    for opened in listening(address):
        opened.close()


def cannot_listen(address: Address, error: OSError) -> OSError:
    """*error* with words that say which address, and what to do."""
    if error.errno == errno.EADDRINUSE:
        why = "in use. Stop what listens there, or choose another port (port 0 is any free one)"
    elif error.errno == errno.EACCES:
        why = "not allowed. Choose a port above 1023"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = "no address of this machine"
    elif isinstance(error, socket.gaierror):
        why = "not known here"
    else:
        why = os.strerror(error.errno) if error.errno else str(error)
    said = OSError(f"cannot listen on {address}: it is {why}")
    said.errno = error.errno
    return said


def _places(address: Address) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    found = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    unique = dict.fromkeys((*place[:3], "", place[4]) for place in found)
    return sorted(unique, key=lambda place: place[0] != socket.AF_INET)  # IPv4 is everywhere


def _listening(family: int, kind: int, protocol: int, place: tuple[object, ...]) -> socket.socket:
    opened = socket.socket(family, kind, protocol)
    try:
        # Connections of a receiver that has ended keep their port for a minute otherwise.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(place)
        opened.listen(BACKLOG)
        opened.setblocking(False)
    except OSError:
        opened.close()
        raise
    return opened
