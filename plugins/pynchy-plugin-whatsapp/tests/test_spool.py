"""What waits on the disk until Pynchy has stored it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pynchy_plugin_whatsapp import spool as spool_module
from pynchy_plugin_whatsapp.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path)
    yield spool
    spool.close()


def test_events_come_in_the_order_in_which_they_were_added_until_they_are_removed(spool: Spool) -> None:
    first, second = spool.add(b"first"), spool.add(b"second")
    found = spool.after(0)
    assert found
    assert (found.seq, found.event) == (first, b"first")
    spool.remove(first)
    assert spool.get(first) is None
    found = spool.after(0)
    assert found
    assert (found.seq, spool.waiting()) == (second, 1)


def test_an_event_is_there_for_another_process_once_it_is_added(tmp_path: Path, spool: Spool) -> None:
    spool.add(b"event")
    with closing(sqlite3.connect(tmp_path / "spool.db")) as other:
        assert other.execute("SELECT event FROM received").fetchall() == [(b"event",)]


def test_numbers_are_not_used_again(spool: Spool) -> None:
    first = spool.add(b"first")
    spool.remove(first)
    assert spool.add(b"second") > first


def test_only_the_latest_of_what_is_set_aside_are_kept(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_SET_ASIDE", 3)
    for number in range(5):
        spool.set_aside(spool.add(str(number).encode()), "why")
    assert spool.waiting() == 0
    with closing(sqlite3.connect(tmp_path / "spool.db")) as other:
        assert other.execute("SELECT event FROM set_aside ORDER BY seq").fetchall() == [(b"2",), (b"3",), (b"4",)]


def test_whose_a_message_is_stays_as_it_was_first_said(spool: Spool) -> None:
    spool.remember("chat", "A1", "ada")
    spool.remember("chat", "A1", "eve")
    spool.remember("other", "A1", "bob")
    spool.remember("chat", "S1", "me", ours=True)
    assert (spool.sender_of("chat", "A1"), spool.sender_of("other", "A1")) == ("ada", "bob")
    assert spool.sender_of("chat", "A2") is None
    assert (spool.is_ours("chat", "S1"), spool.is_ours("chat", "A1")) == (True, False)


def test_old_ids_are_forgotten(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_REMEMBERED", 100)
    for number in range(1000):
        spool.remember("chat", str(number), "ada")
    assert spool.sender_of("chat", "0") is None
    assert spool.sender_of("chat", "999") == "ada"
