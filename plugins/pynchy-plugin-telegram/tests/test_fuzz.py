"""Whatever an update holds, it becomes a message that can be stored, or none."""

from __future__ import annotations

import contextlib
import copy
from datetime import timedelta
from typing import Any

from bot_api import TOKEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from telegram import Bot, Update

from pynchy_plugin_telegram.addresses import Address
from pynchy_plugin_telegram.polling import _hear

BOT = Bot(TOKEN)
_ODD = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        2**63,
        10**30,
        0.5,
        "",
        "x",
        "\ud800",
        "\0",
        "\u202e\n",
        [],
        [{}],
        {},
        {"id": 1},
        {"file_id": ""},
    ]
)
_NAMES = st.sampled_from(["Ada", "\ud800", "a\nb", "\u202e", "x" * 500, "", "😀"])
_TEXTS = st.sampled_from(["Hello", "/x", "😀 and 👩‍👩‍👧", "\ud83d", "\0", "x" * 4096, ""]) | st.text(max_size=30)
_USER = st.fixed_dictionaries(
    {"id": st.integers(1, 9), "is_bot": st.booleans(), "first_name": _NAMES}, optional={"last_name": _NAMES}
)
_CHAT = st.fixed_dictionaries(
    {"id": st.sampled_from([1, -2, -1003]), "type": st.sampled_from(["private", "supergroup", "channel", "new"])},
    optional={"title": _NAMES, "is_forum": st.booleans(), "first_name": _NAMES},
)
_ENTITIES = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text_link", "bold"]), "offset": st.integers(-5, 50), "length": st.integers(-5, 50)},
        optional={"url": _TEXTS},
    ),
    max_size=4,
)
_FILE = st.fixed_dictionaries(
    {"file_id": _TEXTS, "file_unique_id": _TEXTS, "width": st.integers(), "height": st.integers()},
    optional={"duration": st.integers(0, 9), "file_name": _NAMES, "mime_type": _TEXTS, "file_size": st.integers()},
)
_CONTENT: dict[str, st.SearchStrategy[Any]] = {
    "text": _TEXTS,
    "caption": _TEXTS,
    "entities": _ENTITIES,
    "caption_entities": _ENTITIES,
    "photo": st.lists(_FILE, max_size=2),
    "document": _FILE,
    "voice": _FILE,
    "edit_date": st.integers(0, 2**31),
    "message_thread_id": st.integers(0, 9),
    "is_topic_message": st.booleans(),
    "sender_chat": _CHAT,
    "from": _USER,
    "quote": st.fixed_dictionaries({"text": _TEXTS, "position": st.integers()}),
    "migrate_to_chat_id": st.integers(),
    "forward_origin": st.fixed_dictionaries({"type": st.just("user"), "date": st.just(1), "sender_user": _USER}),
    "forum_topic_created": st.fixed_dictionaries({"name": _NAMES, "icon_color": st.just(1)}),
}


def _message(content: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"message_id": st.integers(0, 99), "date": st.integers(0, 2**31), "chat": _CHAT}, optional=content
    )


_MESSAGE = _message({**_CONTENT, "reply_to_message": _message(_CONTENT)})
_KINDS = ("message", "edited_message", "channel_post", "edited_channel_post", "my_chat_member")


def _places(inside: Any) -> list[tuple[Any, Any]]:
    """Every place in nested lists and dictionaries."""
    keys = list(inside) if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else []
    return [place for key in keys for place in [(inside, key), *_places(inside[key])]]


@st.composite
def _updates(draw: st.DrawFn) -> Any:
    """An update, as it should be but for up to two places."""
    update = copy.deepcopy({"update_id": 1, draw(st.sampled_from(_KINDS)): draw(_MESSAGE)})
    for _ in range(draw(st.integers(0, 2))):
        inside, key = draw(st.sampled_from(_places(update)))
        inside[key] = copy.deepcopy(draw(_ODD))
    return update


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_updates())
def test_an_update_becomes_a_message_that_can_be_stored_or_none(update: dict[str, Any]) -> None:
    heard = None
    with contextlib.suppress(Exception):  # such an update is left out
        heard = _hear(Update.de_json(update, BOT), frozenset())
    if heard is None:
        return
    assert isinstance(heard.number, int)
    assert Address.parse(heard.address.jid) == heard.address
    for name in (heard.chat, (heard.topic or ("",))[0]):
        assert name.encode() == b"" or name.isprintable()
    if heard.said is None:
        return
    said = heard.said
    assert said.timestamp.utcoffset() == timedelta(0)
    for text in (
        said.id,
        said.chat_jid,
        said.sender,
        said.sender_name,
        said.content,
        said.quote or "",
        said.edits or "",
    ):
        text.encode()
    if heard.file:
        heard.file.name.encode()
        heard.file.media_type.encode()
