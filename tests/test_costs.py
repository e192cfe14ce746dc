"""What requests cost, what they may cost in a day, and what is said when a ceiling is near."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from contained import Agent, Host
from stored import column, rows, set_room
from structlog.testing import capture_logs
from support import until

from pynchy.agent_wire import AgentWire
from pynchy.config import Settings, load_settings
from pynchy.costs import Costs, in_usd, next_day, price
from pynchy.failures import Failure, Verdict
from pynchy.loopback import Exchange, LoopbackServer, Request
from pynchy.model_gateway import Meter, ModelFailure, ModelGateway, Upstream
from pynchy.model_usage import Figures
from pynchy.store import Store
from pynchy.testing import ScriptedModel
from pynchy.types import Group
from pynchy.wire import Frame, FrameWriter

pytestmark = pytest.mark.anyio

MAIN = Group("terminal:main", "main", "main", is_main=True)
FAMILY = Group("wa:1", "Family", "family", usd_a_day=2.0)
WORK = Group("wa:2", "Work", "work")
SONNET = "claude-sonnet-4-5-20250929"
OPUS = "claude-opus-4-5-20251101"
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


def dollars(usd: float) -> Figures:
    """A request of this price: a million tokens of this Opus's output are 25 dollars."""
    return Figures(OPUS, output_tokens=round(usd * 40_000))


# --- prices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "micro_usd"),
    [
        # Sonnet 4.5: 3 and 15 dollars; written to the cache 3.75, for an hour 6; read from it 0.30.
        (Figures(SONNET, 1000, 100), 3000 + 1500),
        (Figures(SONNET, 0, 0, 1000), 300),
        (Figures(SONNET, 0, 0, 0, 1000), 3750),
        (Figures(SONNET, 0, 0, 0, 1000, 1000), 6000),
        (Figures(SONNET, 1000, 100, 10_000, 2000, 500), 3000 + 1500 + 3000 + 1500 * 3.75 + 500 * 6),
        # Opus 4.5: 5 and 25. Haiku 4.5: 1 and 5.
        (Figures(OPUS, 1000, 100, 10_000, 1000, 500), 5000 + 2500 + 5000 + 500 * 6.25 + 5000),
        (Figures("claude-haiku-4-5-20251001", 1000, 100, 0, 1000), 1000 + 500 + 1250),
        (Figures(SONNET, web_searches=3), 30_000),
        (Figures(SONNET), 0),
    ],
)
def test_a_request_costs_what_the_list_says_for_each_kind_of_token(figures: Figures, micro_usd: float) -> None:
    assert price(figures, None) == micro_usd
    assert price(figures, "100/100") == micro_usd, "a price that is set is for models that have none"


def test_the_dearer_mode_costs_more() -> None:
    assert price(Figures("claude-opus-4-8", 1000, 100), None) == 5000 + 2500
    assert price(Figures("claude-opus-4-8", 1000, 100, fast=True), None) == 2 * (5000 + 2500)


@pytest.mark.parametrize("model", ["qwen3:8b", "", "(unknown)", "x" * 120, "?", "gpt-4o"])
def test_a_model_that_no_list_has_costs_what_is_set_or_is_not_known(model: str) -> None:
    figures = Figures(model, 1000, 100, 10_000, 3000, 1000, web_searches=1)
    assert price(figures, None) is None
    assert price(figures, "2/10") == 2000 + 1000 + 10_000 * 0.2 + 2000 * 2.5 + 1000 * 4 + 10_000
    assert price(figures, "0/0") == 10_000


def test_amounts_are_written_with_cents_and_small_ones_with_more() -> None:
    assert [in_usd(n) for n in (0, 1, 430, 9999, 10_000, 2_034_999)] == [
        *("$0.00", "<$0.0001", "$0.0004", "$0.0100", "$0.01", "$2.03"),
    ]


