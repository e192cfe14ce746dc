"""An internet for tests: public addresses by name, and servers on loopback that stand at them.

Names, addresses and their check are as they are outside; only the last step, the connection to a checked address, ends
at a server of the test.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import partial

import pytest
from aiohappyeyeballs import AddrInfoType

from pynchy.egress import Egress

#: Where the servers of the tests stand.
PUBLIC = "93.184.216.34"


class Internet:
    """What names stand for, and where connections end that are made to a public address."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {"example.com": [PUBLIC]}
        self.servers: dict[tuple[str, int], int] = {}
        self.dialled: list[tuple[str, int]] = []

    def stands_at(self, address: str, port: int, server: asyncio.Server) -> None:
        """Put a server of the test at a public address."""
        self.servers[address, port] = server.sockets[0].getsockname()[1]

    async def resolve(self, host: str, port: int) -> Sequence[AddrInfoType]:
        """The addresses of a name, or of a number, in whatever form the system takes it."""
        found = self.addresses.get(host)
        if found is None:
            try:
                return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            except socket.gaierror:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found
        ]

    async def dial(self, addresses: Sequence[AddrInfoType]) -> socket.socket:
        """Connect to the server that stands at the first of these addresses; nobody answers at another."""
        for info in addresses:
            address, port = str(info[4][0]), int(info[4][1])
            self.dialled.append((address, port))
            if (address, port) in self.servers:
                connection = socket.socket()
                connection.setblocking(False)
                target = ("127.0.0.1", self.servers[address, port])
                await asyncio.get_running_loop().sock_connect(connection, target)
                return connection
        raise ConnectionRefusedError(111, "Connection refused")

    def replace_the_real_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have every service of the test use this."""
        monkeypatch.setattr("pynchy.app.Egress", partial(Egress, resolve=self.resolve, dial=self.dial))
