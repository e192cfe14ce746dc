"""Files that come with messages: fetched, as far as they are small enough and Telegram gives them."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from telegram.error import BadRequest, Forbidden, InvalidToken

from pynchy.plugin import Attachment
from pynchy_plugin_telegram.bot import Connection
from pynchy_plugin_telegram.incoming import RemoteFile, without_bytes

#: What the Bot API lets bots have (https://core.telegram.org/bots/api#getfile).
_MOST = 20 * 1024 * 1024
_ATTEMPTS = 3
#: In seconds: between two tries, and for all of them; other messages wait meanwhile.
_PAUSE = 1.0
_WITHIN = 60.0


class _TooLarge(Exception):
    pass


async def fetch(connection: Connection, file: RemoteFile) -> tuple[Attachment, str]:
    """The file, and an empty text; or only its name, and why."""
    try:
        if (file.size or 0) > _MOST:
            raise _TooLarge
        async with asyncio.timeout(_WITHIN):
            data = await _insist(connection, file)
    except _TooLarge:
        return without_bytes(file), f"[{file.name} is larger than {_MOST // 1024**2} MB and was not fetched]"
    except Exception:  # whatever the server answers, the message is worth more than its file
        return without_bytes(file), f"[{file.name} could not be fetched from Telegram]"
    return Attachment(file.name, file.media_type, data), ""


async def _insist(connection: Connection, file: RemoteFile) -> bytes:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await _once(connection, file)
        except BadRequest as error:
            raise (_TooLarge if "too big" in str(error).lower() else error) from None
        except (Forbidden, InvalidToken, _TooLarge):
            raise
        except Exception:
            if attempt == _ATTEMPTS:
                raise
            await asyncio.sleep(_PAUSE * 2 ** (attempt - 1))
    raise AssertionError


async def _once(connection: Connection, file: RemoteFile) -> bytes:
    found = await connection.bot.get_file(file.file_id)
    url = str(found.file_path or "")
    if not url.startswith(connection.bot.base_file_url):
        raise BadRequest("the server names no address for the file")
    received = bytearray()
    async with connection.files.stream("GET", quote(url, safe=":/")) as response:
        response.raise_for_status()
        async for chunk in response.aiter_raw():  # as it is, so that nothing unpacks to more
            received += chunk
            if len(received) > _MOST:
                raise _TooLarge
    return bytes(received)
