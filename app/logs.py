"""Logs: one JSON object a line, with request and refid, and without secrets.

No call logs a secret; what follows is the second lock: macs in paths and whole phone numbers are masked in every
line, also in those of libraries and in tracebacks. Control characters are escaped by JSON or, for a console, by us.
"""

import logging
import re
import sys
from contextvars import ContextVar
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_MAC = re.compile(r"(/kpay/(?:returl|return)/[^/\s]{1,64}/)[^/\s\"'?]+")
_MSISDN = re.compile(r"(?<![0-9A-Za-z])(\+?(?:250|0)7\d)\d{4}(\d{3})(?!\d)")
# PostgreSQL's word about a row that it refuses: all of the row, the payer's data too.
_DETAIL = re.compile(r"^DETAIL: .*?(?=\n\[SQL|\n\(Background|\Z)", re.MULTILINE | re.DOTALL)
request_name: ContextVar[str | None] = ContextVar("request_name", default=None)
"""What the request is called that is being answered (app.api.identity)."""

_NOISY = ("httpx", "httpx2", "httpcore", "httpcore2", "uvicorn.access", "asyncio")


def masked(text: str) -> str:
    """Return `text` without listener macs, rows that PostgreSQL quotes and the middle of Rwandan phone numbers."""
    return _MSISDN.sub(r"\1****\2", _MAC.sub(r"\1***", _DETAIL.sub("DETAIL: ***", text)))


def _mask(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: _masked_value(value) for name, value in event.items()}


def _masked_value(value: Any) -> Any:  # noqa: ANN401 - whatever was logged
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {masked(str(name)): _masked_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_value(each) for each in value]
    return masked(value if isinstance(value, str) else repr(value))


def _request(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    request = request_name.get()
    return {**event, "request": request} if request else event


def _one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape what could forge a line or drive a terminal; JSON does this by itself. A traceback keeps its lines."""
    return {
        name: _printable(value, "\n" if name == "exception" else "") if isinstance(value, str) else value
        for name, value in event.items()
    }


def _printable(text: str, kept: str) -> str:
    return "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)


def configure(log_format: str, level: str) -> None:
    """Send structlog's and the standard library's logs to standard error in one form; replaces what was configured."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        _request,
    ]
    ends: list[Processor]
    if log_format == "json":
        ends = [structlog.processors.format_exc_info, _mask, structlog.processors.JSONRenderer()]
    else:
        renderer: Any = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        ends = [structlog.processors.format_exc_info, _mask, _one_line, renderer]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ends]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _NOISY:
        # They print whole URLs, and with them the listener's macs.
        logging.getLogger(name).setLevel(logging.WARNING)