def test_a_day_ends_at_midnight_where_people_are_and_after_it_where_the_clock_leaves_that_out() -> None:
    berlin, beirut = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Beirut")
    assert next_day(datetime(2025, 6, 1, 21, 59, tzinfo=UTC), berlin).isoformat() == "2025-06-02T00:00:00+02:00"
    assert next_day(datetime(2025, 6, 1, 22, 0, tzinfo=UTC), berlin).isoformat() == "2025-06-03T00:00:00+02:00"
    assert next_day(datetime(2025, 3, 29, 12, tzinfo=UTC), beirut).isoformat() == "2025-03-30T01:00:00+03:00"


# --- ceilings -----------------------------------------------------------------------------------------------


@dataclass
class World:
    """Costs over a real database, with a clock that is set by hand."""

    path: Path
    now: datetime = NOON
    woken: int = 0

    @asynccontextmanager
    async def costs(self, **settings: Any) -> AsyncIterator[Costs]:
        """A start of the service, to its end."""

        def wake() -> None:
            self.woken += 1

        async with Store.open(self.path) as store:
            costs = Costs(self._settings(settings), store, lambda: MAIN.jid, wake, now=lambda: self.now)
            await costs.begin()
            try:
                yield costs
            finally:
                await costs.end()

    def _settings(self, given: dict[str, Any]) -> Settings:
        return load_settings().model_copy(update={"time_zone": "Europe/Berlin", "usd_a_day": None, **given})

    async def spend(self, costs: Costs, group: Group, usd: float, task_id: int = 0) -> None:
        """One request, written down."""
        costs.meter(group, task_id).count(dollars(usd))
        await until(lambda: not costs._recording)

    def notices(self) -> list[tuple[str, str]]:
        """What was queued, and for whom."""
        return rows(self.path, "SELECT chat_jid, text FROM outbox WHERE kind = 'notice' ORDER BY id")  # pyright: ignore[reportReturnType]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "pynchy.db")


async def test_a_group_that_has_reached_its_ceiling_is_refused_until_its_day_ends_and_others_are_not(
    world: World,
) -> None:
    async with world.costs() as costs:
        assert costs.refusal(FAMILY) is None
        await world.spend(costs, FAMILY, 1.99)
        assert costs.refusal(FAMILY) is None
        await world.spend(costs, FAMILY, 0.05)
        refused = costs.refusal(FAMILY)
        assert refused == (
            "this chat has used up what may be spent in a day, $2.04 of $2.00: the next day begins at "
            "2025-06-02 00:00 (Europe/Berlin), and `pynchy groups set family --usd-a-day` changes the limit"
        )
        assert costs.meter(FAMILY, 7).refusal() == refused, "also for its tasks"
        assert costs.refusal(WORK) is None
        assert costs.refusal(replace(FAMILY, usd_a_day=3.0)) is None, "a ceiling that is raised counts at once"
        world.now = datetime(2025, 6, 1, 21, 59, 59, tzinfo=UTC)
        assert costs.refusal(FAMILY) == refused
        world.now = datetime(2025, 6, 1, 22, 0, tzinfo=UTC)
        assert costs.refusal(FAMILY) is None
        await world.spend(costs, FAMILY, 0.5)
        assert costs.summary_lines([FAMILY], overall=False) == ["Model: $0.50 of $2.00 today"]
    assert rows(world.path, "SELECT day, micro_usd FROM usage ORDER BY day") == [
        ("2025-06-01", 2_040_000),
        ("2025-06-02", 500_000),
    ]


async def test_all_groups_together_are_held_to_the_ceiling_of_all(world: World) -> None:
    async with world.costs(usd_a_day=1.0) as costs:
        await world.spend(costs, WORK, 0.6)
        await world.spend(costs, MAIN, 0.3, task_id=4)
        assert costs.refusal(WORK) is None
        await world.spend(costs, FAMILY, 0.2)
        for group in (MAIN, FAMILY, WORK):
            assert costs.refusal(group) == (
                "all chats together have used up what may be spent in a day, $1.10 of $1.00: the next day begins at "
                "2025-06-02 00:00 (Europe/Berlin), and PYNCHY_USD_A_DAY changes the limit"
            )


