"""What commands print: answers on stdout, everything about them on stderr."""

from __future__ import annotations

import logging
import sys


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


def configure_logging(level: str) -> None:
    """Log lines of ours and of plugins to stderr, from this level on."""
    import structlog

    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=number, stream=sys.stderr, format="%(levelname)-7s %(name)s: %(message)s", force=True)
    logging.getLogger("httpx").setLevel(max(number, logging.WARNING))
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(number),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.set_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
