"""What the tests share: synthetic speech, files in any format, a Whisper model that knows nothing, a server."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

import pynchy
import pynchy_plugin_voice

#: Makes a WAV file of what a voice says: `flite` with recorded people's voices, `espeak-ng` with one of a machine.
Say = Callable[..., bytes]
#: Encodes a WAV file as (path, codec, samples a second).
Encode = Callable[..., Path]
#: Starts the server for a workspace.
StartServer = Callable[..., AbstractAsyncContextManager[Client]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was measured."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, and no setting of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("PYNCHY_") and name != "PYNCHY_REQUIRE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYNCHY_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def say(tmp_path_factory: pytest.TempPathFactory) -> Say:
    """Speech, made by a program that is installed; a skip where it is not, a failure where it is required."""
    folder, said = tmp_path_factory.mktemp("speech"), {}

    def synthesise(text: str, voice: str = "flite") -> bytes:
        if shutil.which(voice) is None:
            if voice in os.environ.get("PYNCHY_REQUIRE", "").split(","):
                pytest.fail(f"{voice} is required and missing")
            pytest.skip(f"there is no {voice}: `apt-get install {voice}`")
        if (voice, text) not in said:
            file = folder / "said.wav"
            options = {"flite": ["-voice", "rms", "-t", text, "-o"], "espeak-ng": ["-s", "150", text, "-w"]}[voice]
            subprocess.run([voice, *options, str(file)], check=True, capture_output=True, timeout=250)
            said[voice, text] = file.read_bytes()
        return said[voice, text]

    return synthesise


@pytest.fixture(scope="session")
def encode() -> Encode:
    """Write a recording in another format."""
    import av

    def write(wav: bytes, path: Path, codec: str, rate: int = 48000, layout: str = "mono") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(io.BytesIO(wav), mode="r") as source, av.open(str(path), mode="w") as target:
            stream: Any = target.add_stream(codec, rate=rate, layout=layout)
            for frame in source.decode(audio=0):
                frame.pts = None
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
        return path

    return write


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """The container's places, with the package where it is mounted."""
    place = tmp_path / "workspace"
    for name in ("group", "attachments/1", "extra/music", "plugins/voice", "data/voice"):
        (place / name).mkdir(parents=True)
    source = Path(pynchy_plugin_voice.__file__).parent
    (place / "plugins/voice/pynchy_plugin_voice").symlink_to(source)
    return place


@pytest.fixture
def start_server(workspace: Path) -> StartServer:
    """Start the server as the agent does; with a `model` as the host's folder."""

    @asynccontextmanager
    async def start(model: Path | None = None, **env: str) -> AsyncIterator[Client]:
        if model:
            (workspace / "plugins/voice/model").symlink_to(model)
        paths = [str(workspace / "plugins/voice"), str(Path(pynchy.__file__).parents[1])]
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-m", "pynchy_plugin_voice.mcp"],
            env={"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", **env},
            cwd=workspace / "group",
        )
        async with Client(parameters, read_timeout_seconds=280) as client:
            yield client

    return start


@pytest.fixture(scope="session")
def random_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Whisper model of random weights in CTranslate2's format: it loads and runs, and hears nonsense."""
    import numpy
    from ctranslate2.specs import WhisperSpec
    from faster_whisper.tokenizer import _LANGUAGE_CODES
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder, width, random = tmp_path_factory.mktemp("model"), 32, numpy.random.default_rng(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"\u0120word{number}" for number in range(50257 - len(letters)))]
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in _LANGUAGE_CODES)]
    special += [f"<|{name}|>" for name in ("translate", "transcribe", "startoflm", "startofprev", "nospeech")]
    special += ["<|notimestamps|>", *(f"<|{step * 0.02:.2f}|>" for step in range(1501))]
    tokenizer: Any = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    tokens[50256] = ""  # by which CTranslate2 tells models for several languages

    def weights(*shape: int) -> Any:
        return (random.standard_normal(shape) * 0.05).astype("float32")

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = numpy.ones(width, "float32"), numpy.zeros(width, "float32")

    def linear(layer: Any, before: int, after: int) -> None:
        layer.weight, layer.bias = weights(after, before), numpy.zeros(after, "float32")

    def attention(layer: Any, shapes: list[int]) -> None:
        norm(layer.layer_norm)
        for part, size in zip(layer.linear, shapes, strict=True):
            linear(part, width, size)

    def feed_forward(layer: Any) -> None:
        norm(layer.layer_norm)
        linear(layer.linear_0, width, 4 * width)
        linear(layer.linear_1, 4 * width, width)

    spec: Any = WhisperSpec(1, 2, 1, 2)
    for layer, size in ((spec.encoder.conv1, 80), (spec.encoder.conv2, width)):
        layer.weight, layer.bias = weights(width, size, 3), numpy.zeros(width, "float32")
    spec.encoder.position_encodings.encodings = weights(1500, width)
    spec.decoder.embeddings.weight = weights(len(tokens), width)
    spec.decoder.projection.weight = spec.decoder.embeddings.weight
    spec.decoder.position_encodings.encodings = weights(448, width)
    for part in (spec.encoder, spec.decoder):
        norm(part.layer_norm)
        for layer in part.layer:
            attention(layer.self_attention, [3 * width, width])
            feed_forward(layer.ffn)
    for layer in spec.decoder.layer:
        attention(layer.attention, [width, 2 * width, width])
    spec.config.suppress_ids = spec.config.suppress_ids_begin = spec.config.alignment_heads = []
    spec.config.lang_ids = [tokenizer.token_to_id(f"<|{code}|>") for code in _LANGUAGE_CODES]
    spec.register_vocabulary(tokens)
    spec.validate()
    spec.optimize("int8")
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
