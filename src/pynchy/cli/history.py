"""`pynchy history`: a group's conversations as Markdown, and a search in all that was said."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pynchy.cli.output import complain, complain_of_system, visible
from pynchy.history import NoHistory, export_markdown, find
from pynchy.home import database, pynchy_home


def export(folder: str, output: Path | None) -> int:
    """Write it; a file is there whole or not at all."""
    pieces = export_markdown(database(pynchy_home()), folder)
    try:
        if output is None:
            for piece in pieces:
                sys.stdout.write(piece)
            sys.stdout.flush()
            return 0
        handle, name = tempfile.mkstemp(prefix=f".{output.name}-", dir=output.absolute().parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(pieces)
            Path(name).replace(output)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except NoHistory as error:
        return complain(f"{error}.")
    except BrokenPipeError:
        return 1  # nobody reads what is printed
    except OSError as error:
        return complain_of_system(error)
    return 0


def search(words: str, folder: str | None, most: int) -> int:
    """Print the latest texts that have these words, a line each; 1 where there are none, as grep has it."""
    try:
        found = find(database(pynchy_home()), words, folder, most)
    except (NoHistory, ValueError) as error:
        return complain(f"{error}.")
    for one in found:
        chat, sender = one.group or one.jid, "(assistant)" if one.sender is None else one.sender
        print(visible(f"{one.at.astimezone():%Y-%m-%d %H:%M}  {chat}  {sender}: {one.excerpt}"))
    return 0 if found else complain("nothing that was said has these words.")
