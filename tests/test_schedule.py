"""Schedules: what people may write, and when it comes, over every kind of change that clocks make."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pynchy.schedule import Schedule, describe, next_after

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
#: Clocks that go over midnight, by half an hour, by two hours, twice around Ramadan, and never.
ZONES = [
    *("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "America/Havana"),
    *("America/Santiago", "Antarctica/Troll", "Africa/Casablanca", "Asia/Kathmandu", "Pacific/Apia", "UTC"),
]


def times(schedule: Schedule, zone: ZoneInfo, after: datetime, most: int, anchor: datetime = NOW) -> list[datetime]:
    """The next occurrences, each found from the one before."""
    found: list[datetime] = []
    while len(found) < most and (following := next_after(schedule, found[-1] if found else after, zone, anchor)):
        found.append(following)
    return found


def local(moments: list[datetime], zone: ZoneInfo) -> list[str]:
    """How clocks there show them, with the offset."""
    return [moment.astimezone(zone).strftime("%d %H:%M%z") for moment in moments]


# --- over the changes of the clocks -------------------------------------------------------------------------

#: A zone, a cron schedule, a local time to begin at, and what follows.
CHANGES: dict[str, tuple[str, str, str, list[str]]] = {
    "a skipped time comes right after the gap": (
        *("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00"),
        ["29 03:00+0200", "30 02:30+0200"],
    ),
    "all times of a gap come once": (
        *("Europe/Berlin", "5,10,55 2,3 * * *", "2026-03-29T00:00"),
        ["29 03:00+0200", "29 03:05+0200", "29 03:10+0200", "29 03:55+0200", "30 02:05+0200"],
    ),
    "the end of a gap is no gap": (
        *("Europe/Berlin", "0 3 * * *", "2026-03-28T12:00"),
        ["29 03:00+0200", "30 03:00+0200"],
    ),
    "a skipped time and the end of its gap are one": (
        *("Europe/Berlin", "0 2,3 * * *", "2026-03-28T12:00"),
        ["29 03:00+0200", "30 02:00+0200"],
    ),
    "a repeated time comes once": (
        *("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00"),
        ["25 02:30+0200", "26 02:30+0100"],
    ),
    "real time goes on over a gap": (
        *("Europe/Berlin", "*/30 * * * *", "2026-03-29T01:00"),
        ["29 01:30+0100", "29 03:00+0200", "29 03:30+0200"],
    ),
    "real time goes on while the clocks repeat": (
        *("Europe/Berlin", "*/30 * * * *", "2026-10-25T02:00"),
        ["25 02:30+0200", "25 02:00+0100", "25 02:30+0100", "25 03:00+0100"],
    ),
    "an hour with a star is real time": (
        *("Europe/Berlin", "15 */1 * * *", "2026-10-25T01:00"),
        ["25 01:15+0200", "25 02:15+0200", "25 02:15+0100", "25 03:15+0100"],
    ),
    "every minute of an hour that is skipped comes the day after": (
        *("Europe/Berlin", "*/30 2 * * *", "2026-03-28T12:00"),
        ["30 02:00+0200", "30 02:30+0200"],
    ),
    "real time right after a gap that is far away": (
        *("Europe/Berlin", "*/30 3 29 3 *", "2026-01-10T00:00"),
        ["29 03:00+0200", "29 03:30+0200"],
    ),
    "a skipped time in America": (
        *("America/New_York", "0 2 * * *", "2026-03-07T12:00"),
        ["08 03:00-0400", "09 02:00-0400"],
    ),
    "a repeated time in America": (
        *("America/New_York", "30 1 * * *", "2026-10-31T12:00"),
        ["01 01:30-0400", "02 01:30-0500"],
    ),
    "a gap of half an hour": (
        *("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00"),
        ["04 02:30+1100", "05 02:15+1100"],
    ),
    "half an hour that is repeated": (
        *("Australia/Lord_Howe", "45 1 * * *", "2026-04-04T12:00"),
        ["05 01:45+1100", "06 01:45+1030"],
    ),
    "every hour, and half an hour that is repeated": (
        *("Australia/Lord_Howe", "30 * * * *", "2026-04-05T00:00"),
        ["05 00:30+1100", "05 01:30+1100", "05 01:30+1030", "05 02:30+1030"],
    ),
    "every minute of the hour after a gap of half of one": (
        *("Australia/Lord_Howe", "*/20 3 * * *", "2026-10-04T00:00"),
        ["04 03:00+1100", "04 03:20+1100", "04 03:40+1100", "05 03:00+1100"],
    ),
    "a midnight that is skipped": (
        *("Africa/Cairo", "0 0 * * *", "2026-04-23T12:00"),
        ["24 01:00+0300", "25 00:00+0300"],
    ),
    "real time on a day without a midnight": (
        *("Africa/Cairo", "0 * * * 5", "2026-04-23T12:00"),
        ["24 01:00+0300", "24 02:00+0300"],
    ),
    "a midnight that is repeated": (
        *("America/Havana", "0 0 * * *", "2026-10-31T12:00"),
        ["01 00:00-0400", "02 00:00-0500"],
    ),
    "a day that a zone went without": (
        *("Pacific/Apia", "0 9 * * *", "2011-12-28T12:00"),
        ["29 09:00-1000", "31 00:00+1400", "31 09:00+1400"],
    ),
    "real time over a day that a zone went without": (
        *("Pacific/Apia", "0 */12 * * *", "2011-12-29T08:00"),
        ["29 12:00-1000", "31 00:00+1400", "31 12:00+1400"],
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_cron_over_a_change_of_the_clocks(case: str) -> None:
    name, text, begin, expected = CHANGES[case]
    zone = ZoneInfo(name)
    after = datetime.fromisoformat(begin).replace(tzinfo=zone)
    found = times(Schedule("cron", text), zone, after, len(expected))
    assert local(found, zone) == expected
    assert found[-1] - after < timedelta(days=90)


def test_in_the_second_of_two_equal_hours_what_came_in_the_first_is_over() -> None:
    after = datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN, fold=1)
    assert local(times(Schedule("cron", "30 2 * * *"), BERLIN, after, 1), BERLIN) == ["26 02:30+0100"]


def test_an_interval_does_not_know_of_clocks() -> None:
    anchor = datetime(2026, 3, 28, 9, tzinfo=BERLIN)
    daily = Schedule.parse("interval", "1d", BERLIN, NOW)
    assert local(times(daily, BERLIN, anchor, 2, anchor), BERLIN) == ["29 10:00+0200", "30 10:00+0200"]


def test_an_interval_begins_after_its_anchor_though_the_clock_went_back() -> None:
    hourly = Schedule("interval", "3600")
    assert next_after(hourly, NOW - timedelta(days=3), BERLIN, NOW) == NOW + timedelta(hours=1)


ONCE: dict[str, tuple[str, str, str]] = {
    "an offset": ("Europe/Berlin", "2026-03-01T09:00:00+05:30", "2026-03-01T03:30:00+00:00"),
    "UTC": ("Europe/Berlin", "2026-03-01T09:00Z", "2026-03-01T09:00:00+00:00"),
    "the zone's own time": ("Europe/Berlin", "2026-07-01 09:00", "2026-07-01T07:00:00+00:00"),
    "a time that is skipped moves on by the gap": ("Europe/Berlin", "2026-03-29T02:30", "2026-03-29T01:30:00+00:00"),
    "by half an hour where that is the gap": ("Australia/Lord_Howe", "2026-10-04T02:10", "2026-10-03T15:40:00+00:00"),
    "of a repeated time the first": ("America/New_York", "2026-11-01T01:30", "2026-11-01T05:30:00+00:00"),
    "a day": ("Europe/Berlin", "2026-03-01", "2026-02-28T23:00:00+00:00"),
}


@pytest.mark.parametrize("case", ONCE)
def test_once(case: str) -> None:
    name, text, expected = ONCE[case]
    zone = ZoneInfo(name)
    schedule = Schedule.parse("once", text, zone, NOW)
    assert schedule == Schedule("once", expected)
    when = datetime.fromisoformat(expected)
    assert times(schedule, zone, NOW, 2) == [when]
    assert next_after(schedule, when - timedelta(microseconds=1), zone, NOW) == when


# --- what may be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "expected", "words"),
    [
        ("cron", "0 9 * * 1-5", "0 9 * * 1-5", "cron 0 9 * * 1-5 in Europe/Berlin"),
        ("cron", "  */5  8-17 * jan mon#1 ", "*/5 8-17 * JAN MON#1", "cron */5 8-17 * JAN MON#1 in Europe/Berlin"),
        ("cron", "0 0 29 2 *", "0 0 29 2 *", "cron 0 0 29 2 * in Europe/Berlin"),
        ("cron", "0 0 L * *", "0 0 L * *", "cron 0 0 L * * in Europe/Berlin"),
        ("interval", "90", "90", "every 90 s"),
        ("interval", "90s", "90", "every 90 s"),
        ("interval", "90 M", "5400", "every 90 min"),
        ("interval", "2h", "7200", "every 2 h"),
        ("interval", "1d", "86400", "every 1 d"),
        ("interval", "366d", "31622400", "every 366 d"),
        ("once", "2026-03-01T09:00", "2026-03-01T08:00:00+00:00", "once at 2026-03-01 09:00 Europe/Berlin"),
        ("once", "2026-03-01T09:00:01.5", "2026-03-01T08:00:01+00:00", "once at 2026-03-01 09:00:01 Europe/Berlin"),
    ],
)
def test_what_is_written_is_kept_in_one_form(kind: str, text: str, expected: str, words: str) -> None:
    schedule = Schedule.parse(kind, text, BERLIN, NOW)
    assert schedule.text == expected
    assert describe(schedule, BERLIN) == words


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("cron", "", "has five fields"),
        ("cron", "@daily", "has five fields"),
        ("cron", "0 0 9 * * 1-5", "has five fields"),
        ("cron", "61 * * * *", "bad minute"),
        ("cron", "0 9 * * MONDAY", "bad day-of-week"),
        ("cron", "0 9 30 2 *", "bad day-of-month"),
        ("cron", "0 9 */31 * MON#2", "never comes"),
        ("cron", "*/30 * */31 * MON#2", "never comes"),
        ("cron", "0 9 * * " + "1," * 100, "at most 120 characters"),
        ("interval", "59", "at least a minute"),
        ("interval", "367d", "at most 366 days"),
        ("interval", "-5m", "is no interval"),
        ("interval", "1.5h", "is no interval"),
        ("interval", "٣m", "is no interval"),
        ("interval", "daily", "is no interval"),
        ("once", "tomorrow", "is no time"),
        ("once", "2026-02-30T09:00", "is no time"),
        ("once", "0001-01-01T00:00+14:00", "is no time"),
        ("once", "2026-01-15T13:00", "in Europe/Berlin it is 2026-01-15 13:00:00+01:00"),
        ("once", "2036-03-01T09:00", "more than ten years"),
        ("weekly", "MON", "write `cron`, `interval` or `once`"),
    ],
)
def test_what_cannot_be_is_refused_in_words(kind: str, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Schedule.parse(kind, text, BERLIN, NOW)


@given(st.sampled_from(["cron", "interval", "once"]), st.text(max_size=150))
@example("cron", "²L * * * ²L")
@example("cron", "* * L/2,LW/0 * 1#1#1")
@example("once", "9999-12-31T23:59:59-23:59")
def test_any_text_is_a_schedule_or_is_refused(kind: str, text: str) -> None:
    with contextlib.suppress(ValueError):
        assert next_after(Schedule.parse(kind, text, BERLIN, NOW), NOW, BERLIN, NOW)


# --- what holds always --------------------------------------------------------------------------------------

moments = st.datetimes(datetime(2019, 1, 1), datetime(2034, 1, 1), timezones=st.just(UTC))
zones = st.sampled_from(ZONES).map(ZoneInfo)


def fields(most: int, least: int = 0) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """A field of cron, and the numbers it stands for."""
    numbers = range(least, most + 1)
    some = st.frozensets(st.integers(least, most), min_size=1, max_size=3)
    steps = st.integers(1, most)
    spans = st.tuples(st.integers(least, most), st.integers(least, most)).map(sorted)
    return st.one_of(
        st.just(("*", frozenset(numbers))),
        some.map(lambda chosen: (",".join(map(str, sorted(chosen))), chosen)),
        steps.map(lambda step: (f"*/{step}", frozenset(numbers[::step]))),
        spans.map(lambda ends: (f"{ends[0]}-{ends[1]}", frozenset(range(ends[0], ends[1] + 1)))),
    )


#: All that come in every one of their months.
crons = st.tuples(fields(59), fields(23), fields(31, 1), fields(12, 1), fields(6)).filter(
    lambda cron: min(cron[2][1]) <= 28
)


def fits(cron: tuple[tuple[str, frozenset[int]], ...], clock: datetime) -> bool:
    """Whether the fields name what a clock shows."""
    (_, minutes), (_, hours), (day_text, days), (_, months), (weekday_text, weekdays) = cron
    day, weekday = clock.day in days, clock.isoweekday() % 7 in weekdays
    starred = day_text.startswith("*") or weekday_text.startswith("*")
    on_this_day = (day and weekday) if starred else (day or weekday)
    return clock.minute in minutes and clock.hour in hours and clock.month in months and on_this_day


def ends_a_gap(moment: datetime, zone: ZoneInfo) -> bool:
    """Whether clocks have just gone forward."""
    before = (moment - timedelta(seconds=1)).astimezone(zone).utcoffset()
    after = moment.astimezone(zone).utcoffset()
    assert before is not None
    assert after is not None
    return before < after


@settings(max_examples=300)
@given(crons, zones, moments)
def test_cron_always_comes_later_and_when_its_fields_say(
    cron: tuple[tuple[str, frozenset[int]], ...], zone: ZoneInfo, after: datetime
) -> None:
    found = times(Schedule("cron", " ".join(text for text, _ in cron)), zone, after, 5)
    assert all(one < following for one, following in pairwise([after, *found]))
    for moment in found:
        assert moment.tzinfo is UTC
        assert fits(cron, moment.astimezone(zone)) or ends_a_gap(moment, zone)


def walk(cron: tuple[tuple[str, frozenset[int]], ...], zone: ZoneInfo, begin: datetime, minutes: int) -> list[datetime]:
    """When cron comes, by going through every minute with an eye on the clock."""
    real_time = cron[0][0].startswith("*") or cron[1][0].startswith("*")
    shown = begin.astimezone(zone).replace(tzinfo=None)
    found: list[datetime] = []
    for minute in range(1, minutes + 1):
        moment = begin + timedelta(minutes=minute)
        clock = moment.astimezone(zone).replace(tzinfo=None)
        if real_time:
            due = fits(cron, clock)
        else:
            # What the clock has not shown before, and what it went past, is due.
            news = range(1, int((clock - shown).total_seconds()) // 60 + 1)
            due = any(fits(cron, shown + timedelta(minutes=one)) for one in news)
            shown = max(shown, clock)
        if due:
            found.append(moment)
    return found


#: Noon before clocks change, in UTC.
EVES = [
    *(
        ("Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC)),
    ),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 6, tzinfo=UTC)),
    ("Africa/Cairo", datetime(2026, 4, 23, 12, tzinfo=UTC)),
    ("Africa/Cairo", datetime(2026, 10, 29, 12, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 3, 28, 18, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, 0, tzinfo=UTC)),
]


@settings(max_examples=60)
@given(st.tuples(fields(59), fields(23)), st.sampled_from(EVES))
def test_on_the_night_of_a_change_cron_is_what_a_walk_through_every_minute_finds(
    times_of_day: tuple[tuple[str, frozenset[int]], ...], eve: tuple[str, datetime]
) -> None:
    zone, begin = ZoneInfo(eve[0]), eve[1]
    cron = (*times_of_day, ("*", frozenset(range(1, 32))), ("*", frozenset(range(1, 13))), ("*", frozenset(range(7))))
    expected = walk(cron, zone, begin, 1500)
    text = " ".join(text for text, _ in cron)
    assert times(Schedule("cron", text), zone, begin, len(expected) + 1)[: len(expected)] == expected


@given(st.integers(60, 366 * 86400), moments, st.timedeltas(timedelta(0), timedelta(days=4000)), zones)
def test_an_interval_never_drifts(seconds: int, anchor: datetime, later: timedelta, zone: ZoneInfo) -> None:
    interval = timedelta(seconds=seconds)
    found = times(Schedule("interval", str(seconds)), zone, anchor + later, 3, anchor)
    assert anchor + later < found[0] <= anchor + later + interval
    assert all((moment - anchor) % interval == timedelta(0) for moment in found)
    assert [following - one for one, following in pairwise(found)] == [interval, interval]