async def test_what_was_spent_before_a_restart_counts_after_it(world: World) -> None:
    async with world.costs(usd_a_day=3.0) as costs:
        await world.spend(costs, FAMILY, 2.1)
    async with world.costs(usd_a_day=3.0) as costs:
        assert (costs.refusal(FAMILY) or "").startswith("this chat has used up")
        assert costs.refusal(WORK) is None
        await world.spend(costs, WORK, 1)
        assert (costs.refusal(WORK) or "").startswith("all chats together have used up")
    world.now = datetime(2025, 6, 2, 12, tzinfo=UTC)
    async with world.costs(usd_a_day=3.0) as costs:
        assert costs.refusal(FAMILY) is None


async def test_a_ceiling_of_nothing_lets_nothing_be_asked(world: World) -> None:
    async with world.costs() as costs:
        assert costs.refusal(replace(FAMILY, usd_a_day=0.0)) == (
            "this chat may spend nothing on the model; `pynchy groups set family --usd-a-day` changes that"
        )
    async with world.costs(usd_a_day=0.0) as costs:
        assert costs.refusal(WORK) == "all chats together may spend nothing on the model; PYNCHY_USD_A_DAY changes that"
    assert world.notices() == []


async def test_eighty_percent_and_the_whole_of_a_ceiling_are_said_once_each_in_the_chat_that_they_concern(
    world: World,
) -> None:
    for _ in range(2):
        async with world.costs() as costs:
            for _ in range(7):
                await world.spend(costs, FAMILY, 0.2)
                await world.spend(costs, WORK, 3)
    assert world.notices() == [
        (
            FAMILY.jid,
            "This chat has spent $1.60 of the $2.00 that may be spent in a day; "
            "the next one begins at 2025-06-02 00:00 (Europe/Berlin).",
        ),
        (
            FAMILY.jid,
            "This chat has used up what may be spent in a day, $2.00 of $2.00: the next day begins at 2025-06-02 00:00 "
            "(Europe/Berlin), and `pynchy groups set family --usd-a-day` changes the limit.",
        ),
    ]
    assert world.woken == 2
    world.now = datetime(2025, 6, 2, 12, tzinfo=UTC)
    async with world.costs() as costs:
        await world.spend(costs, FAMILY, 1.7)
    assert len(world.notices()) == 3, "another day, another word"


async def test_the_ceiling_of_all_is_said_in_the_main_chat(world: World) -> None:
    async with world.costs(usd_a_day=10.0) as costs:
        for group in (WORK, FAMILY, WORK, FAMILY, WORK, WORK):
            await world.spend(costs, replace(group, usd_a_day=None), 2)
    (warned, reached) = world.notices()
    assert warned[0] == reached[0] == MAIN.jid
    assert warned[1].startswith("All chats together have spent $8.00 of the $10.00 that may be spent in a day;")
    assert reached[1].startswith("All chats together have used up what may be spent in a day, $10.00 of $10.00:")


async def test_one_request_that_passes_both_marks_is_said_once(world: World) -> None:
    async with world.costs(usd_a_day=2.0) as costs:
        await world.spend(costs, FAMILY, 5)
    assert [(jid, text.split(" used up")[0]) for jid, text in world.notices()] == [
        (FAMILY.jid, "This chat has"),
        (MAIN.jid, "All chats together have"),
    ]


async def test_requests_at_once_are_all_counted_and_cross_each_mark_once(world: World) -> None:
    async with world.costs() as costs:
        for _ in range(40):
            costs.meter(FAMILY).count(dollars(0.1))
        await until(lambda: not costs._recording)
        assert costs.summary_lines([FAMILY], overall=False) == ["Model: $4.00 of $2.00 today"]
    assert [text.split(",")[0].split(" of the")[0] for _, text in world.notices()] == [
        "This chat has spent $1.60",
        "This chat has used up what may be spent in a day",
    ]
    assert column(world.path, "SELECT requests FROM usage") == [40]


