"""Nothing is lost, and nothing overtakes: whatever is killed, refused, or slow."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from channel_bench import Bench, connected, run, until
from whatsapp_protos import e2e
from whatsapp_side import WhatsAppSide, message_event

from pynchy.plugin import NewMessage
from pynchy_plugin_whatsapp.session import in_use
from pynchy_plugin_whatsapp.spool import Spool


def test_what_was_handed_over_survives_that_the_worker_is_killed_at_any_moment(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.acknowledge = "handed"
            texts = [f"message {number}" for number in range(400)]
            stored: dict[str, str] = {}
            for round_ in range(5):
                bench = Bench(side)
                await bench.channel.connect()
                for text in texts[80 * round_ : 80 * round_ + 80]:
                    await side.write(text)
                await until(lambda bench=bench: len(bench.came) > 10, "nothing comes")
                assert bench.channel._link
                assert bench.channel._link._process
                os.kill(bench.channel._link._process.pid, signal.SIGKILL)
                await until(lambda bench=bench: not bench.channel.is_connected(), "it does not see its worker end")
                await bench.channel.disconnect()
                stored |= {message.id: message.content for message in bench.came}
            bench = Bench(side)
            await bench.channel.connect()
            await until(
                lambda: set((stored | {one.id: one.content for one in bench.came}).values()) == set(texts),
                "messages are lost",
            )
            stored |= {message.id: message.content for message in bench.came}
            assert sorted(stored.values()) == sorted(texts)  # each has one id
            await bench.channel.disconnect()

    run(test)


def test_what_still_comes_while_it_disconnects_overtakes_nothing(tmp_path: Path) -> None:
    async def store(message: NewMessage) -> None:
        if message.content == "0":
            await asyncio.Event().wait()

    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.pace = 0.05
            bench = Bench(side)
            begun = asyncio.Event()
            bench.storing = lambda message: begun.set() or store(message)
            await bench.channel.connect()
            for number in range(5):
                await side.write(str(number))
            async with asyncio.timeout(60):
                await begun.wait()
            await bench.channel.disconnect()
            assert bench.texts == []
            again = Bench(side)
            await again.channel.connect()
            await until(lambda: len(again.came) == 5, "some are lost")
            assert again.texts == [str(number) for number in range(5)]
            await again.channel.disconnect()

    run(test)


def test_a_stop_waits_for_what_the_library_has_acknowledged_and_not_handed_over(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.pace = 0.005
            bench = Bench(side)
            await bench.channel.connect()
            texts = {str(number) for number in range(40)}  # few, for a stop has three seconds
            for text in sorted(texts):
                await side.write(text)
            await until(lambda: len(side.waiting) < 20, "nothing is acknowledged")
            await bench.channel.disconnect()
            again = Bench(side)
            await again.channel.connect()
            await until(lambda: {*bench.texts, *again.texts} == texts, "some are lost")
            await again.channel.disconnect()

    run(test)


def test_a_file_that_ends_the_worker_each_time_is_left_out_and_its_message_comes(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            side.deadly.add("download")
            side.voice(b"OggS")
            bench = Bench(side)
            for _ in range(3):
                await bench.channel.connect()
                await until(lambda: not bench.channel.is_connected(), "the worker has not ended")
                await bench.channel.disconnect()
            await bench.channel.connect()
            await until(lambda: bench.texts == ["[voice-note.ogg: it could not be fetched]"], "the message is lost")
            await bench.channel.disconnect()

    run(test)


def test_the_worker_of_a_service_that_is_killed_in_the_middle_of_a_line_ends_and_frees_the_session(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            worker = subprocess.Popen(
                [sys.executable, *side.worker, str(side.data), "run"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            assert worker.stdin
            assert worker.stdout
            assert worker.stderr
            await asyncio.to_thread(worker.stdout.readline)
            worker.stdout.close()
            worker.stderr.close()
            worker.stdin.write(b'{"stored": 1')
            worker.stdin.close()
            await asyncio.to_thread(worker.wait, 60)
            assert not in_use(side.data)

    run(test)


def test_the_spool_is_empty_once_everything_is_stored(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            for number in range(20):
                await bench.side.write(str(number))
            await until(lambda: len(bench.came) == 20, "the messages have not come")
            await until(lambda: not bench.side.waiting, "some are not acknowledged")
            spool = Spool(bench.side.data)
            await until(lambda: not spool.waiting(), "the spool still holds messages")
            spool.close()

    run(test)


def test_an_event_that_has_ended_the_worker_three_times_is_set_aside(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            spool = Spool(side.data)
            seq = spool.add(message_event(e2e.Message(conversation="poison")).SerializeToString())
            spool.close()
            with sqlite3.connect(side.data / "spool.db") as counted:
                counted.execute("UPDATE received SET reading = 3 WHERE seq = ?", (seq,))
            counted.close()
            bench = Bench(side)
            await bench.channel.connect()
            await side.write("good")
            await until(lambda: bench.texts == ["good"], "the good message has not come")
            await bench.channel.disconnect()

    run(test)
