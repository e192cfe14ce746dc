"""Recognition with the real engines: how well Pocketsphinx hears, and how Whisper is handled."""

from __future__ import annotations

import io
import random
import struct
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from speech import SENTENCES, word_error_rate

from pynchy_plugin_voice.engines import BYTES_A_SECOND, RATE, Engine, Heard, Pocketsphinx, Whisper, blocks, short_code
from pynchy_plugin_voice.places import Refused

#: Minutes of sound are heard, and on a machine that does much else that takes minutes.
pytestmark = pytest.mark.timeout(300)


def samples_of(wav: bytes) -> Iterator[bytes]:
    """The file's sound as engines take it, in small pieces."""
    from pynchy_plugin_voice.audio import Recording

    return Recording(io.BytesIO(wav), "it", 1800).samples()


def heard(engine: Engine, samples: Iterator[bytes], language: str | None = None) -> str:
    """All that an engine hears."""
    return " ".join(one.text for part in engine.hear(samples, language) for one in part.utterances)


@pytest.fixture(scope="module")
def pocketsphinx() -> Pocketsphinx:
    """The engine that is built in, loaded once."""
    return Pocketsphinx()


# --- Pocketsphinx -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("voice", "most"), [("flite", 0.3), ("espeak-ng", 0.9)])
def test_it_hears_sentences(
    voice: str,
    most: float,
    say: Callable[..., bytes],
    record_property: Callable[[str, object], None],
    pocketsphinx: Pocketsphinx,
) -> None:
    rate = word_error_rate({text: heard(pocketsphinx, samples_of(say(text, voice))) for text in SENTENCES})
    record_property(f"word error rate of pocketsphinx with {voice}", f"{rate:.2f}")
    assert rate <= most


def test_what_it_hears_does_not_depend_on_what_it_heard_before(
    say: Callable[..., bytes], pocketsphinx: Pocketsphinx
) -> None:
    first = heard(pocketsphinx, samples_of(say(SENTENCES[0])))
    for text in SENTENCES[1:4]:
        heard(pocketsphinx, samples_of(say(text)))
    assert heard(pocketsphinx, samples_of(say(SENTENCES[0]))) == first


def test_a_pause_ends_an_utterance_and_its_beginning_is_known(
    say: Callable[..., bytes], pocketsphinx: Pocketsphinx
) -> None:
    def sound() -> Iterator[bytes]:
        yield from samples_of(say(SENTENCES[0]))
        yield b"\0" * (5 * BYTES_A_SECOND)
        yield from samples_of(say(SENTENCES[1]))

    length = sum(map(len, samples_of(say(SENTENCES[0])))) / BYTES_A_SECOND
    parts = list(pocketsphinx.hear(sound(), None))
    first, *_, last = [one for part in parts for one in part.utterances]
    assert first.start < 1
    assert last.start == pytest.approx(length + 5, abs=1)
    assert [part.until for part in parts] == sorted(part.until for part in parts)


def test_a_recording_that_breaks_off_does_not_keep_the_next_one_from_being_heard(
    say: Callable[..., bytes], pocketsphinx: Pocketsphinx
) -> None:
    def broken() -> Iterator[bytes]:
        yield b"".join(samples_of(say(SENTENCES[0])))[:BYTES_A_SECOND]
        raise Refused("it goes on for ever")

    with pytest.raises(Refused, match="for ever"):
        heard(pocketsphinx, broken())
    assert "home tonight" in heard(pocketsphinx, samples_of(say(SENTENCES[0])))


@pytest.mark.parametrize("kind", ["silence", "hiss", "an instant", "nothing"])
def test_where_nobody_speaks_it_hears_little_or_nothing(kind: str, pocketsphinx: Pocketsphinx) -> None:
    noise = random.Random(1)
    sounds = {
        "silence": b"\0" * (8 * BYTES_A_SECOND),
        "hiss": b"".join(struct.pack("<h", int(noise.gauss(0, 40))) for _ in range(8 * RATE)),
        "an instant": b"\1\0" * 10,
        "nothing": b"",
    }
    text = heard(pocketsphinx, iter([sounds[kind]]))
    assert text == "" if kind != "hiss" else len(text.split()) < 5


