"""Logs to stderr: readable on a terminal, one JSON object per line elsewhere; nothing secret in either.

Libraries that log by the standard library end up in the same stream and the same form.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Literal, TextIO, TypeAlias, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from citadel_py.obs.redaction import is_harmless, redact

LogFormat: TypeAlias = Literal["auto", "json", "console"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]


def get_logger() -> FilteringBoundLogger:
    """A logger; it may be made at import, before `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger())


def configure(log_format: LogFormat = "auto", level: LogLevel = "info", *, stream: TextIO | None = None) -> None:
    """Set up logging of this process. `stream` is stderr unless given; `auto` asks whether it is a terminal."""
    stream = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
    renderer = _renderer(log_format, stream)
    structlog.configure(
        processors=[*_FIRST, *_LAST, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    _adopt_standard_logging(
        renderer, stream, max(threshold, logging.WARNING) if threshold > logging.DEBUG else threshold
    )


def redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The structlog processor: every name and value without secrets. Tracebacks are text by then."""
    return event if is_harmless(event) else cast("EventDict", redact(event))


def _lead_with_the_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    leading = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    return {**leading, **event}


def _to_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return _encode(event)


_encode = json.JSONEncoder().encode  # json.dumps with options makes one for each line; redaction leaves plain values

_FIRST: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)
_LAST: tuple[Processor, ...] = (
    # A plain traceback: richer ones show the values of local variables, which hold keys and tokens.
    structlog.processors.format_exc_info,
    _lead_with_the_event,
    redact_event,
)


def _renderer(log_format: LogFormat, stream: TextIO) -> Processor:
    if log_format == "json" or (log_format == "auto" and not stream.isatty()):
        return _to_json
    colors = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return structlog.dev.ConsoleRenderer(
        colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )


def _adopt_standard_logging(renderer: Processor, stream: TextIO, threshold: int) -> None:
    """Libraries log by the standard library: the same stream, form and redaction, from warnings up."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_FIRST, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_LAST, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(threshold)