async def test_a_raised_ceiling_is_warned_of_anew(world: World) -> None:
    async with world.costs() as costs:
        await world.spend(costs, FAMILY, 2)
        raised = replace(FAMILY, usd_a_day=4.0)
        await world.spend(costs, raised, 1.3)
    assert [text.split(";")[0] for _, text in world.notices()][-1] == (
        "This chat has spent $3.30 of the $4.00 that may be spent in a day"
    )


async def test_a_disk_that_is_full_holds_the_row_and_its_notice_up_and_loses_neither(world: World) -> None:
    async with world.costs() as costs:
        await costs._store._db.write(lambda db: set_room(db, 0))
        distant = replace(FAMILY, jid="x" * 100_000)  # there is no room for a notice to it
        with capture_logs() as logs:
            costs.meter(distant).count(dollars(1.7))
            await until(lambda: logs)
        assert costs.summary_lines([FAMILY], overall=False) == ["Model: $1.70 of $2.00 today"]
        assert column(world.path, "SELECT count(*) FROM usage") == [0]
        await costs._store._db.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
        await until(lambda: not costs._recording)
    assert column(world.path, "SELECT micro_usd FROM usage") == [1_700_000]
    assert [jid for jid, _ in world.notices()] == [distant.jid]


async def test_a_model_without_a_price_costs_nothing_and_is_counted_as_such_until_one_is_set(world: World) -> None:
    local = Figures("qwen3:8b", 1_000_000, 1_000_000)
    async with world.costs(anthropic_base_url="http://127.0.0.1:1") as costs:
        costs.meter(FAMILY).count(local)
        await until(lambda: not costs._recording)
        assert costs.refusal(FAMILY) is None
        assert costs.summary_lines([FAMILY], overall=False) == [
            "Model: $0.00 of $2.00 today; 1 of 1 requests without a known price"
        ]
    async with world.costs(model_price="1/2") as costs:
        costs.meter(FAMILY).count(local)
        await until(lambda: not costs._recording)
        assert costs.refusal(FAMILY)
    assert rows(world.path, "SELECT requests, micro_usd, unpriced FROM usage") == [(2, 3_000_000, 1)]


async def test_a_model_of_anthropics_that_nobody_knows_costs_as_much_as_the_dearest(world: World) -> None:
    async with world.costs() as costs:
        costs.meter(FAMILY).count(Figures("claude-of-tomorrow", 1_000_000, 100_000))
        await until(lambda: not costs._recording)
    assert rows(world.path, "SELECT micro_usd FROM usage") == [(22_500_000,)]


async def test_a_free_model_is_neither_counted_nor_refused(world: World) -> None:
    async with Store.open(world.path) as store:
        costs = Costs(load_settings().model_copy(update={"usd_a_day": 0.0}), store, lambda: MAIN.jid, print, free=True)
        await costs.begin()
        meter = costs.meter(replace(FAMILY, usd_a_day=0.0))
        assert meter.refusal() is None
        assert costs.refusal(FAMILY) is None
        meter.count(dollars(5))
        await costs.end()
        assert costs.summary_lines([FAMILY], overall=True) == []
    assert column(world.path, "SELECT count(*) FROM usage") == [0]


async def test_what_is_still_being_written_down_at_the_end_is(world: World) -> None:
    async with world.costs() as costs:
        costs.meter(FAMILY).count(dollars(1))
    assert column(world.path, "SELECT requests FROM usage") == [1]


async def test_the_summary_of_all_has_a_line_for_each_group_that_spent_or_has_a_ceiling(world: World) -> None:
    async with world.costs(usd_a_day=5.0) as costs:
        await world.spend(costs, MAIN, 0.25)
        assert costs.summary_lines([MAIN, FAMILY, WORK], overall=True) == [
            "Model: $0.25 of $5.00 today",
            "  main: $0.25 today",
            "  family: $0.00 of $2.00 today",
        ]
        assert costs.summary_lines([WORK], overall=False) == ["Model: $0.00 today"]


