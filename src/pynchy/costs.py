"""What the model costs and what it may cost: prices, the ceilings of a day, and the word when one is near.

The figures are those of the model's own answers as they pass the host, never the agent's. A day is one of the
installation's time zone.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import structlog

from pynchy.config import Settings
from pynchy.group_settings import parse_price
from pynchy.model_gateway import Free, Meter
from pynchy.model_usage import Figures
from pynchy.store import Store
from pynchy.types import Group
from pynchy.usage import Total

log = structlog.get_logger(__name__)

_MILLION = 10**6
#: Of the price of input, for a model whose price is not known: Anthropic's own factors.
_CACHE_READ, _CACHE_WRITE, _CACHE_WRITE_1H = Decimal("0.1"), Decimal("1.25"), Decimal(2)
_WEB_SEARCH = Decimal("0.01")  # US dollars
#: The most that a model of Anthropic's has cost, as `parse_price` reads it.
_DEAREST = "15/75"
#: The share of a ceiling from which its chat is warned.
_WARN_AT = Decimal("0.8")
_END_WITHIN = 3.0  # seconds


def price(figures: Figures, otherwise: str | None) -> int | None:
    """What a request cost at list prices, in millionths of a US dollar; None where that is not known.

    `otherwise` is the price of models that are not known, as `parse_price` reads it. The first call takes
    half a second.
    """
    from genai_prices import Usage, calc_price

    read, written, for_an_hour = figures.cache_read_tokens, figures.cache_write_tokens, figures.cache_write_1h_tokens
    usage = Usage(
        # Theirs has in it what was read from the cache and written to it; Anthropic's has not.
        input_tokens=figures.input_tokens + read + written,
        output_tokens=figures.output_tokens,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_5m_tokens=written - for_an_hour,
        cache_write_1h_tokens=for_an_hour,
        web_searches=figures.web_searches,
    )
    context = {"speed": "fast"} if figures.fast else None
    try:
        usd = calc_price(usage, model_ref=figures.model, provider_id="anthropic", price_context=context).total_price
    except LookupError:
        if otherwise is None:
            return None
        given, made = parse_price(otherwise)
        tokens_given = figures.input_tokens + read * _CACHE_READ + (written - for_an_hour) * _CACHE_WRITE
        tokens_given += for_an_hour * _CACHE_WRITE_1H
        usd = (tokens_given * given + figures.output_tokens * made) / _MILLION + figures.web_searches * _WEB_SEARCH
    return round(usd * _MILLION)


def in_usd(micro_usd: int) -> str:
    """An amount as people read it; less than a cent with more digits."""
    if 0 < micro_usd < 100:
        return "<$0.0001"
    return f"${micro_usd / _MILLION:.{4 if 0 < micro_usd < 10_000 else 2}f}"


def next_day(now: datetime, zone: ZoneInfo) -> datetime:
    """When the next day begins in a time zone: at midnight, or where the clock leaves that out, after it."""
    midnight = datetime.combine(now.astimezone(zone).date() + timedelta(days=1), time(), zone)
    return midnight.astimezone(UTC).astimezone(zone)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What may be spent in a day, in millionths of a US dollar: by one chat, or with `folder` None by all together.

    `jid` is the chat that hears of it.
    """

    limit: int
    folder: str | None
    jid: str

    @property
    def _who(self) -> str:
        return "all chats together" if self.folder is None else "this chat"

    @property
    def _remedy(self) -> str:
        return "PYNCHY_USD_A_DAY" if self.folder is None else f"`pynchy groups set {self.folder} --usd-a-day`"

    def refusal(self, spent: int, end: str) -> str | None:
        """Why nothing more is asked of the model now; None while there is something left."""
        if spent < self.limit:
            return None
        have = "have" if self.folder is None else "has"
        if self.limit == 0:
            return f"{self._who} may spend nothing on the model; {self._remedy} changes that"
        return (
            f"{self._who} {have} used up what may be spent in a day, {in_usd(spent)} of {in_usd(self.limit)}: "
            f"the next day begins at {end}, and {self._remedy} changes the limit"
        )

    def notice(self, before: int, after: int, end: str) -> str | None:
        """What to say when a request takes the day's sum from `before` to `after`; None where it passes nothing."""
        if before < self.limit <= after:
            refusal = self.refusal(after, end)
            assert refusal
            return f"{refusal[0].upper()}{refusal[1:]}."
        if before < self.limit * _WARN_AT <= after:
            have = "have" if self.folder is None else "has"
            return (
                f"{self._who.capitalize()} {have} spent {in_usd(after)} of the {in_usd(self.limit)} that may be spent "
                f"in a day; the next one begins at {end}."
            )
        return None


