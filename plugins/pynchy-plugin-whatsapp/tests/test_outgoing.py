"""What goes out: texts, files, edits, and what WhatsApp does not take."""

import asyncio
from pathlib import Path

import pytest
from channel_bench import CHAT, Bench, connected, run, until
from whatsapp_protos import e2e
from whatsapp_side import ME, WhatsAppSide, jid, message_event

from pynchy.plugin import NotConnected


def test_an_answer_is_formatted_has_an_id_and_can_be_edited(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            message_id = await bench.channel.send_message(CHAT, "**Hello** @4915100000003 @120363000@g.us")
            assert bench.side.read() == ["*Hello* @4915100000003 @120363000@g.us"]
            await bench.channel.edit_message(CHAT, message_id, "# Better")
            assert bench.side.read() == ["*Better*"]
            assert [what for what, _ in bench.side.said] == ["send", "send"]  # neonize has asked nothing by itself

    run(test)


def test_what_it_has_sent_does_not_come_back_also_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            bench = Bench(side)
            await bench.channel.connect()
            message_id = await bench.channel.send_message(CHAT, "mine")
            await bench.channel.disconnect()
            bench = Bench(side)
            await bench.channel.connect()
            echo = message_event(e2e.Message(conversation="mine"), id=message_id, sender=jid(ME), from_me=True)
            side.deliver(echo)
            side.deliver(message_event(e2e.Message(conversation="typed"), sender=jid(ME), from_me=True))
            await until(lambda: bench.came, "what was typed has not come")
            assert [(one.content, one.is_from_me) for one in bench.came] == [("typed", True)]
            await bench.channel.disconnect()

    run(test)


@pytest.mark.parametrize(
    ("name", "field", "media_type"),
    [
        ("cat.png", "imageMessage", "image/png"),
        ("film.mp4", "videoMessage", "video/mp4"),
        ("voice.ogg", "audioMessage", "audio/ogg; codecs=opus"),
        ("song.mp3", "audioMessage", "audio/mpeg"),
        ("page.pdf", "documentMessage", "application/pdf"),
        ("moving.gif", "documentMessage", "image/gif"),
        ("no type", "documentMessage", "application/octet-stream"),
    ],
)
def test_a_file_is_sent_as_what_it_is(tmp_path: Path, name: str, field: str, media_type: str) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            (tmp_path / name).write_bytes(b"content of the file")
            await bench.channel.send_file(CHAT, tmp_path / name, "**See** this")
            _, message = bench.side.sent[0]
            media = getattr(message, field)
            assert [field for field, _ in message.ListFields()] == [e2e.Message.DESCRIPTOR.fields_by_name[field]]
            assert (media.mimetype, bench.side.files[media.directPath]) == (media_type, b"content of the file")
            captions = [getattr(media, "caption", "")] + [text.conversation for _, text in bench.side.sent[1:]]
            assert "*See* this" in captions
            if field == "documentMessage":
                assert media.fileName == name

    run(test)


def test_a_caption_that_is_too_long_follows_as_a_text(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            (tmp_path / "cat.png").write_bytes(b"cat")
            await bench.channel.send_file(CHAT, tmp_path / "cat.png", "x" * 1500)
            assert [one.conversation or one.imageMessage.caption for _, one in bench.side.sent] == ["", "x" * 1500]

    run(test)


def test_what_whatsapp_refuses_is_an_error_and_what_it_cannot_hear_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            bench.side.refuse["send"] = "server returned error 463"
            with pytest.raises(RuntimeError, match="463"):
                await bench.channel.send_message(CHAT, "no")
            bench.side.refuse["send"] = "failed to get device list: websocket disconnected before info query returned"
            with pytest.raises(NotConnected):
                await bench.channel.send_message(CHAT, "no")
            for address in ("telegram:1", "whatsapp:status@broadcast", "whatsapp:1@g.us\n"):
                with pytest.raises(ValueError, match="no address"):
                    await bench.channel.send_message(address, "no")

    run(test)


def test_a_call_that_hangs_holds_up_neither_others_nor_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with connected(tmp_path) as bench:
            bench.side.hang.add("send")
            calls = [asyncio.create_task(bench.channel.send_message(CHAT, "hangs")) for _ in range(4)]
            await bench.side.write("comes")
            await until(lambda: bench.texts == ["comes"], "nothing comes in")
            await bench.channel.set_typing(CHAT, True)
            await bench.channel.disconnect()
            assert all(isinstance(one, NotConnected) for one in await asyncio.gather(*calls, return_exceptions=True))

    run(test)


def test_only_an_account_that_is_pynchys_alone_shows_itself_online_and_marks_what_it_has_read(tmp_path: Path) -> None:
    async def test(dedicated: str, folder: Path, shown: list[str]) -> None:
        async with connected(folder, dedicated=dedicated) as bench:
            assert bench.channel.prefix_assistant_name is (dedicated == "no")
            await bench.channel.set_typing(CHAT, True)
            await bench.channel.set_typing(CHAT, False)
            await bench.side.write("read me")
            await until(lambda: len(bench.side.said) >= len(shown) and bench.came, "not everything was shown")
            assert [what for what, _ in bench.side.said] == shown

    asyncio.run(test("no", tmp_path / "own", ["typing", "typing"]))
    asyncio.run(test("yes", tmp_path / "alone", ["presence", "typing", "typing", "read"]))


def test_a_setting_that_is_neither_yes_nor_no_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with WhatsAppSide.open(tmp_path) as side:
            with pytest.raises(ValueError, match="PYNCHY_WHATSAPP_DEDICATED"):
                Bench(side, dedicated="perhaps")

    run(test)