# --- with the real agent ------------------------------------------------------------------------------------

#: What each request to the model of these tests takes, whatever it asks.
EACH = {
    "input_tokens": 1203,
    "cache_creation_input_tokens": 5011,
    "cache_read_input_tokens": 20_717,
    "cache_creation": {"ephemeral_5m_input_tokens": 2000, "ephemeral_1h_input_tokens": 3011},
    "output_tokens": 1,
}


async def a_dear_model(request: Request, exchange: Exchange) -> None:
    """The Messages API, with figures of a model that has a cache."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": EACH, "stop_reason": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "model": json.loads(request.body)["model"]}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Tea."}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 307}},
        {"type": "message_stop"},
    ]
    stream = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    await exchange.reply(200, stream.encode(), "text/event-stream")


class Metered(Host):
    """A host whose agent's model requests are counted as the real one's are."""

    def __init__(self, gateway: ModelGateway, meter: Callable[[], Meter]) -> None:
        super().__init__(gateway.upstream.base_url)
        self.gateway = gateway
        self.meter = meter
        self.noted: list[ModelFailure | None] = []

    async def forward_model_request(self, frame: Frame, out: FrameWriter) -> None:
        await self.gateway.forward(frame, out, self.noted.append, self.meter())


@asynccontextmanager
async def metered(home: Path, base_url: str, meter: Callable[[], Meter]) -> AsyncIterator[tuple[Agent, Metered]]:
    """The real agent in a sandbox, its model behind the real gateway."""
    async with ModelGateway.open(Upstream(base_url)) as gateway:
        host = Metered(gateway, meter)
        agent = Agent(home, host)
        try:
            yield agent, host
        finally:
            await agent.close()
            await host.close()


@pytest.mark.bubblewrap
@pytest.mark.parametrize("model", [SONNET, OPUS, "claude-haiku-4-5-20251001"])
async def test_what_a_turn_costs_is_what_the_sdk_says_that_it_costs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    said: list[dict[str, Any]] = []
    receive = AgentWire._receive_result

    def listen(wire: AgentWire, frame: Frame) -> None:
        said.append(frame.json_body())
        receive(wire, frame)

    monkeypatch.setattr(AgentWire, "_receive_result", listen)
    async with (
        LoopbackServer(a_dear_model) as server,
        world.costs() as costs,
        metered(tmp_path / "home", server.base_url, lambda: costs.meter(WORK)) as (agent, _),
    ):
        run = await agent.start("What do you drink?", model=model)
        assert (await run.result()).text == "Tea."
        await until(lambda: not costs._recording)
    (counted,) = rows(world.path, "SELECT model, requests, micro_usd FROM usage")
    assert counted[:2] == (model, 1)
    assert said[0]["cost_usd"] > 0.01
    assert counted[2] == pytest.approx(said[0]["cost_usd"] * 10**6, abs=1)


@pytest.mark.bubblewrap
async def test_an_agent_whose_chat_has_reached_its_ceiling_asks_once_and_fails_with_the_reason(
    world: World, tmp_path: Path, model: ScriptedModel
) -> None:
    asked: list[int] = []

    def meter() -> Meter:
        asked.append(1)
        return costs.meter(FAMILY)

    async with (
        world.costs() as costs,
        metered(tmp_path / "home", model.base_url, meter) as (agent, host),
    ):
        await world.spend(costs, FAMILY, 2.5)
        run = await agent.start("hello")
        output = await run.result()
        assert output.error is not None
        why = costs.refusal(FAMILY)
        assert why is not None
        assert host.noted == [ModelFailure(402, why, held_back=True)]
        failure = Failure(output.error, host.noted[-1], reported=True, resumed=False, attempts=0)
        assert (failure.verdict, failure.plain) == (Verdict.GIVE_UP, why)
    assert len(asked) == 1, "it does not ask again and again"
    assert not model.requests
