"""When a task is due: cron, interval and once, right over every change of a zone's clocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

Kind = Literal["cron", "interval", "once"]

_MOST_CHARACTERS = 120
_SHORTEST = timedelta(seconds=60)
_LONGEST = timedelta(days=366)
_FARTHEST = timedelta(days=3653)
_INTERVAL = re.compile(r"([0-9]{1,9})\s*([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SECOND = timedelta(seconds=1)
#: More than any two offsets of one zone differ by: what is farther away than this, no change of the clocks reorders.
_NEAR = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When something is to be done.

    `text` is five cron fields, the seconds of an interval, or a moment in UTC (ISO 8601).
    """

    kind: Kind
    text: str

    @classmethod
    def parse(cls, kind: str, text: str, zone: ZoneInfo, now: datetime) -> Schedule:
        """Read a schedule as people and agents write it; ValueError, in words, for one that cannot be."""
        text = " ".join(text.split())
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"a schedule has at most {_MOST_CHARACTERS} characters")
        match kind:
            case "cron":
                return _cron(text, zone, now)
            case "interval":
                return _interval(text)
            case "once":
                return _once(text, zone, now)
        raise ValueError(f"there is no schedule {kind[:40]!r}: write `cron`, `interval` or `once`")


def next_after(schedule: Schedule, after: datetime, zone: ZoneInfo, anchor: datetime) -> datetime | None:
    """The first moment strictly after this one, in UTC; None where none comes. Intervals count from the anchor."""
    after, anchor = after.astimezone(UTC), anchor.astimezone(UTC)
    match schedule.kind:
        case "cron":
            return _next_of_cron(schedule.text, after, zone)
        case "interval":
            interval = timedelta(seconds=int(schedule.text))
            return anchor + max(1, (after - anchor) // interval + 1) * interval
        case "once":
            when = datetime.fromisoformat(schedule.text)
            return when if when > after else None


def describe(schedule: Schedule, zone: ZoneInfo) -> str:
    """A schedule in a few words, as in `every 2 h`."""
    match schedule.kind:
        case "cron":
            return f"cron {schedule.text} in {zone}"
        case "interval":
            seconds = int(schedule.text)
            size, unit = next((size, unit) for size, unit in _UNITS if seconds % size == 0)
            return f"every {seconds // size} {unit}"
        case "once":
            local = datetime.fromisoformat(schedule.text).astimezone(zone).replace(tzinfo=None)
            return f"once at {local.isoformat(' ', 'seconds' if local.second else 'minutes')} {zone}"


# --- reading ------------------------------------------------------------------------------------------------


def _cron(text: str, zone: ZoneInfo, now: datetime) -> Schedule:
    text = text.upper()
    if len(text.split()) != 5:
        raise ValueError("a cron schedule has five fields, as in `30 9 * * 1-5`: minute, hour, day, month, weekday")
    try:
        found = _next_of_cron(text, now.astimezone(UTC), zone)
    except CronSimError as error:
        raise ValueError(f"{text!r} is no cron schedule: {str(error).lower()}") from None
    if found is None:
        raise ValueError(f"the cron schedule {text!r} never comes")
    return Schedule("cron", text)


def _interval(text: str) -> Schedule:
    match = _INTERVAL.fullmatch(text.lower())
    if match is None:
        raise ValueError(f"{text!r} is no interval: write seconds, or a number with its unit, as in 90s, 15m, 2h or 1d")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if not _SHORTEST.total_seconds() <= seconds <= _LONGEST.total_seconds():
        raise ValueError(f"{text!r} cannot be: an interval is at least a minute and at most {_LONGEST.days} days")
    return Schedule("interval", str(seconds))


def _once(text: str, zone: ZoneInfo, now: datetime) -> Schedule:
    try:
        given = datetime.fromisoformat(text)
        # A local time that the clocks skip moves on by what they skip; of one that they repeat, the first is meant.
        when = (given if given.tzinfo else given.replace(tzinfo=zone)).astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time: write one as in 2026-03-01T09:00, or with an offset, +01:00") from None
    if when <= now:
        here = now.astimezone(zone).isoformat(" ", "seconds")
        raise ValueError(f"{text!r} has passed: in {zone} it is {here}")
    if when > now + _FARTHEST:
        raise ValueError(f"{text!r} is more than ten years away")
    return Schedule("once", when.isoformat())


# --- cron ---------------------------------------------------------------------------------------------------


def _next_of_cron(text: str, after: datetime, zone: ZoneInfo) -> datetime | None:
    """Debian's rule: a field of minutes or hours that begins with a star means real time, others the clock's.

    So over a change of the clocks `*/20 * * * *` goes on every twenty minutes, and `30 2 * * *` comes once a day.
    """
    minutes, hours = text.split()[:2]
    if minutes.startswith("*") or hours.startswith("*"):
        return _next_in_real_time(text, after, zone)
    for when in CronSim(text, after.astimezone(zone)):
        # In an hour that the clocks repeat, it names the first of two moments, which may have been.
        if (found := when.astimezone(UTC)) > after:
            return found
    return None


def _next_in_real_time(text: str, after: datetime, zone: ZoneInfo) -> datetime | None:
    """The next minute whose local time fits: sought from one change of the clocks to the next.

    CronSim goes by whole hours here, and loses some where the clocks change by half of one.
    """
    start = after.replace(microsecond=0) + _SECOND
    while True:
        offset = _offset(start, zone)
        fits = next(CronSim(text, (start + offset - _SECOND).replace(tzinfo=None)), None)
        if fits is None:
            return None
        when = fits.replace(tzinfo=UTC) - offset
        seen = min(when, start + _NEAR)
        if change := _change(start, seen, zone):
            start = change
        elif when == seen:
            return when
        else:
            start = when - _NEAR


def _change(start: datetime, end: datetime, zone: ZoneInfo) -> datetime | None:
    """The first second of another offset from UTC than at the start, up to the end; None without one."""
    offset = _offset(start, zone)
    if _offset(end, zone) == offset:
        return None
    before, changed = 0, int((end - start).total_seconds())
    while changed - before > 1:
        middle = (before + changed) // 2
        if _offset(start + middle * _SECOND, zone) == offset:
            before = middle
        else:
            changed = middle
    return start + changed * _SECOND


def _offset(when: datetime, zone: ZoneInfo) -> timedelta:
    offset = when.astimezone(zone).utcoffset()
    assert offset is not None
    return offset
