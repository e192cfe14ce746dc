"""What a group is set to, as people and agents write it, each setting checked where it is read."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from pynchy.network_policy import NetworkPolicy
from pynchy.types import GROUP_SETTINGS, ExtraMount, Group

#: The Claude process alone takes some 200 MB, and a few processes with a dozen threads each.
LEAST_MEMORY = 256 * 1024**2
LEAST_PIDS = 64

#: Instead of a list: everyone, or everything that is installed.
ALL = "all"
#: Instead of a value: the one of the service's own settings.
DEFAULT = "default"

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,119}")
_MOST_PEOPLE = 200


def apply(group: Group, wishes: Mapping[str, str], installed: Collection[str]) -> Group:
    """The group with these settings; `installed` are the plugins there are. ValueError for one that cannot be."""
    return replace(group, **dict(_read(name, text, installed) for name, text in wishes.items()))


def _read(name: str, text: str, installed: Collection[str]) -> tuple[str, Any]:
    """A field of Group and its value."""
    default = text.strip().lower() == DEFAULT
    match name:
        case "name":
            return name, check_name(text)
        case "main":
            return "is_main", _yes(name, text)
        case "needs_trigger":
            return name, _yes(name, text)
        case "trigger":
            return name, None if default else check_trigger(text)
        case "senders" | "commanders":
            return name, _people(name, text)
        case "plugins":
            return name, _plugins(text, installed)
        case "network":
            return name, str(NetworkPolicy.parse(text))
        case "mounts":
            return name, _mounts(text)
        case "memory":
            return "memory_bytes", _limit(name, text, as_bytes, LEAST_MEMORY, "256m")
        case "cpus":
            return name, _limit(name, text, float, 0.01, "0.01")
        case "pids":
            return name, _limit(name, text, int, LEAST_PIDS, str(LEAST_PIDS))
        case "model":
            return name, None if default else check_model(text)
        case "time_zone":
            return name, None if default else check_time_zone(text)
        case "usd_a_day":
            return name, _limit(name, text, float, 0.0, "0")
        case _:
            raise ValueError(f"a group has no setting {name[:40]!r}; there are: {', '.join(GROUP_SETTINGS)}")


def in_words(group: Group) -> list[str]:
    """What a group is set to, where that is worth saying, a setting a text."""
    words = [
        "all plugins" if group.plugins is None else ", ".join(group.plugins) or "no plugins",
        f"network {group.network}",
    ]
    if group.needs_trigger and not group.is_main:
        words.insert(0, f"trigger {group.trigger or DEFAULT}")
    for name, people in (("senders", group.senders), ("commanders", group.commanders)):
        if people is not None:
            words.append(f"{name} {', '.join(people) or 'nobody'}")
    words += [f"mount {mount.host_path}{'' if mount.readonly else ':rw'}" for mount in group.mounts]
    if group.memory_bytes:
        words.append(f"memory {group.memory_bytes // 1024**2} MiB")
    for name, number in (("cpus", group.cpus), ("pids", group.pids), ("usd_a_day", group.usd_a_day)):
        if number is not None:
            words.append(f"{name.replace('_', '-')} {number:g}")
    for name, text in (("model", group.model), ("time-zone", group.time_zone)):
        if text:
            words.append(f"{name} {text}")
    return words


def group_lines(groups: Iterable[Group], chats: Mapping[str, str]) -> list[str]:
    """A line for each group, and for each chat that could become one; `chats` are the names of all by their jids."""
    groups = list(groups)
    lines = [
        f"{one.folder}{' (main)' if one.is_main else ''}: {', '.join([one.name, one.jid, *in_words(one)])}"
        for one in groups
    ]
    others = chats.keys() - {one.jid for one in groups}
    return lines + [f"not registered: {', '.join(filter(None, [chats[jid], jid]))}" for jid in sorted(others)]


def as_bytes(value: Any) -> int:
    """A number of bytes, or a text like `512m` or `2 GiB`, in powers of 1024; ValueError."""
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("write a size as in 512m or 2g")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def as_limit(value: Any) -> Any:
    """A number, or None for the text `off`."""
    return None if isinstance(value, str) and value.strip().lower() == "off" else value


def check_name(text: str) -> str:
    """What a chat may be called: one line of at most 100 characters; ValueError."""
    text = " ".join(text.split())
    if not text or len(text) > 100 or any(unicodedata.category(one) in ("Cc", "Cf", "Cs") for one in text):
        raise ValueError(f"a chat cannot be called {text[:40]!r}: write one line of 1 to 100 characters")
    return text


def check_trigger(text: str | None) -> str | None:
    """A trigger: one word of at most 60 characters that begins with no `/`; ValueError."""
    if text is None:
        return None
    text = text.strip()
    if not text or len(text) > 60 or text.startswith("/") or any(one.isspace() or one == "," for one in text):
        raise ValueError(f"{text[:80]!r} cannot be a trigger: write one word, as in @pynchy")
    return text


def check_time_zone(text: str) -> str:
    """A zone of the IANA database by its name; ValueError."""
    try:
        ZoneInfo(text.strip())
    except (OSError, ValueError, KeyError):  # a name that is a directory, one with odd characters, an unknown one
        raise ValueError(f"there is no time zone {text[:80]!r}: write one as in Europe/Berlin or UTC") from None
    return text.strip()


def check_model(text: str) -> str:
    """The name of a model; ValueError for what can be none."""
    if not _MODEL.fullmatch(text.strip()):
        raise ValueError(f"{text[:80]!r} cannot be a model's name")
    return text.strip()


def check_price(text: str | None) -> str | None:
    """`INPUT/OUTPUT`, US dollars for a million tokens; ValueError."""
    if text is not None:
        parse_price(text)
    return text


def parse_price(text: str) -> tuple[Decimal, Decimal]:
    """What a million tokens of input and of output cost, in US dollars; ValueError."""
    try:
        given, made = (Decimal(part.strip()) for part in text.split("/"))
        if given.is_finite() and made.is_finite() and given >= 0 and made >= 0:
            return given, made
    except (InvalidOperation, ValueError):
        pass
    raise ValueError("write two prices as in 3/15, US dollars for a million tokens of input and of output")


def _yes(name: str, text: str) -> bool:
    match text.strip().lower():
        case "yes" | "true" | "on":
            return True
        case "no" | "false" | "off":
            return False
    raise ValueError(f"{name} {text[:40]!r} cannot be: write `yes` or `no`")


def _people(name: str, text: str) -> tuple[str, ...] | None:
    if text.strip().lower() == ALL:
        return None
    people = tuple(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))
    if len(people) > _MOST_PEOPLE or any(len(one) > 200 for one in people):
        raise ValueError(f"{name} can be at most {_MOST_PEOPLE} ids or names")
    return people


def _plugins(text: str, installed: Collection[str]) -> tuple[str, ...] | None:
    if text.strip() == ALL:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := sorted(set(names) - set(installed)):
        raise ValueError(
            f"No plugin is called {', '.join(unknown)[:200]}; there are: {', '.join(sorted(installed)) or 'none'}"
        )
    return names


def _mounts(text: str) -> tuple[ExtraMount, ...]:
    """Paths with commas between them, `:rw` behind one that may be written."""
    found: dict[str, ExtraMount] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        path, _, mode = part.rpartition(":")
        path, readonly = (path, mode == "ro") if path and mode in ("rw", "ro") else (part, True)
        found[path] = ExtraMount(path, readonly)
    return tuple(found.values())


_Number = TypeVar("_Number", int, float)


def _limit(name: str, text: str, read: Callable[[str], _Number], least: _Number, in_words: str) -> _Number | None:
    if text.strip().lower() == DEFAULT:
        return None
    try:
        value = read(text)
    except ValueError:
        value = least - 1
    if not least <= value < 2**50:
        raise ValueError(f"{name} {text[:40]!r} cannot be: write a number from {in_words} on, or `{DEFAULT}`")
    return value
