"""Speech recognition: Whisper where the host has given a model, and Pocketsphinx, which brings its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pynchy_plugin_voice.places import Refused

RATE = 16000  # samples a second
BYTES_A_SECOND = 2 * RATE

#: An utterance that does not end is ended here, in seconds: decoding takes time and memory by its length.
_LONGEST_UTTERANCE = 20
#: How much Whisper is given at once, in seconds, and how far back a pause is looked for.
_BLOCK, _PAUSE_WITHIN = 120, 15

OFFLINE_QUALITY = (
    "Pocketsphinx, a small engine for English only that gets many words wrong, more of them with noise, an accent "
    "or an unusual subject; do not rely on single words, names or numbers"
)
WHISPER_QUALITY = "Whisper, which is good, but can mishear names and numbers, and make up words where nobody speaks"


@dataclass(frozen=True, slots=True)
class Utterance:
    """What was said from `start` on, in seconds."""

    start: float
    text: str


@dataclass(frozen=True, slots=True)
class Heard:
    """How far the engine has come, in seconds, and what was said up to there."""

    until: float
    utterances: tuple[Utterance, ...] = ()


class Engine(Protocol):
    """Speech to text. `language` is what the last recording was heard as."""

    quality: str
    language: str

    def hear(self, samples: Iterable[bytes], language: str | None) -> Iterator[Heard]:
        """Recognise a stream; Refused for a language that it does not know."""
        ...


def short_code(language: str) -> str:
    """The language's code without a region, lower-case: `en` of `en-US`."""
    return re.split("[-_]", language.strip().lower(), maxsplit=1)[0]


class Pocketsphinx:
    """The engine that is built in."""

    quality = OFFLINE_QUALITY
    language = "English"

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder: Any = Decoder(samprate=RATE, loglevel="FATAL")

    def hear(self, samples: Iterable[bytes], language: str | None) -> Iterator[Heard]:
        """Utterance by utterance, as pauses divide them."""
        if language and short_code(language) not in ("en", "english"):
            raise Refused(
                f"the engine that is built in hears English only, not {language[:40]!r}: for other languages the user "
                "sets PYNCHY_VOICE_MODEL to a Whisper model's folder, as the plugin's README says"
            )
        return self._hear(samples)

    def _hear(self, samples: Iterable[bytes]) -> Iterator[Heard]:
        from pocketsphinx import Endpointer

        self._decoder.reinit_feat()  # or one recording's level would be carried over to the next
        endpointer: Any = Endpointer(sample_rate=RATE)
        size, pending, position = endpointer.frame_bytes, bytearray(), 0
        speech, begun, first = bytearray(), 0.0, True
        for piece in samples:
            pending += piece
            while len(pending) >= size:
                frame, position = bytes(pending[:size]), position + size
                del pending[:size]
                if found := endpointer.process(frame):
                    begun = begun if speech else position / BYTES_A_SECOND - len(found) / BYTES_A_SECOND
                    speech += found
                if speech and (not endpointer.in_speech or len(speech) > _LONGEST_UTTERANCE * BYTES_A_SECOND):
                    yield Heard(position / BYTES_A_SECOND, self._recognise(speech, begun, first))
                    speech, first = bytearray(), False
                elif not speech and position % BYTES_A_SECOND < size:
                    yield Heard(position / BYTES_A_SECOND)
        if endpointer.in_speech:
            speech += endpointer.end_stream(bytes(pending) or b"\0\0") or b""  # it takes no empty frame
        end = (position + len(pending)) / BYTES_A_SECOND
        yield Heard(end, self._recognise(speech, begun, first) if speech else ())

    def _recognise(self, speech: bytearray, begun: float, first: bool) -> tuple[Utterance, ...]:
        # The decoder gets used to a voice while it listens, so the first words are heard twice.
        for _ in range(2 if first else 1):
            self._decoder.start_utt()
            self._decoder.process_raw(bytes(speech))
            self._decoder.end_utt()
        found = self._decoder.hyp()
        text = found.hypstr.strip() if found else ""
        return (Utterance(max(0.0, begun), text),) if text else ()


class Whisper:
    """faster-whisper with the model in a folder, on the processor, with weights of 8 bits."""

    quality = WHISPER_QUALITY

    def __init__(self, folder: Path) -> None:
        # Should a part of the model be missing, no library is to look for it on the internet.
        os.environ["HF_HUB_OFFLINE"] = "1"
        from faster_whisper import WhisperModel

        self.language = ""
        try:
            self._model: Any = WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=_processors(), local_files_only=True
            )
        except Exception as error:
            raise Refused(f"{_BROKEN_MODEL}: {_words(error)}") from error
        wanted, made = self._model.model.n_mels, self._model.feature_extractor.mel_filters.shape[0]
        if wanted != made:
            raise Refused(
                f"{_BROKEN_MODEL}: it takes {wanted} mel bands where its preprocessor_config.json, if any, says {made}"
            )

    def hear(self, samples: Iterable[bytes], language: str | None) -> Iterator[Heard]:
        """Block by block, and segment by segment in each; what is not said of the language is found in the first."""
        code = self._code(language) if language and language.strip() else None
        return self._hear(samples, code)

    def _hear(self, samples: Iterable[bytes], code: str | None) -> Iterator[Heard]:
        import numpy

        begun = 0.0
        for block in blocks(samples):
            audio = numpy.frombuffer(block, numpy.int16).astype(numpy.float32) / 32768
            segments, info = self._model.transcribe(audio, language=code, vad_filter=True)
            for segment in segments:
                said = Utterance(begun + segment.start, segment.text.strip())
                code = code or info.language
                yield Heard(begun + segment.end, (said,) if said.text else ())
            begun += len(audio) / RATE
            yield Heard(begun)
        self.language = code or ""

    def _code(self, language: str) -> str:
        known = self._model.supported_languages
        code = short_code(language)
        if code not in known:
            some = ", ".join(known) if len(known) < 20 else "a code such as en, de or pt"
            raise Refused(f"Whisper's model does not know the language {language[:40]!r}: give {some}, or leave it out")
        return code


_BROKEN_MODEL = "the Whisper model in the host's PYNCHY_VOICE_MODEL cannot be used, which the user should be told"


def blocks(samples: Iterable[bytes], seconds: int = _BLOCK, within: int = _PAUSE_WITHIN) -> Iterator[bytes]:
    """The stream in pieces of about that length, each but the last cut where its end is quietest."""
    import numpy

    step = RATE // 5
    pending = bytearray()
    for piece in samples:
        pending += piece
        while len(pending) >= seconds * BYTES_A_SECOND:
            tail = numpy.frombuffer(
                bytes(pending[(seconds - within) * BYTES_A_SECOND : seconds * BYTES_A_SECOND]), "i2"
            )
            loudness = (tail.reshape(-1, step).astype(numpy.float32) ** 2).mean(axis=1)
            cut = (seconds - within) * BYTES_A_SECOND + 2 * step * int(loudness.argmin()) + step // 2 * 2
            yield bytes(pending[:cut])
            del pending[:cut]
    if pending:
        yield bytes(pending)


def _processors() -> int:
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
