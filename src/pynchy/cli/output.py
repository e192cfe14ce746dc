"""What commands print: answers on stdout, everything about them on stderr, and log lines there and in the home."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: These log every request, and what they say of one at length may hold more than a log should.
_TALKATIVE = ("httpx", "httpcore")


def tell(text: str) -> None:
    """Say something about what is going on."""
    print(text, file=sys.stderr, flush=True)


def complain(text: str) -> int:
    """Say what is wrong; returns the exit code that goes with it."""
    print(f"pynchy: {text}", file=sys.stderr, flush=True)
    return 1


def complain_of_system(error: OSError) -> int:
    """Say what the system refused, and of which file."""
    return complain(f"{error.filename or 'the system'}: {error.strerror or error}.")


def visible(text: str) -> str:
    """A text in which nothing drives a terminal: what cannot be printed is written as Python would."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def configure_logging(level: str) -> None:
    """Log lines of ours and of plugins to stderr, from this level on."""
    import structlog

    number = _number(level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(number)
    handler.setFormatter(
        _formatter(
            [
                _all_visible,
                structlog.dev.ConsoleRenderer(
                    colors=sys.stderr.isatty(),
                    timestamp_key="time",
                    exception_formatter=structlog.dev.plain_traceback,
                ),
            ]
        )
    )
    logging.basicConfig(level=number, handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@contextmanager
def logging_into(home: Path, level: str) -> Iterator[None]:
    """Meanwhile log lines, from this level on, go into the home's log as well."""
    import structlog

    from pynchy.logs import LogFile

    root = logging.getLogger()
    before = root.level
    handler = LogFile(home, _number(level))
    handler.setFormatter(_formatter([_time_level_event_first, structlog.processors.JSONRenderer(default=str)]))
    root.addHandler(handler)
    root.setLevel(min(before, handler.level))
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _formatter(last: list[Any]) -> logging.Formatter:
    """What makes a line of an event, by structlog or by a plugin's logging; its errors become text first."""
    import structlog

    shared = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.dev.set_exc_info,
        structlog.processors.format_exc_info,
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name],
        processors=[*shared, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        use_get_message=True,
    )


def _time_level_event_first(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: event[key] for key in ("time", "level", "event")} | dict(event)


def _all_visible(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Agents and chats have their words in some of it. Of an error, lines stay lines."""
    return {
        key: "\n".join(map(visible, value.split("\n")))
        if key == "exception"
        else visible(value)
        if isinstance(value, str)
        else value
        for key, value in event.items()
    }