def test_a_sound_without_an_end_is_heard_piece_by_piece(pocketsphinx: Pocketsphinx) -> None:
    noise = random.Random(2)
    sound = b"".join(struct.pack("<h", int(noise.gauss(0, 6000))) for _ in range(24 * RATE))
    parts: list[Heard] = list(pocketsphinx.hear(iter([sound]), "en"))
    assert parts[-1].until == pytest.approx(24, abs=0.1)


def test_it_hears_english_alone(pocketsphinx: Pocketsphinx) -> None:
    for language in ("en", "EN", "en-US", "en_GB", "English", "", None):
        pocketsphinx.hear(iter([]), language)
    for language in ("de", "pt-BR", "Klingon" * 100, "e n"):
        with pytest.raises(Refused, match=r"hears English only, not .* PYNCHY_VOICE_MODEL"):
            pocketsphinx.hear(iter([]), language)


# --- Whisper ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whisper(random_whisper: Path) -> Whisper:
    """faster-whisper with a model that knows nothing."""
    return Whisper(random_whisper)


def test_whisper_goes_through_all_of_a_recording_in_the_language_that_is_given(
    whisper: Whisper, say: Callable[..., bytes]
) -> None:
    sound = b"".join(b"".join(samples_of(say(text))) for text in SENTENCES[:3])
    parts = list(whisper.hear(iter([sound]), "pt-BR"))
    assert whisper.language == "pt"
    assert [one.text for part in parts for one in part.utterances]
    assert parts[-1].until == pytest.approx(len(sound) / BYTES_A_SECOND, abs=0.01)
    list(whisper.hear(iter([sound]), None))
    assert whisper.language, "it finds one by itself"


def test_whisper_hears_nothing_in_silence_and_does_not_guess_its_language(whisper: Whisper) -> None:
    assert heard(whisper, iter([b"\0" * (40 * BYTES_A_SECOND)])) == ""
    assert whisper.language == ""
    assert heard(whisper, iter([])) == ""


def test_whisper_refuses_a_language_that_it_does_not_know(whisper: Whisper) -> None:
    with pytest.raises(Refused, match="does not know the language 'tlh': give a code such as en"):
        whisper.hear(iter([]), "tlh")


@pytest.mark.parametrize(
    "broken", ["model.bin", "tokenizer.json", "config.json", "preprocessor_config.json", "no tokenizer"]
)
def test_a_model_that_cannot_be_loaded_is_told_and_nothing_is_fetched(
    broken: str, random_whisper: Path, tmp_path: Path
) -> None:
    for path in random_whisper.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if broken == "no tokenizer":
        (tmp_path / "tokenizer.json").unlink()
    elif broken == "preprocessor_config.json":
        (tmp_path / broken).write_text('{"feature_size": 128}')
    else:
        (tmp_path / broken).write_bytes(b"{ nonsense")
    with pytest.raises(Refused, match="the Whisper model in the host's PYNCHY_VOICE_MODEL cannot be used"):
        Whisper(tmp_path)


def test_a_stream_is_cut_where_it_is_quiet_and_nothing_of_it_is_lost() -> None:
    loud, quiet = b"\x00\x20" * RATE, b"\x01\x00" * RATE
    sound = (loud * 7 + quiet) * 6
    pieces = [sound[at : at + 9999] for at in range(0, len(sound), 9999)]
    cut = list(blocks(iter(pieces), seconds=10, within=5))
    assert b"".join(cut) == sound
    assert max(map(len, cut)) <= 10 * BYTES_A_SECOND
    assert all(block[-100:] == quiet[-100:] for block in cut[:2])
    assert not any(len(block) % 2 for block in cut)


def test_a_language_is_known_by_its_code() -> None:
    assert [short_code(text) for text in ("de", " DE ", "de-AT", "zh_Hant")] == ["de", "de", "de", "zh"]


def test_wave_files_of_the_synthesiser_are_what_they_seem(say: Callable[..., bytes]) -> None:
    with wave.open(io.BytesIO(say(SENTENCES[0]))) as file:
        assert file.getnframes() / file.getframerate() > 1
