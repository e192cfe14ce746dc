"""The process that holds the connection: `python -m pynchy_plugin_whatsapp.worker FOLDER run|login|logout [NUMBER]`.

A process of its own, because the Go library in neonize takes one over: its threads never end, it handles signals, it
prints, and a fault in it ends everything. Here that ends this process alone, and the channel starts another one.

Lines of JSON on stdin and stdout. To the channel: {"is": "state"|"message"|"chat"|"reply"|"qr"|"code"|"linked"|
"failed"|"done", ...}. From it: {"stored": SEQ} and {"call": ID, "what": NAME, ...}. The end of stdin ends it.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pynchy_plugin_whatsapp import session

#: Seconds: a worker whose service was killed needs some to end.
_LOCK_WITHIN = 3.0
#: Bytes of memory; who sends a larger file than he says ends this process, and not the machine's patience.
_MEMORY = 3 * 1024**3


def main() -> None:
    """Run until stdin ends."""
    folder, mode, *rest = sys.argv[1:]
    lines, say = _take_over_stdio()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    os.umask(0o077)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    os.chdir(folder)
    here = Path(folder)
    try:
        session.SessionLock(here).take(_LOCK_WITHIN)
        if mode != "login" and session.linked_number(here) is None:
            raise LookupError(session.NOT_LINKED)
        # Loads the Go library, or says what is missing.
        from pynchy_plugin_whatsapp.relay import Relay

        relay = Relay(here, mode, rest[0] if rest else "", say)
    except Exception as error:
        say({"is": "failed", "why": str(error)})
        _leave(1)
    for work in (relay.connect, relay.courier):
        threading.Thread(target=work, daemon=True).start()
    try:
        for line in lines:
            relay.take(line)
    except Exception as error:  # half a line of a service that was killed
        logging.getLogger("whatsapp").warning("the channel has said what is no line: %s", error)
    finally:
        try:
            relay.end()
        finally:
            _leave(0)


def _take_over_stdio() -> tuple[Any, Callable[[dict[str, Any]], None]]:
    """Keep stdin and stdout for the channel: Go and neonize print."""
    lines, out = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    writing = threading.Lock()

    def say(frame: dict[str, Any]) -> None:
        rest = memoryview(json.dumps(frame, ensure_ascii=False).encode(errors="replace") + b"\n")
        with writing:
            try:
                while rest:
                    rest = rest[os.write(out, rest) :]
            except BrokenPipeError:
                pass  # the channel is gone: the end of stdin follows

    return lines, say


def _leave(code: int) -> NoReturn:
    """End at once: threads of Go do not end, and Python would wait for those that call it."""
    try:
        sys.stderr.flush()  # raises where whoever read it was killed
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
