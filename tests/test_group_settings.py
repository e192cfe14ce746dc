"""What a group is set to is read as it was meant, or refused in one sentence; nothing else comes of any text."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynchy.config import Settings, SettingsError, load_settings
from pynchy.control import group_from
from pynchy.group_settings import apply, as_bytes, in_words, parse_price
from pynchy.types import GROUP_SETTINGS, ExtraMount, Group

GROUP = Group("x:1", "Family", "family")
INSTALLED = frozenset({"hello", "voice"})

_MEANT: list[tuple[str, str, str, Any]] = [
    ("name", "  The   family ", "name", "The family"),
    ("needs_trigger", "No", "needs_trigger", False),
    ("main", "yes", "is_main", True),
    ("trigger", "@Bird", "trigger", "@Bird"),
    ("trigger", "default", "trigger", None),
    ("senders", "ada@x, bob@x,ada@x,", "senders", ("ada@x", "bob@x")),
    ("senders", "", "senders", ()),
    ("senders", "all", "senders", None),
    ("commanders", "49123@s.whatsapp.net", "commanders", ("49123@s.whatsapp.net",)),
    ("plugins", "voice,hello", "plugins", ("voice", "hello")),
    ("plugins", "all", "plugins", None),
    ("plugins", "", "plugins", ()),
    ("network", "Example.com, *.Example.net:8443", "network", "example.com,*.example.net:8443"),
    ("mounts", "~/a b, /srv/x:rw,/srv/y:ro", "mounts", ("~/a b", "/srv/x", "/srv/y")),
    ("mounts", "", "mounts", ()),
    ("memory", "1.5g", "memory_bytes", 1536 * 1024**2),
    ("cpus", "0.5", "cpus", 0.5),
    ("pids", "default", "pids", None),
    ("model", "claude-opus-4-5[1m]", "model", "claude-opus-4-5[1m]"),
    ("time_zone", "America/Argentina/Ushuaia", "time_zone", "America/Argentina/Ushuaia"),
    ("usd_a_day", "2.50", "usd_a_day", 2.5),
    ("usd_a_day", "0", "usd_a_day", 0.0),
]


@pytest.mark.parametrize(("name", "text", "field", "value"), _MEANT)
def test_a_setting_is_read_as_it_was_meant(name: str, text: str, field: str, value: Any) -> None:
    changed = apply(GROUP, {name: text}, INSTALLED)
    found = getattr(changed, field)
    if field == "mounts":
        found = tuple(mount.host_path for mount in found)
    assert found == value
    same = [one.name for one in fields(Group) if one.name != field]
    assert all(getattr(changed, one) == getattr(GROUP, one) for one in same)


def test_a_folder_is_writable_only_where_that_is_written() -> None:
    changed = apply(GROUP, {"mounts": "/srv/x:rw,/srv/y:ro,/srv/z,/srv/a:b"}, INSTALLED)
    assert changed.mounts == (
        ExtraMount("/srv/x", readonly=False),
        ExtraMount("/srv/y"),
        ExtraMount("/srv/z"),
        ExtraMount("/srv/a:b"),
    )


_NONSENSE: list[tuple[str, str]] = [
    ("name", ""),
    ("name", "a\u202eb"),
    ("name", "x" * 101),
    ("needs_trigger", "perhaps"),
    ("trigger", ""),
    ("trigger", "two words"),
    ("trigger", "/status"),
    ("trigger", "x" * 61),
    ("senders", ",".join(str(number) for number in range(201))),
    ("plugins", "nope"),
    ("network", "10.0.0.1"),
    ("memory", "1k"),
    ("cpus", "nan"),
    ("cpus", "inf"),
    ("cpus", "0"),
    ("pids", "1"),
    ("model", ""),
    ("model", "a b"),
    ("model", "--help"),
    ("time_zone", "Mars/Olympus"),
    ("time_zone", ""),
    ("time_zone", "../../../etc/localtime"),
    ("time_zone", "/etc/localtime"),
    ("time_zone", "Europe"),
    ("usd_a_day", "-1"),
    ("usd_a_day", "nan"),
    ("colour", "red"),
]


@pytest.mark.parametrize(("name", "text"), _NONSENSE)
def test_what_cannot_be_is_refused_in_one_sentence(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        apply(GROUP, {name: text}, INSTALLED)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700


@given(st.dictionaries(st.sampled_from([*GROUP_SETTINGS, "x"]), st.text(max_size=200), max_size=4))
def test_no_text_makes_anything_but_a_group_that_is_stored_and_carried_as_it_is(wishes: dict[str, str]) -> None:
    try:
        changed = apply(GROUP, wishes, INSTALLED)
    except ValueError:
        return
    assert (changed.jid, changed.folder) == (GROUP.jid, GROUP.folder)
    assert all("\n" not in word for word in in_words(changed))
    assert group_from(json.loads(json.dumps(asdict(changed)))) == changed


@given(st.text(max_size=40) | st.integers() | st.none())
def test_a_size_is_a_number_of_bytes_or_none(text: Any) -> None:
    try:
        assert isinstance(as_bytes(text), int)
    except ValueError:
        return


@given(st.text(max_size=40))
def test_a_price_is_two_numbers_or_none(text: str) -> None:
    try:
        given_, made = parse_price(text)
    except ValueError:
        return
    assert given_ >= 0
    assert made >= 0


_VARIABLES = [
    f"PYNCHY_{name.upper()}" for name, field in Settings.model_fields.items() if field.validation_alias is None
]


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "nan", "1e999", "\u00b2", "0", "off", "default", "a\nb", "../x", "9" * 400]
)
@pytest.mark.parametrize("name", [name for name in _VARIABLES if name != "PYNCHY_HOME"])
def test_no_setting_ends_in_a_traceback(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    said: list[str] = []
    try:
        load_settings()
    except SettingsError as error:
        said.append(str(error))
    assert all(one.startswith(f"{name}=") and "\n" not in one for one in said)
