"""`pynchy whatsapp ...`, with the real worker and the functions of the Go library replaced."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from whatsapp_side import ME, WhatsAppSide

from pynchy_plugin_whatsapp import session

_RUN = """
import sys
from pynchy_plugin_whatsapp import WhatsAppPlugin, command
WhatsAppPlugin.worker = ({script!r}, {socket!r})
sys.argv = ["pynchy whatsapp", *sys.argv[1:]]
sys.exit(command.main())
"""


async def _command(side: WhatsAppSide, *arguments: str) -> tuple[int | None, str, str]:
    script, socket = side.worker
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _RUN.format(script=script, socket=socket),
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"],
            "PYNCHY_HOME": str(side.data.parent.parent),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def test_login_shows_codes_until_one_is_scanned_and_says_who_is_linked(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path, linked=False) as side:
            side.qr, side.scanned = ["first-code", "second-code"], {"second-code"}
            code, out, err = await _command(side, "login")
            assert (code, err) == (0, "")
            assert out.count("scan this") == 2
            assert "█" in out
            assert f"Linked with +{ME}." in out
            assert session.linked_number(side.data) == ME
            assert not [path.name for path in side.data.iterdir() if path.stat().st_mode & 0o077]

    asyncio.run(test())


def test_login_by_phone_number_shows_one_code_to_type(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path, linked=False) as side:
            side.qr, side.scanned = ["1", "2"], {"2"}
            code, out, _ = await _command(side, "login", "--phone", "+49 (151) 000-0000-1")
            assert code == 0
            assert "ABCD-EFGH" in out
            assert "█" not in out
            assert side.said[:1] == [("pair", "4915100000001")]

    asyncio.run(test())


def test_login_that_nobody_scans_ends_politely(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path, linked=False) as side:
            side.qr = ["first-code"]
            code, _, err = await _command(side, "login")
            assert (code, err) == (1, "Nobody has scanned the code in time.\n")

    asyncio.run(test())


def test_login_where_whatsapp_cannot_be_reached_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path, linked=False) as side:
            await side.vanish()
            code, _, err = await _command(side, "login")
            assert code == 1
            assert err.startswith("WhatsApp cannot be reached: dial tcp")
            assert err.count("\n") == 1

    asyncio.run(test())


@pytest.mark.parametrize("number", ["0", "abc", "+49", "+49 151; rm -rf /", "9" * 30])
def test_what_is_no_phone_number_is_refused(tmp_path: Path, number: str) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path, linked=False) as side:
            code, _, err = await _command(side, "login", f"--phone={number}")
            assert code == 1
            assert "no phone number" in err

    asyncio.run(test())


def test_login_is_refused_where_an_account_is_linked(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            code, _, err = await _command(side, "login")
            assert (code, err) == (1, f"+{ME} is linked already; `pynchy whatsapp logout` ends that.\n")

    asyncio.run(test())


def test_logout_unlinks_and_deletes_the_keys(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            code, out, _ = await _command(side, "logout")
            assert (code, out) == (0, f"+{ME} is unlinked.\n")
            assert ("logout", "") in side.said
            assert not (side.data / "session.db").exists()
            assert (await _command(side, "logout"))[0] == 1
            assert (await _command(side, "status"))[:2] == (
                1,
                "No account is linked: run `pynchy whatsapp login`.\n",
            )

    asyncio.run(test())


def test_logout_that_whatsapp_refuses_keeps_the_keys(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.refuse["logout"] = "not today"
            code, _, err = await _command(side, "logout")
            assert code == 1
            assert "not today" in err
            assert "Linked devices" in err
            assert session.linked_number(side.data) == ME

    asyncio.run(test())


@pytest.mark.parametrize("arguments", [["login"], ["logout"]])
def test_a_session_in_use_is_left_alone(tmp_path: Path, arguments: Sequence[str]) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path, linked=arguments == ["logout"]) as side:
            lock = session.SessionLock(side.data)
            lock.take()
            code, _, err = await _command(side, *arguments)
            assert code == 1
            assert "stop the Pynchy service" in err
            _, out, _ = await _command(side, "status")
            assert "not in use" not in out
            lock.release()

    asyncio.run(test())


def test_status_says_who_is_linked(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            assert await _command(side, "status") == (0, f"+{ME} is linked, and not in use now.\n", "")

    asyncio.run(test())


def test_a_number_is_read_from_a_devices_id_in_any_form(tmp_path: Path) -> None:
    for text in ("49151:7@s.whatsapp.net", "49151.0:7@s.whatsapp.net", "49151@s.whatsapp.net"):
        with sqlite3.connect(tmp_path / "session.db") as device:
            device.execute("DROP TABLE IF EXISTS whatsmeow_device")
            device.execute("CREATE TABLE whatsmeow_device (jid TEXT)")
            device.execute("INSERT INTO whatsmeow_device VALUES (?)", (text,))
        device.close()
        assert session.linked_number(tmp_path) == "49151"