class Costs:
    """Counts the requests of every agent, and holds them to what may be spent in a day.

    A request is refused once a ceiling is reached, and what is under way then is finished: a ceiling can be
    overshot by what one agent asks at once, and that of all groups by what all of them do. `main` says which chat
    hears of the ceiling of all. Of a model that is `free` nothing is counted, and everything may be asked.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        main: Callable[[], str],
        wake_outbox: Callable[[], None],
        free: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._store = store
        self._main = main
        self._wake_outbox = wake_outbox
        self._free = free
        self._now = now
        self._zone = ZoneInfo(settings.time_zone)
        # An agent names its model: one that nobody knows must not be free where it is Anthropic's.
        self._otherwise = settings.model_price or (None if settings.anthropic_base_url else _DEAREST)
        self._day = ""
        self._totals: dict[str, Total] = {}
        self._prices: asyncio.Future[int | None] | None = None
        self._recording: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Take up what was spent before this start."""
        self._day = self._today()
        self._totals = await self._store.usage.totals(self._day)

    async def end(self) -> None:
        """Wait a moment for what is still being written down."""
        if self._recording:
            _, late = await asyncio.wait(self._recording, timeout=_END_WITHIN)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def refusal(self, group: Group) -> str | None:
        """Why the model is not to be asked for this group now: which ceiling, whose, and when it ends."""
        for ceiling in () if self._free else self._ceilings(group):
            if why := ceiling.refusal(self._spent(ceiling.folder), self._end()):
                return why
        return None

    def meter(self, group: Group, task_id: int = 0) -> Meter:
        """What measures a request of this group's agent, for a task or with 0 for the chat itself."""
        return Free() if self._free else GroupMeter(self, group, task_id)

    def count(self, group: Group, task_id: int, figures: Figures) -> None:
        """Write down what a request took, in a task of its own, which no agent can cancel."""
        task = asyncio.get_running_loop().create_task(self._record(group, task_id, figures))
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    def summary_lines(self, groups: Sequence[Group], overall: bool) -> list[str]:
        """What has been spent today: a line for each of these groups, and with `overall` one for all together."""
        if self._free:
            return []
        lines = []
        if overall:
            everyone = sum(self._today_totals().values(), Total())
            lines.append(f"Model: {_amount(everyone, self._settings.usd_a_day)}")
        for group in groups:
            total = self._today_totals().get(group.folder, Total())
            if not overall:
                lines.append(f"Model: {_amount(total, group.usd_a_day)}")
            elif total.requests or group.usd_a_day is not None:
                lines.append(f"  {group.folder}: {_amount(total, group.usd_a_day)}")
        return lines

    def load_prices(self) -> asyncio.Future[int | None]:
        """Begin to read the list of prices, in a thread, where that has not been done."""
        if self._prices is None:
            self._prices = asyncio.ensure_future(asyncio.to_thread(price, Figures("claude"), None))
        return self._prices

    async def _record(self, group: Group, task_id: int, figures: Figures) -> None:
        if not (loading := self.load_prices()).done():
            await asyncio.shield(loading)
        cost = price(figures, self._otherwise)
        day, totals = self._today(), self._today_totals()
        spent = cost or 0
        totals[group.folder] = totals.get(group.folder, Total()) + Total(spent, 1, cost is None)
        end = self._end()

        def notices(of_group: int, of_all: int) -> Iterator[tuple[str, str]]:
            for ceiling in self._ceilings(group):
                before = of_all if ceiling.folder is None else of_group
                if text := ceiling.notice(before, before + spent, end):
                    yield ceiling.jid, text

        try:
            told = await self._store.until_stored(
                lambda: self._store.usage.add(group.folder, task_id, day, figures, cost, notices)
            )
        except sqlite3.Error as error:
            log.error("could not write down what a request cost", group=group.folder, error=str(error))
            return
        if told:
            self._wake_outbox()

    def _ceilings(self, group: Group) -> Iterator[Ceiling]:
        if group.usd_a_day is not None:
            yield Ceiling(_as_micro(group.usd_a_day), group.folder, group.jid)
        if self._settings.usd_a_day is not None:
            yield Ceiling(_as_micro(self._settings.usd_a_day), None, self._main())

    def _spent(self, folder: str | None) -> int:
        totals = self._today_totals()
        if folder is None:
            return sum(total.micro_usd for total in totals.values())
        return totals.get(folder, Total()).micro_usd

    def _today_totals(self) -> dict[str, Total]:
        if (day := self._today()) != self._day:
            self._day, self._totals = day, {}
        return self._totals

    def _today(self) -> str:
        return local_day(self._now(), self._zone).isoformat()

    def _end(self) -> str:
        return f"{next_day(self._now(), self._zone):%Y-%m-%d %H:%M} ({self._settings.time_zone})"


@dataclass(frozen=True, slots=True)
class GroupMeter:
    """Measures one group's requests: what the gateway asks before each, and tells after it."""

    costs: Costs
    group: Group
    task_id: int

    def refusal(self) -> str | None:
        """Why not to ask the model now; None where it may be asked."""
        self.costs.load_prices()  # while the model thinks
        return self.costs.refusal(self.group)

    def count(self, figures: Figures) -> None:
        """What a request took."""
        self.costs.count(self.group, self.task_id, figures)


def local_day(now: datetime, zone: ZoneInfo) -> date:
    """The day that it is in a time zone."""
    return now.astimezone(zone).date()


def _as_micro(usd: float) -> int:
    return round(usd * _MILLION)


def _amount(total: Total, limit: float | None) -> str:
    of = "" if limit is None else f" of {in_usd(_as_micro(limit))}"
    unpriced = f"; {total.unpriced} of {total.requests} requests without a known price" if total.unpriced else ""
    return f"{in_usd(total.micro_usd)}{of} today{unpriced}"
