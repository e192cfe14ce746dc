"""Conversations in the database: what a run wrote comes back to the next one, up to the last answer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from stored import column, outbox_that_takes_nothing, queued, rows

from pynchy import transcripts
from pynchy.store import Store
from pynchy.types import Group

pytestmark = pytest.mark.anyio

JID, OTHER = "terminal:main", "wa:1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pynchy.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """An open store with two groups, in the folders `main` and `family`."""
    async with Store.open(path) as store:
        await store.register_group(Group(JID, "main", "main", is_main=True))
        await store.register_group(Group(OTHER, "Family", "family"))
        yield store


async def transcript(store: Store, folder: str = "main", session_id: str = "s", subpath: str = "") -> list[Any]:
    """The uuids of a transcript."""
    entries, following = await store.transcripts.load(folder, session_id, subpath, 0)
    assert following is None
    return [entry["uuid"] for entry in entries]


async def write(store: Store, uuids: str, folder: str = "main", session_id: str = "s", subpath: str = "") -> int:
    """Append an entry for each letter; returns where the transcript ends now."""
    return await store.transcripts.append(folder, session_id, subpath, [{"uuid": uuid} for uuid in uuids])


# --- conversations ------------------------------------------------------------------------------------------


async def test_a_conversation_goes_on_behind_its_last_answer(store: Store, path: Path) -> None:
    await write(store, "ab")
    end = await write(store, "a", subpath="sub/answered")
    await store.complete(JID, [], "reply", "s", end)
    assert await store.resume(JID) == "s"
    assert await transcript(store) == ["a", "b"]
    await write(store, "cd")
    await write(store, "b", subpath="sub/answered")
    await write(store, "a", subpath="sub/unanswered")
    assert await transcript(store) == ["a", "b", "c", "d"], "until somebody resumes"
    assert await store.resume(JID) == "s"
    assert await transcript(store) == ["a", "b"]
    assert await store.transcripts.subpaths("main", "s") == ["sub/answered"]
    assert await transcript(store, subpath="sub/answered") == ["a"]
    assert len(column(path, "SELECT id FROM transcripts WHERE dropped")) == 4, "they are kept"

    end = await write(store, "cf")
    await write(store, "g")
    await store.complete(JID, [], "reply", "s", end)
    await store.resume(JID)
    assert await transcript(store) == ["a", "b", "c", "f"], "an answer moves the end; what was dropped may come again"


async def test_resuming_drops_nothing_of_other_groups_and_sessions(store: Store, path: Path) -> None:
    await store.complete(JID, [], None, "s")
    await store.complete(OTHER, [], None, "s")
    for folder, session_id in (("main", "s"), ("main", "t"), ("family", "s")):
        await write(store, "a", folder, session_id)
    assert await store.resume(JID) == "s"
    assert rows(path, "SELECT folder, session_id FROM transcripts WHERE NOT dropped") == [
        ("main", "t"),
        ("family", "s"),
    ]


async def test_an_answer_to_another_group_does_not_end_this_ones_turn(store: Store) -> None:
    await store.complete(JID, [], None, "s", await write(store, "a"))
    await write(store, "b")
    await store.complete(OTHER, [], None, "s")
    await store.resume(JID)
    assert await transcript(store) == ["a"]


async def test_a_session_that_was_set_aside_is_forgotten_with_a_word_when_a_new_one_is_answered(
    store: Store, path: Path
) -> None:
    await store.complete(JID, [], None, "old", await write(store, "a", session_id="old"))
    await store.set_session_aside(JID, "I have begun anew")
    assert await store.resume(JID) is None
    assert queued(path) == [], "not before it is known"
    end = await write(store, "b", session_id="new")
    with outbox_that_takes_nothing(path), pytest.raises(sqlite3.Error, match="no room"):
        await store.complete(JID, [], "reply", "new", end)
    assert await store.resume(JID) is None, "all or nothing"
    await store.complete(JID, [], "reply", "new", await write(store, "b", session_id="new"))
    assert queued(path) == [(JID, "I have begun anew", "notice"), (JID, "reply", "reply")]
    assert await store.resume(JID) == "new"
    await store.fail(JID, [], "later", "I could not answer")
    assert await store.resume(JID) == "new", "nothing brings the old one back"


async def test_a_session_that_was_set_aside_is_taken_up_again_when_a_new_one_fails_as_well(
    store: Store, path: Path
) -> None:
    await store.complete(JID, [], None, "old", await write(store, "a", session_id="old"))
    await store.complete(OTHER, [], None, "other", await write(store, "z", "family", "other"))
    await store.set_session_aside(JID, "I have begun anew")
    await store.fail(OTHER, [], "it broke", "I could not answer")
    assert await store.resume(JID) is None, "that was another chat"
    await store.fail(JID, [], "it broke", "I could not answer")
    assert await store.resume(JID) == "old"
    assert await transcript(store, session_id="old") == ["a"]
    assert [text for _, text, _ in queued(path)] == ["I could not answer"] * 2
    await store.set_session_aside("nobody", "I have begun anew")


# --- transcripts --------------------------------------------------------------------------------------------


async def test_a_transcript_comes_back_as_it_was_and_entries_sent_again_are_left_out(store: Store) -> None:
    first = [{"uuid": "a", "text": "é 🦔"}, {"uuid": "b", "nested": {"list": [1, None, 2.5]}}]
    await store.transcripts.append("main", "s", "", first)
    await store.transcripts.append("main", "s", "", [{"uuid": "b", "text": "changed"}, {"uuid": "c"}])
    assert await store.transcripts.load("main", "s", "", 0) == ([*first, {"uuid": "c"}], None)


@pytest.mark.parametrize("uuid", [None, {"a": ["dict"]}, 2**80, -1.5, True, [], "no uuid at all"])
async def test_entries_without_a_uuid_that_is_a_text_are_all_kept(store: Store, uuid: Any) -> None:
    entries: list[dict[str, Any]] = [{"type": "summary"}] if uuid == "no uuid at all" else [{"uuid": uuid}]
    await store.transcripts.append("main", "s", "", entries * 2)
    await store.transcripts.append("main", "s", "", entries)
    assert await store.transcripts.load("main", "s", "", 0) == (entries * 3, None)


async def test_half_a_surrogate_pair_in_a_transcript_is_kept(store: Store) -> None:
    entries = [{"uuid": "a \ud83e", "text": "cut \ud83e"}, {"uuid": "b", "text": "whole 🦔", "\udd94": 1}]
    await store.transcripts.append("main", "s", "", entries)
    await store.transcripts.append("main", "s", "", entries)
    assert await store.transcripts.load("main", "s", "", 0) == (entries, None)


async def test_a_long_transcript_is_loaded_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcripts, "_PAGE_CHARACTERS", 1000)
    entries = [{"uuid": f"{number}", "text": "x" * (number % 7 * 60)} for number in range(100)]
    entries.append({"uuid": "huge", "text": "x" * 5000})
    await store.transcripts.append("main", "s", "", entries)
    loaded: list[dict[str, Any]] = []
    pages, after = 0, 0
    while after is not None:
        page, after = await store.transcripts.load("main", "s", "", after)
        assert sum(len(one["text"]) for one in page[:-1]) <= 1000
        loaded += page
        pages += 1
    assert loaded == entries
    assert pages > 10


async def test_no_folder_session_or_sub_agent_sees_the_entries_of_another(store: Store) -> None:
    keys = [("a", "s", ""), ("b", "s", ""), ("a", "t", ""), ("a", "s", "sub/1"), ("a", "s", "sub/2"), ("b", "s", "own")]
    for number, key in enumerate(keys):
        await store.transcripts.append(*key, [{"uuid": "same", "number": number}, {"number": number}])
    for number, key in enumerate(keys):
        loaded, following = await store.transcripts.load(*key, 0)
        assert [entry["number"] for entry in loaded] == [number, number]
        assert following is None
    assert sorted(await store.transcripts.subpaths("a", "s")) == ["sub/1", "sub/2"]
    assert await store.transcripts.subpaths("b", "s") == ["own"]
    assert await store.transcripts.subpaths("a", "t") == []
    assert await store.transcripts.load("nobody", "s", "", 0) == ([], None)


async def test_a_transcript_can_be_loaded_while_others_write(store: Store, path: Path) -> None:
    entries = [{"uuid": f"{number}"} for number in range(1000)]
    await store.transcripts.append("main", "s", "", entries)
    loads = [store.transcripts.load("main", "s", "", 0) for _ in range(5)]
    loaded, *_ = await asyncio.gather(asyncio.gather(*loads), *(store.enqueue(JID, "t", "message") for _ in range(100)))
    assert loaded == [(entries, None)] * 5
    assert len(queued(path)) == 100
