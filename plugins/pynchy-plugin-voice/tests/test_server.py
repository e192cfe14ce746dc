"""The server as the agent has it: every answer over MCP, and a server that outlives whatever it is given."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mcp import Client

import pynchy
from pynchy.plugin import McpPlugin
from pynchy.testing import McpConformance
from pynchy_plugin_voice import VoicePlugin

#: Minutes of sound are heard, and on a machine that does much else that takes minutes.
pytestmark = pytest.mark.timeout(300)

StartServer = Callable[..., AbstractAsyncContextManager[Client]]
#: Its words, and the last of them, which Pocketsphinx hears well.
TEXT, WORDS = "please call me when you get home tonight", "home tonight"


def silence(path: Path, seconds: int) -> Path:
    """A WAV file in which nobody speaks."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        for _ in range(seconds):
            file.writeframes(b"\0" * 16000)
    return path


class TestVoice(McpConformance):
    """What every MCP server must do."""

    bad_call: ClassVar[Any] = ("transcribe_voice", {"path": "/nowhere"})
    good_call: ClassVar[Any] = ("transcribe_voice", {"path": "silence.wav"})

    def plugin(self) -> McpPlugin:
        """With the engine that is built in."""
        return VoicePlugin()

    def prepare(self, workspace: Path) -> None:
        """A file to hear."""
        silence(workspace / "group/silence.wav", 2)


def run(body: Coroutine[Any, Any, None]) -> None:
    """A test's asynchronous part."""
    asyncio.run(body)


async def transcribe(server: Client, path: str, **arguments: Any) -> tuple[bool, str]:
    """Whether it failed, and what the agent reads."""
    result = await server.call_tool("transcribe_voice", {"path": path, **arguments})
    (block,) = result.content
    text = block.text  # pyright: ignore[reportAttributeAccessIssue]
    return bool(result.is_error), text.removeprefix("Error executing tool transcribe_voice: ")


