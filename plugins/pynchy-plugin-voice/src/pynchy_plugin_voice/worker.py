"""The process that decodes and recognises, apart from the server: it may be killed, or die of a hostile file.

    python -m pynchy_plugin_voice.worker WORKSPACE [MODEL]

It reads requests from stdin, a line of JSON each, `{"path", "language", "longest"}`, and writes to stdout lines with
`progress` and `total` in seconds, and in the end one with `result` or `refused`. The end of its stdin is its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from pynchy_plugin_voice.audio import Recording, clock, spoken
from pynchy_plugin_voice.engines import Engine, Pocketsphinx, Utterance, Whisper
from pynchy_plugin_voice.places import Refused, open_recording, shorten

_PROGRESS_EVERY = 1.0  # seconds
#: A longer recording's text has the time before each paragraph, of about so many seconds.
_WITHOUT_TIMES, _PARAGRAPH = 60.0, 30.0


class Worker:
    """One engine, loaded when it is first needed, and what it is asked."""

    def __init__(self, workspace: Path, model: Path | None, out: TextIO) -> None:
        self._workspace = workspace
        self._model = model
        self._out = out
        self._engine: Engine | None = None

    def answer(self, request: dict[str, Any]) -> None:
        """Transcribe one recording, saying how it goes."""
        try:
            self._say(result=self._transcribe(request["path"], request["language"], request["longest"]))
        except Refused as refused:
            self._say(refused=str(refused))

    def _transcribe(self, path: str, language: str | None, longest: float) -> str:
        with open_recording(path, self._workspace) as file:
            recording = Recording(file, shorten(path), longest)
            try:
                return self._hear(recording, language)
            finally:
                recording.close()

    def _hear(self, recording: Recording, language: str | None) -> str:
        if self._engine is None:
            self._engine = Whisper(self._model) if self._model else Pocketsphinx()
        engine, found, said_at = self._engine, [], time.monotonic()
        for heard in engine.hear(recording.samples(), language):
            found += heard.utterances
            if time.monotonic() - said_at >= _PROGRESS_EVERY:
                said_at = time.monotonic()
                self._say(progress=round(heard.until, 1), total=round(recording.seconds, 1))
        about = (
            f"{spoken(recording.seconds)} of audio, language {engine.language or 'unknown'}, heard by {engine.quality}."
        )
        if recording.damage:
            about += f" The file is not whole: {recording.damage}."
        return f"{about}\n\n{transcript(found, recording.seconds) or 'No speech was recognised.'}"

    def _say(self, **fields: Any) -> None:
        self._out.write(json.dumps(fields) + "\n")
        self._out.flush()


def transcript(utterances: list[Utterance], seconds: float) -> str:
    """The text, for a longer recording in paragraphs with the time at which each begins."""
    if seconds <= _WITHOUT_TIMES:
        return " ".join(one.text for one in utterances)
    paragraphs: list[tuple[float, list[str]]] = []
    for one in utterances:
        if not paragraphs or one.start - paragraphs[-1][0] >= _PARAGRAPH:
            paragraphs.append((one.start, []))
        paragraphs[-1][1].append(one.text)
    return "\n".join(f"[{clock(start)}] {' '.join(texts)}" for start, texts in paragraphs)


def main(workspace: str, model: str = "") -> None:
    """Answer one request after the other, until there are no more."""
    # Libraries may print; what they print goes where errors go.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Where memory runs out, this process is to go, not the agent.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)  # also in the middle of a recording, which nobody waits for any more

    threading.Thread(target=read, daemon=True).start()
    worker = Worker(Path(workspace), Path(model) if model else None, out)
    while True:
        worker.answer(requests.get())


if __name__ == "__main__":
    main(*sys.argv[1:])
