"""Recordings as a stream of samples: every format, and files that are damaged, odd or hostile."""

from __future__ import annotations

import io
import struct
import tracemalloc
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pynchy_plugin_voice.places import Refused

RATE = 16000


def tone(seconds: float, rate: int = RATE, channels: int = 1) -> bytes:
    """A WAV file with a sound in it that is neither silence nor speech."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        period = b"".join(struct.pack("<h", 8000 if number < 20 else -8000) * channels for number in range(40))
        out.writeframes((period * (int(seconds * rate) // 40 + 1))[: int(seconds * rate) * 2 * channels])
    return file.getvalue()


@contextmanager
def opened(path: Path, longest: float = 1800) -> Iterator[Any]:
    """The recording in a file."""
    from pynchy_plugin_voice.audio import Recording

    with path.open("rb") as file:
        recording = Recording(file, repr(path.name), longest)
        try:
            yield recording
        finally:
            recording.close()


def seconds_of(path: Path, longest: float = 1800) -> float:
    """How much sound comes out."""
    with opened(path, longest) as recording:
        return sum(map(len, recording.samples())) / 2 / RATE


def refusal(path: Path, longest: float = 1800) -> str:
    """Why nothing can be heard in it."""
    with pytest.raises(Refused) as raised:
        seconds_of(path, longest)
    return str(raised.value)


FORMATS = [
    ("a.ogg", "libopus", 48000, "mono"),
    ("a.opus", "libopus", 16000, "stereo"),
    ("a.mp3", "libmp3lame", 44100, "stereo"),
    ("a.mp3", "libmp3lame", 8000, "mono"),
    ("a.m4a", "aac", 44100, "mono"),
    ("a.mp4", "aac", 48000, "stereo"),
    ("a.aac", "aac", 48000, "mono"),
    ("a.wav", "pcm_s16le", 22050, "mono"),
    ("a.wav", "pcm_f32le", 96000, "5.1"),
    ("a.wav", "pcm_mulaw", 8000, "mono"),
    ("a.flac", "flac", 48000, "stereo"),
    ("a.webm", "libopus", 48000, "mono"),
    ("a.aiff", "pcm_s16be", 44100, "mono"),
    ("a.caf", "pcm_s16le", 44100, "mono"),
]


@pytest.mark.parametrize(("name", "codec", "rate", "layout"), FORMATS)
def test_every_usual_format_gives_the_sound_in_full(
    name: str, codec: str, rate: int, layout: str, encode: Callable[..., Path], tmp_path: Path
) -> None:
    path = encode(tone(3.3), tmp_path / name, codec, rate, layout)
    with opened(path) as recording:
        data = b"".join(recording.samples())
        assert len(data) / 2 / RATE == pytest.approx(3.3, abs=0.15)
        assert recording.seconds == pytest.approx(3.3, abs=0.15)
        assert recording.damage == ""
        assert max(struct.unpack(f"<{len(data) // 2}h", data)) > 500, "it is silent"


def test_the_name_does_not_matter(encode: Callable[..., Path], tmp_path: Path) -> None:
    path = encode(tone(1), tmp_path / "a.ogg", "libopus").rename(tmp_path / "concat:a.txt")
    assert seconds_of(path) == pytest.approx(1, abs=0.1)


def test_a_chained_file_that_changes_its_rate_is_heard_to_the_end(encode: Callable[..., Path], tmp_path: Path) -> None:
    one = encode(tone(2), tmp_path / "a.mp3", "libmp3lame", 44100, "stereo").read_bytes()
    other = encode(tone(2), tmp_path / "b.mp3", "libmp3lame", 22050, "mono").read_bytes()
    (tmp_path / "both.mp3").write_bytes(one + other)
    assert seconds_of(tmp_path / "both.mp3") == pytest.approx(4, abs=0.4)


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 100_000,
        b"This is a letter.\n" * 1000,
        b"%PDF-1.7\n" + bytes(range(256)) * 40,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"RIFF\xff\xff\xff\xffWAVE",
        b"OggS\0\x02" + b"\0" * 21 + b"\x01\x13OpusHead",
        b"O",
    ],
    ids=["zeros", "text", "pdf", "png", "playlist", "concat", "riff", "ogg", "byte"],
)
def test_what_is_no_audio_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.ogg").write_bytes(content)
    words = refusal(tmp_path / "a.ogg")
    assert words.startswith(
        ("'a.ogg' is no audio that can be read", "'a.ogg' is damaged or empty", "'a.ogg' has no audio")
    )


def test_a_film_without_sound_is_refused(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream: Any = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(10):
            out.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        out.mux(stream.encode(None))
    assert refusal(tmp_path / "a.mp4") == "'a.mp4' has no audio track: there is nothing to hear in it"


def test_of_a_file_that_was_cut_off_what_is_there_is_heard_and_the_rest_told(
    encode: Callable[..., Path], tmp_path: Path
) -> None:
    # Of a WAV file FFmpeg takes the length from what is there.
    for name, codec, told in (("a.flac", "flac", True), ("a.wav", "pcm_s16le", False), ("a.mp3", "libmp3lame", True)):
        path = encode(tone(10), tmp_path / name, codec)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with opened(path) as recording:
            assert sum(map(len, recording.samples())) / 2 / RATE == pytest.approx(5, abs=1)
            assert recording.damage.startswith(("it breaks off after", "parts of it are damaged")) == told
    path = encode(tone(10), tmp_path / "a.m4a", "aac")
    path.write_bytes(path.read_bytes()[:-2000])  # with its index, which is at the end
    assert refusal(path).startswith("'a.m4a' is no audio that can be read")


def test_a_hole_in_a_file_is_told(encode: Callable[..., Path], tmp_path: Path) -> None:
    path = encode(tone(10), tmp_path / "a.mp3", "libmp3lame")
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\xff\xfb" + b"\x55" * (len(data) // 2 - len(data) // 3 - 2)
    path.write_bytes(data)
    with opened(path) as recording:
        assert 4 < sum(map(len, recording.samples())) / 2 / RATE < 10
        assert recording.damage


def test_one_that_is_too_long_is_refused_before_anything_is_heard(encode: Callable[..., Path], tmp_path: Path) -> None:
    path = encode(tone(61), tmp_path / "a.wav", "pcm_s16le", 8000)
    assert refusal(path, longest=60) == (
        "'a.wav' is longer than 1:00 min, and no more can be heard at once: cut it into shorter pieces, "
        "or ask the user to set PYNCHY_VOICE_MINUTES"
    )
    assert seconds_of(path, longest=62) == pytest.approx(61, abs=0.1)


def test_a_header_that_lies_about_the_length_changes_nothing(tmp_path: Path) -> None:
    data = bytearray(tone(2, rate=8000))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # as a program writes it that does not know yet
    (tmp_path / "a.wav").write_bytes(data)
    assert seconds_of(tmp_path / "a.wav", longest=60) == pytest.approx(2, abs=0.1)


def test_hours_in_kilobytes_end_at_the_limit_whatever_their_header_says(
    encode: Callable[..., Path], tmp_path: Path
) -> None:
    second = encode(tone(1), tmp_path / "a.mp3", "libmp3lame", 16000).read_bytes()
    (tmp_path / "bomb.mp3").write_bytes(second * 4000)
    tracemalloc.start()
    try:
        words = refusal(tmp_path / "bomb.mp3", longest=600)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert words.startswith("'bomb.mp3' is longer than 10:00 min")
    assert peak < 20_000_000


@pytest.mark.parametrize("rate", [1, 7, 999, 768_001, 318_775_104, 0x7FFFFFFF])
def test_a_rate_that_cannot_be_is_damage(rate: int, tmp_path: Path) -> None:
    data = bytearray(tone(1, rate=8000))
    data[24:28] = struct.pack("<I", rate)
    (tmp_path / "odd.wav").write_bytes(data)
    assert refusal(tmp_path / "odd.wav").startswith(("'odd.wav' is damaged or empty", "'odd.wav' is no audio"))
