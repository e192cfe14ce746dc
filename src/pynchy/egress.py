"""The agents' way to the internet: the host opens their connections, by policy, and keeps count.

A name is resolved here, each address is checked, and the connection goes to an address that was checked: what the
name stands for a moment later does not matter. Nothing listens on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import structlog
from aiohappyeyeballs import AddrInfoType, start_connection

from pynchy.destinations import Destinations
from pynchy.network_policy import NetworkPolicy, forbidden, normal_host
from pynchy.tunnel import Tunnel, TunnelRefused
from pynchy.turns import Turns
from pynchy.types import Group

log = structlog.get_logger(__name__)

#: How long a name may take to be resolved, and a connection to be made, in seconds.
_RESOLVE_WITHIN = 15.0
_CONNECT_WITHIN = 20.0
#: A connection on which nothing moves for so long is closed, in seconds.
_IDLE_FOR = 600.0
_HALF_OPEN_FOR = 60.0  # where one side has ended already
#: Attempts of one agent: at once, and then so many each second.
_BURST = 200
_EACH_SECOND = 20.0
_MOST_ADDRESSES = 8
_THREADS = 8  # of one group
_MAX_LENGTH = 300  # characters of what an agent calls a host

Resolve = Callable[[str, int], Awaitable[Sequence[AddrInfoType]]]
Dial = Callable[[Sequence[AddrInfoType]], Awaitable[socket.socket]]


class Egress:
    """Opens the connections of every agent. `bytes_a_day` bounds what one group may send and receive together.

    `resolve` turns a name and a port into addresses, `dial` connects to the first of them that answers.
    """

    def __init__(
        self,
        destinations: Destinations,
        bytes_a_day: int,
        resolve: Resolve | None = None,
        dial: Dial | None = None,
    ) -> None:
        self._destinations = destinations
        self._bytes_a_day = bytes_a_day
        # Each group's own: names that take their time hold up nobody else.
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._resolve = resolve
        self._dial = dial or _dial
        self._used: dict[str, tuple[str, int]] = {}
        self._turns = Turns(_BURST, _EACH_SECOND)

    def close(self) -> None:
        """Wait for no name any more."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    async def begin(self) -> None:
        """Take up what was used before this start."""
        self._used = {folder: (_today(), used) for folder, used in (await self._destinations.bytes_today()).items()}

    async def serve(self, group: Group, host: str, port: int, tunnel: Tunnel) -> None:
        """Open what an agent asks for and pass its bytes until it ends; or say to it why not."""
        begun = time.monotonic()
        try:
            await self._turns.wait(group.folder)
            host = normal_host(host[:_MAX_LENGTH])
            connection, address = await self._connect(group, host, port)
        except (TunnelRefused, ValueError) as refused:
            status = refused.status if isinstance(refused, TunnelRefused) else 400
            log.warning(
                "refused a connection", group=group.folder, host=host[:_MAX_LENGTH], port=port, why=str(refused)
            )
            tunnel.refuse(status, str(refused))
            await self._destinations.note(group.folder, host[:_MAX_LENGTH], port, refused=str(refused))
            return
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        counted = _Counted(reader, writer, lambda size: self._count(group.folder, size))
        try:
            tunnel.opened()
            await _pass_bytes(tunnel, counted)
        finally:
            tunnel.close()
            log.info(
                "a connection ended",
                group=group.folder,
                host=host,
                port=port,
                address=address,
                sent=counted.sent,
                received=counted.received,
                seconds=round(time.monotonic() - begun, 1),
            )
            await self._destinations.note(group.folder, host, port, counted.sent, counted.received)

    def _count(self, folder: str, size: int) -> None:
        """Count bytes that are about to pass; ConnectionError above what a group may pass in a day (UTC)."""
        today = _today()
        day, used = self._used.get(folder, (today, 0))
        used = (used if day == today else 0) + size
        self._used[folder] = (today, min(used, self._bytes_a_day))
        if used > self._bytes_a_day:
            raise ConnectionError(_spent(self._bytes_a_day))

    async def _connect(self, group: Group, host: str, port: int) -> tuple[socket.socket, str]:
        if not 0 < port < 65536:
            raise TunnelRefused(400, f"{port} is no port")
        if why := NetworkPolicy.parse(group.network).refusal(host, port):
            raise TunnelRefused(403, why)
        day, used = self._used.get(group.folder, ("", 0))
        if day == _today() and used >= self._bytes_a_day:
            raise TunnelRefused(429, _spent(self._bytes_a_day))
        try:
            async with asyncio.timeout(_RESOLVE_WITHIN):
                found = await (self._resolve or self._ask_system(group.folder))(host, port)
        except TimeoutError:
            raise TunnelRefused(504, f"the name {host} was not resolved within {_RESOLVE_WITHIN:.0f} s") from None
        except (OSError, UnicodeError) as error:
            raise TunnelRefused(502, f"the name {host} cannot be resolved: {_words(error)}") from None
        allowed = [info for info in found if not _is_forbidden(info)][:_MOST_ADDRESSES]
        if not allowed:
            raise TunnelRefused(403, f"{host} is no public address of the internet, and no policy opens another")
        try:
            async with asyncio.timeout(_CONNECT_WITHIN):
                connection = await self._dial(allowed)
        except TimeoutError:
            raise TunnelRefused(504, f"{host}:{port} did not answer within {_CONNECT_WITHIN:.0f} s") from None
        except OSError as error:
            raise TunnelRefused(502, f"{host}:{port} cannot be reached: {_words(error)}") from None
        return connection, str(connection.getpeername()[0])

    def _ask_system(self, folder: str) -> Resolve:
        """The machine's own resolver (getaddrinfo), in threads of this group's."""
        if folder not in self._threads:
            self._threads[folder] = ThreadPoolExecutor(_THREADS, "name-resolution")
        threads = self._threads[folder]

        async def resolve(host: str, port: int) -> Sequence[AddrInfoType]:
            return await asyncio.get_running_loop().run_in_executor(
                threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            )

        return resolve


