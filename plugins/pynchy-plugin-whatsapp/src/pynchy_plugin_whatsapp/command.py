"""`pynchy whatsapp login [--phone NUMBER] | logout | status`: link this machine with an account, or end that."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import segno

from pynchy.plugin import plugin_data_dir
from pynchy_plugin_whatsapp import session
from pynchy_plugin_whatsapp.link import Frame, Link
from pynchy_plugin_whatsapp.plugin import NAME, WhatsAppPlugin
from pynchy_plugin_whatsapp.spool import NAME as SPOOL

# Seconds: WhatsApp shows its codes for some three minutes.
_LOGIN_WITHIN = 240.0
_LOGOUT_WITHIN = 60.0
_CLEAR = "\x1b[2J\x1b[H"


def main() -> int:
    """The exit code: 0 where it worked, 1 where not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="WhatsApp, as a linked device of an account.")
    commands = parser.add_subparsers(dest="command", required=True)
    login = commands.add_parser("login", help="link this machine with an account")
    login.add_argument("--phone", metavar="NUMBER", help="type a code on that phone instead of scanning one")
    commands.add_parser("logout", help="unlink it, and delete its keys")
    commands.add_parser("status", help="say whether an account is linked")
    given = parser.parse_args()
    folder = plugin_data_dir(NAME)
    try:
        match given.command:
            case "login":
                return _login(folder, _number(given.phone) if given.phone else "")
            case "logout":
                return _logout(folder)
            case _:
                return _status(folder)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def _number(text: str) -> str:
    number = re.sub(r"[\s()./-]", "", text).removeprefix("+").removeprefix("00")
    if not re.fullmatch(r"[1-9][0-9]{6,14}", number):
        raise SystemExit(f"{text!r} is no phone number: write it with its country, as in +49 151 23456789")
    return number


def _login(folder: Path, number: str) -> int:
    if linked := session.linked_number(folder):
        print(f"+{linked} is linked already; `pynchy whatsapp logout` ends that.", file=sys.stderr)
        return 1
    print("Reaching WhatsApp ...", flush=True)
    frame = asyncio.run(_until_done(folder, "login", _LOGIN_WITHIN, [number] if number else []))
    if frame["is"] != "linked":
        return _failed(frame)
    print(f"Linked with +{frame['number']}. Restart Pynchy's service, or start it with `pynchy run`.")
    return 0


def _logout(folder: Path) -> int:
    if (linked := session.linked_number(folder)) is None:
        print("No account is linked.", file=sys.stderr)
        return 1
    frame = asyncio.run(_until_done(folder, "logout", _LOGOUT_WITHIN, []))
    if frame["is"] != "done":
        print("On the phone, Settings > Linked devices unlinks it too.", file=sys.stderr)
        return _failed(frame)
    for path in folder.glob(f"{session.NAME}*"):
        path.unlink(missing_ok=True)
    print(f"+{linked} is unlinked.")
    return 0


def _status(folder: Path) -> int:
    if (linked := session.linked_number(folder)) is None:
        print("No account is linked: run `pynchy whatsapp login`.")
        return 1
    print(f"+{linked} is linked, and {'in use' if session.in_use(folder) else 'not in use'} now.")
    if waiting := _waiting(folder):
        print(f"{waiting} received messages wait to be stored.")
    return 0


def _waiting(folder: Path) -> int:
    if not (path := folder / SPOOL).exists():
        return 0
    with closing(sqlite3.connect(path, timeout=5)) as spool:
        return int(spool.execute("SELECT count(*) FROM received").fetchone()[0])


def _failed(frame: Frame) -> int:
    print(f"{frame['why'][:1].upper()}{frame['why'][1:]}.", file=sys.stderr)
    return 1


async def _until_done(folder: Path, mode: str, seconds: float, arguments: Sequence[str]) -> Frame:
    """Run the worker until it says how it went."""
    ended: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    def on_frame(frame: Frame) -> None:
        match frame["is"]:
            case "qr":
                _show_qr(frame["code"])
            case "code":
                print(
                    f"On the phone: Settings > Linked devices > Link with phone number, then type {frame['code']}",
                    flush=True,
                )
            case "linked" | "done" | "failed" if not ended.done():
                ended.set_result(frame)
            case "ended" if not ended.done():
                ended.set_result({"is": "failed", "why": "the WhatsApp worker ended without saying why"})

    link = Link(WhatsAppPlugin.worker, folder, on_frame, logging.getLogger(__name__))
    try:
        await link.start(mode, *arguments)
        async with asyncio.timeout(seconds):
            return await ended
    except TimeoutError:
        return {"is": "failed", "why": f"nothing has come of it within {seconds:.0f} s: try again"}
    finally:
        await link.stop()


def _show_qr(code: str) -> None:
    if sys.stdout.isatty():
        print(_CLEAR, end="")
    print("On the phone: Settings > Linked devices > Link a device, then scan this. It changes every 20 seconds.")
    segno.make_qr(code).terminal(compact=True)
    sys.stdout.flush()
