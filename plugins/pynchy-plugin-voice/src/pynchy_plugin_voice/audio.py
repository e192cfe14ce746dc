"""A recording as the stream of samples that the engines take: one channel of 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import av

from pynchy_plugin_voice.engines import RATE
from pynchy_plugin_voice.places import Refused

#: FFmpeg's formats that hold sound. Playlists are none of them, for they name other files.
_FORMATS = "aac,ac3,aiff,amr,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,wav,w64"
#: Samples a second. What is far beyond is damage, or meant to take gigabytes when it is converted.
_RATES = range(1000, 768_001)


class Recording:
    """A file with sound in it; Refused for one that cannot be heard.

    It is decoded once to see how long it is, for a header may say anything, and a few kilobytes hold days of silence.
    """

    def __init__(self, file: BinaryIO, shown: str, longest: float) -> None:
        self._file = file
        self._shown = shown
        self._lost = 0
        self._broke_off = False
        self._open()
        try:
            self.seconds = self._measure(longest)
        finally:
            self._container.close()
        #: What is wrong with the file; empty where nothing is.
        self.damage = self._damage()
        self._open()

    def close(self) -> None:
        """Let go of the decoder."""
        self._container.close()

    def samples(self) -> Iterator[bytes]:
        """Everything that can be decoded, in small pieces."""
        resampler, shape = None, None
        for frame in self._frames():
            frame.pts = None  # times that jump are no matter
            try:
                if resampler is None or shape != _shape(frame):
                    if resampler:
                        yield from _pieces(resampler.resample(None))
                    resampler, shape = av.AudioResampler(format="s16", layout="mono", rate=RATE), _shape(frame)
                resampled = resampler.resample(frame)
            except Exception:
                resampler = None  # what cannot be converted is left out
                continue
            yield from _pieces(resampled)
        if resampler:
            yield from _pieces(resampler.resample(None))

    def _open(self) -> None:
        self._file.seek(0)
        try:
            options = {"format_whitelist": _FORMATS}
            self._container = av.open(self._file, mode="r", options=options, metadata_errors="replace")
        except Exception:
            raise Refused(
                f"{self._shown} is no audio that can be read: it is another kind of file, or damaged"
            ) from None
        if not self._container.streams.audio:
            self._container.close()
            raise Refused(f"{self._shown} has no audio track: there is nothing to hear in it")
        self._stream = self._container.streams.audio[0]

    def _measure(self, longest: float) -> float:
        seconds = 0.0
        for frame in self._frames():
            seconds += frame.samples / frame.sample_rate
            if seconds > longest:
                raise Refused(
                    f"{self._shown} is longer than {spoken(longest)}, and no more can be heard at once: cut it into "
                    "shorter pieces, or ask the user to set PYNCHY_VOICE_MINUTES"
                )
        if not seconds:
            raise Refused(f"{self._shown} is damaged or empty: no sound could be decoded from it")
        return seconds

    def _damage(self) -> str:
        if self._lost:
            return "parts of it are damaged and were left out"
        stream = self._stream
        announced = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        if self._broke_off or self.seconds < 0.9 * announced - 1:
            return f"it breaks off after {spoken(self.seconds)}"
        return ""

    def _frames(self) -> Iterator[av.AudioFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except Exception:  # besides its own errors PyAV raises whatever its code makes of a hostile file
                self._broke_off = True
                return
            try:
                frames = packet.decode()
            except EOFError:
                return
            except Exception:
                self._lost += 1
                continue
            for frame in frames:
                if isinstance(frame, av.AudioFrame) and frame.sample_rate in _RATES:
                    yield frame
                else:
                    self._lost += 1


def spoken(seconds: float) -> str:
    """A length of time, as in `12.3 s` or `1:05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{clock(seconds)} {'h' if seconds >= 3600 else 'min'}"


def clock(seconds: float) -> str:
    """A point in time, as in `1:05` or `1:02:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _shape(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _pieces(frames: list[av.AudioFrame]) -> Iterator[bytes]:
    for frame in frames:
        if frame.samples:
            yield bytes(frame.planes[0])[: 2 * frame.samples]