async def _pass_bytes(tunnel: Tunnel, counted: _Counted) -> None:
    """Relay until both directions have ended, one of them breaks, or nothing has moved for long."""
    passing = asyncio.ensure_future(tunnel.relay(counted, counted))
    try:
        while not passing.done():
            idle = counted.last + (_HALF_OPEN_FOR if counted.half_open else _IDLE_FOR) - time.monotonic()
            if idle <= 0:
                return
            await asyncio.wait([passing], timeout=idle)
        passing.result()
        await counted.finish()
    except ConnectionError as error:
        log.debug("a connection broke off", error=str(error))
    finally:
        passing.cancel()
        await asyncio.gather(passing, return_exceptions=True)
        counted.abort()


class _Counted:
    """A connection whose bytes are counted, and that knows when something last moved."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._count = count
        self.half_open = False
        self.sent = 0
        self.received = 0
        self.last = time.monotonic()

    async def read(self, n: int = -1, /) -> bytes:
        data = await self._reader.read(n)
        self._count(len(data))
        self.half_open |= not data
        self.received += len(data)
        self.last = time.monotonic()
        return data

    def write(self, data: bytes, /) -> None:
        self._count(len(data))
        self._writer.write(data)
        self.sent += len(data)
        self.last = time.monotonic()

    async def drain(self) -> None:
        await self._writer.drain()
        self.last = time.monotonic()

    def can_write_eof(self) -> bool:
        return self._writer.can_write_eof()

    def write_eof(self) -> None:
        self.half_open = True
        self._writer.write_eof()

    async def finish(self) -> None:
        """Close once everything has been sent."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_HALF_OPEN_FOR):
                await self._writer.wait_closed()

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()


async def _dial(addresses: Sequence[AddrInfoType]) -> socket.socket:
    """Connect to the first that answers, the next one being tried beside it after a moment (RFC 8305)."""
    return await start_connection(addresses, happy_eyeballs_delay=0.25)


def _is_forbidden(info: AddrInfoType) -> bool:
    """Whether a connection to this address is never made: it is not public, or it is this machine's own."""
    family, address = info[0], info[4]
    try:
        if forbidden(ipaddress.ip_address(str(address[0]).partition("%")[0])):
            return True
    except ValueError:
        return True
    # Connecting a UDP socket sends nothing; the source that the system chooses for its own address is that address.
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return probe.getsockname()[0] == address[0]
    return False  # there is no way to it from here, as the attempt will find


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _spent(limit: int) -> str:
    return f"this chat has used up what it may send and receive in a day ({limit // 1024**2} MiB)"


def _words(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
