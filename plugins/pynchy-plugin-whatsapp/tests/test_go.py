"""The Go library itself, in the worker, on a machine whose way to WhatsApp leads to a proxy that never answers."""

import asyncio
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pynchy.plugin import PluginContext
from pynchy_plugin_whatsapp import WhatsAppPlugin
from pynchy_plugin_whatsapp.link import Link

_WORKER = ("-m", "pynchy_plugin_whatsapp.worker")


async def _frames(folder: Path, mode: str, until: str) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    link = Link(_WORKER, folder, frames.append, logging.getLogger("test"))
    await link.start(mode)
    deadline = time.monotonic() + 60
    while not any(frame["is"] == until for frame in frames) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    await link.stop()
    return frames


def _proxy(monkeypatch: pytest.MonkeyPatch, proxy: socket.socket) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")


def _link(folder: Path) -> None:
    """A device in the library's own tables, with keys that no server knows."""
    with sqlite3.connect(folder / "session.db") as device:
        values: dict[str, Any] = {}
        for _, name, kind, required, default, _ in device.execute("PRAGMA table_info(whatsmeow_device)"):
            if name in ("jid", "lid"):
                values[name] = "4915100000001:7@s.whatsapp.net" if name == "jid" else None
            elif required and default is None:
                number = "int" in kind.lower()
                values[name] = (
                    1 if number else "" if kind.lower() == "text" else os.urandom(64 if name.endswith("_sig") else 32)
                )
        names = ", ".join(values)
        device.execute(
            f"INSERT INTO whatsmeow_device ({names}) VALUES ({', '.join('?' * len(values))})", tuple(values.values())
        )
    device.close()


def test_a_connection_that_never_comes_about_is_left_in_time_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        context = PluginContext(
            send_message=_nothing,
            registered_groups=dict,
            config={},
            on_message=_nothing,
            on_chat_metadata=_nothing,
            data_dir=tmp_path,
            log=logging.getLogger("test"),
        )
        channel = WhatsAppPlugin().create_channel(context)
        connecting = asyncio.create_task(channel.connect())
        loop = asyncio.get_running_loop()
        proxy.setblocking(False)
        async with asyncio.timeout(60):
            heard, _ = await loop.sock_accept(proxy)  # Go has come to the proxy, and waits
            assert b"CONNECT web.whatsapp.com:443" in await loop.sock_recv(heard, 1000)
        before = time.monotonic()
        connecting.cancel()
        await asyncio.wait([connecting])
        await channel.disconnect()
        assert time.monotonic() - before < 5
        assert not channel.is_connected()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        heard.close()

    # The first start makes the tables; there is no way to WhatsApp yet.
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        _proxy(monkeypatch, nobody)
        failed = [frame for frame in asyncio.run(_frames(tmp_path, "login", "failed")) if frame["is"] == "failed"]
    assert failed[0]["why"].startswith("WhatsApp cannot be reached:")
    _link(tmp_path)
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        _proxy(monkeypatch, proxy)
        asyncio.run(test())
    left = set(threading.enumerate()) - threads
    for thread in left:
        thread.join(20)  # asyncio's own, which has waited for the worker, may be at its last line
    assert not any(thread.is_alive() for thread in left)


async def _nothing(*arguments: object) -> None:
    pass


def test_without_an_account_the_library_is_not_even_started(tmp_path: Path) -> None:
    frames = asyncio.run(_frames(tmp_path, "run", "failed"))
    assert "pynchy whatsapp login" in frames[0]["why"]
    assert not (tmp_path / "session.db").exists()


def test_the_package_and_the_channel_load_neither_neonize_nor_its_library() -> None:
    code = (
        "import sys, pynchy_plugin_whatsapp.channel, pynchy_plugin_whatsapp.command\n"
        "sys.exit(any(name.startswith(('neonize', 'google', 'magic')) for name in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    async def test() -> int | None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment)
        return await process.wait()

    assert asyncio.run(test()) == 0


_SLOW_DISK = """
import os, sys, threading
from pathlib import Path
from pynchy_plugin_whatsapp import relay as module
module._DRAIN_WITHIN = 60
relay = module.Relay(Path(sys.argv[1]), "run", "", print)
begun, disk, add = threading.Event(), threading.Event(), relay.spool.add

def slow(event):
    begun.set()
    disk.wait()
    return add(event)

relay.spool.add = slow
threading.Thread(target=relay.on_event, args=(module.MESSAGE, b"event"), daemon=True).start()
begun.wait()
ending = threading.Thread(target=relay.end, daemon=True)
ending.start()
ending.join(1)
assert ending.is_alive(), "what WhatsApp takes for kept is lost"
disk.set()
ending.join(20)
assert not ending.is_alive()
assert module.Spool(Path(sys.argv[1])).after(0).event == b"event"
os._exit(0)
"""


def test_the_end_waits_for_a_message_that_a_slow_disk_is_keeping(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SLOW_DISK, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("missing", ["magic", "neonize"])
def test_what_is_missing_is_done_without_or_said_in_a_sentence(tmp_path: Path, missing: str) -> None:
    (tmp_path / "missing").mkdir()
    if missing == "magic":  # python-magic without libmagic
        (tmp_path / "missing" / "magic.py").write_text("raise ImportError('failed to find libmagic')")
    else:  # neonize without its compiled library
        (tmp_path / "missing" / "neonize").mkdir()
        (tmp_path / "missing" / "neonize" / "__init__.py").touch()
    code = "import pynchy_plugin_whatsapp.client"
    paths = [str(tmp_path / "missing"), *sys.path]

    async def test() -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, stderr=subprocess.PIPE
        )
        return (await process.communicate())[1].decode()

    said = asyncio.run(test())
    if missing == "magic":
        assert not said
    else:
        assert said.endswith("ImportError: neonize has no compiled library for this system: install its wheel for it\n")