def workers_of(workspace: Path) -> list[int]:
    """The worker processes of this test's server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"pynchy_plugin_voice.worker" in command and str(workspace).encode() in command:
            found.append(int(path.parent.name))
    return found


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, at most a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def calling(call: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """A call that goes on meanwhile."""
    task = asyncio.ensure_future(call)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("place", "codec", "rate"),
    [
        ("attachments/1/voice note 🎉.ogg", "libopus", 48000),
        ("group/a.mp3", "libmp3lame", 44100),
        ("group/a.wav", "pcm_s16le", 16000),
        ("extra/music/a.m4a", "aac", 44100),
    ],
)
def test_a_voice_note_is_heard_in_each_format(
    place: str,
    codec: str,
    rate: int,
    say: Callable[..., bytes],
    encode: Callable[..., Path],
    workspace: Path,
    start_server: StartServer,
) -> None:
    async def body() -> None:
        path = encode(say(TEXT), workspace / place, codec, rate)
        async with start_server() as server:
            failed, text = await transcribe(server, str(path), language="en")
            assert not failed, text
            about, words = text.split("\n\n")
            assert WORDS in words
            assert about.startswith("2.")
            assert "of audio, language English, heard by Pocketsphinx, a small engine" in about

    run(body())


def test_the_model_is_told_how_good_the_engine_is(start_server: StartServer, random_whisper: Path) -> None:
    async def body() -> None:
        for model, words in ((None, "gets many words wrong"), (random_whisper, "The engine is Whisper")):
            async with start_server(model, PYNCHY_VOICE_MINUTES="7") as server:
                (tool,) = (await server.list_tools()).tools
                assert words in (tool.description or "")
                assert "up to 7 minutes" in (tool.description or "")

    run(body())


def test_whatever_it_is_given_is_answered_and_the_server_lives_on(
    say: Callable[..., bytes], workspace: Path, start_server: StartServer
) -> None:
    group = workspace / "group"
    (group / "letter.ogg").write_text("Dear Ada, " * 100)
    (group / "empty.ogg").touch()
    (group / "note.wav").write_bytes(say(TEXT))
    silence(group / "hour.wav", 3600)

    async def body() -> None:
        async with start_server() as server:
            for path, language, words in (
                ("letter.ogg", None, "is no audio that can be read"),
                ("empty.ogg", None, "is empty"),
                (".", None, "is a folder"),
                ("/etc/passwd", None, "is outside of"),
                ("hour.wav", None, "'hour.wav' is longer than 30:00 min"),
                ("note.wav", "de", "hears English only"),
            ):
                failed, text = await transcribe(server, path, language=language)
                assert failed
                assert words in text
                assert "\n" not in text
            (worker,) = workers_of(workspace)
            failed, text = await transcribe(server, "note.wav")
            assert WORDS in text
            assert workers_of(workspace) == [worker], "the engine was loaded again"

    run(body())


def test_where_nobody_speaks_it_says_so(workspace: Path, start_server: StartServer) -> None:
    silence(workspace / "group/silence.wav", 3)

    async def body() -> None:
        async with start_server() as server:
            failed, text = await transcribe(server, "silence.wav")
            assert not failed
            assert text.endswith("\n\nNo speech was recognised.")

    run(body())


def test_a_long_recording_has_times_and_tells_its_progress(
    say: Callable[..., bytes], encode: Callable[..., Path], workspace: Path, start_server: StartServer
) -> None:
    text = f"{TEXT}. " * 30
    encode(say(text), workspace / "group/long.ogg", "libopus")

    async def body() -> None:
        told: list[tuple[float, float | None]] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            told.append((progress, total))

        async with start_server() as server:
            result = await server.call_tool("transcribe_voice", {"path": "long.ogg"}, progress_callback=note)
            (block,) = result.content
            lines = block.text.split("\n\n")[1].splitlines()  # pyright: ignore[reportAttributeAccessIssue]
            assert len(lines) >= 2
            assert [line[0] for line in lines] == ["["] * len(lines)
            assert lines[0].startswith("[0:00] ")
            assert told == sorted(told)
            assert told[0][0] < told[-1][0] <= (told[-1][1] or 0) + 0.1

    run(body())


def test_a_cancelled_call_stops_the_work_and_the_next_one_is_heard(
    say: Callable[..., bytes], encode: Callable[..., Path], workspace: Path, start_server: StartServer
) -> None:
    (workspace / "group/note.wav").write_bytes(say(TEXT))
    encode(say(f"{TEXT}. " * 100), workspace / "group/long.ogg", "libopus")

    async def body() -> None:
        begun = asyncio.Event()

        async def note(progress: float, total: float | None, message: str | None) -> None:
            begun.set()

        async with start_server() as server:
            call = server.call_tool("transcribe_voice", {"path": "long.ogg"}, progress_callback=note)
            async with calling(call):
                async with asyncio.timeout(250):
                    await begun.wait()
                assert (await server.list_tools()).tools, "it answers meanwhile"
                assert workers_of(workspace)
            await until(lambda: not workers_of(workspace))
            assert WORDS in (await transcribe(server, "note.wav"))[1]

    run(body())


def test_calls_at_once_take_turns_with_one_worker(
    say: Callable[..., bytes], workspace: Path, start_server: StartServer
) -> None:
    (workspace / "group/note.wav").write_bytes(say(TEXT))
    silence(workspace / "group/silence.wav", 1)

    async def body() -> None:
        async with start_server() as server:
            names = ["note.wav", "silence.wav", "gone.wav"] * 3
            results = await asyncio.gather(*(transcribe(server, name) for name in names))
            assert len(workers_of(workspace)) == 1
            for name, (failed, text) in zip(names, results, strict=True):
                expected = {"note.wav": WORDS, "silence.wav": "No speech", "gone.wav": "there is no file"}[name]
                assert expected in text
                assert failed == (name == "gone.wav")

    run(body())


def test_a_worker_that_dies_fails_its_call_alone(
    say: Callable[..., bytes], encode: Callable[..., Path], workspace: Path, start_server: StartServer
) -> None:
    (workspace / "group/note.wav").write_bytes(say(TEXT))
    encode(say(f"{TEXT}. " * 100), workspace / "group/long.ogg", "libopus")

    async def body() -> None:
        async with start_server() as server:
            for number, words in ((signal.SIGSEGV, r"died (signal 11)"), (signal.SIGKILL, "because memory ran out")):
                async with calling(transcribe(server, "long.ogg")) as call:
                    await until(lambda: workers_of(workspace))
                    os.kill(workers_of(workspace)[0], number)
                    failed, text = await call
                    assert failed
                    assert words in text
            await transcribe(server, "note.wav")
            os.kill(workers_of(workspace)[0], signal.SIGKILL)  # while nothing is asked of it
            await until(lambda: not workers_of(workspace))
            assert WORDS in (await transcribe(server, "note.wav"))[1]

    run(body())


def test_no_worker_is_left_when_the_server_is_killed(
    say: Callable[..., bytes], encode: Callable[..., Path], workspace: Path, start_server: StartServer
) -> None:
    encode(say(f"{TEXT}. " * 100), workspace / "group/long.ogg", "libopus")

    async def body() -> None:
        async with start_server() as server, calling(transcribe(server, "long.ogg")):
            await until(lambda: workers_of(workspace))
            (worker,) = workers_of(workspace)
            parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(parent, signal.SIGKILL)
            await until(lambda: not workers_of(workspace))

    run(body())


def test_whisper_answers_with_the_hosts_model(
    say: Callable[..., bytes], random_whisper: Path, workspace: Path, start_server: StartServer
) -> None:
    (workspace / "group/note.wav").write_bytes(say(TEXT))

    async def body() -> None:
        async with start_server(random_whisper) as server:
            failed, text = await transcribe(server, "note.wav", language="de")
            assert not failed, text
            assert "language de, heard by Whisper" in text
            failed, text = await transcribe(server, "note.wav", language="tlh")
            assert failed
            assert "does not know the language 'tlh'" in text

    run(body())


def test_a_model_that_cannot_be_loaded_is_no_reason_to_fall_back(
    say: Callable[..., bytes], workspace: Path, start_server: StartServer, tmp_path: Path
) -> None:
    (workspace / "group/note.wav").write_bytes(say(TEXT))
    (tmp_path / "model").mkdir()

    async def body() -> None:
        async with start_server(tmp_path / "model") as server:
            for _ in range(2):
                failed, text = await transcribe(server, "note.wav")
                assert failed
                assert text.startswith("the Whisper model in the host's PYNCHY_VOICE_MODEL cannot be used")

    run(body())


def test_it_ends_at_once_where_its_packages_are_missing(workspace: Path) -> None:
    paths = [str(workspace / "plugins/voice"), str(Path(pynchy.__file__).parents[1])]
    code = (
        "import sys, importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name: None if name in ('av', 'pocketsphinx') else find(name); "
        "import pynchy_plugin_voice.mcp as m; m.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": os.pathsep.join(paths), "PATH": os.defpath},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == "not installed where agents run: av, pocketsphinx; `pynchy image build` builds them in\n"
