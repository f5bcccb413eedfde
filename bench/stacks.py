"""Whose a moment of the service's CPU is: stacks as faulthandler writes them, and the part of the way they belong to.

The innermost frame that belongs to a part decides; one of the standard library belongs to whoever called it. C code has
no frames, and belongs to what called it: nobody in Python where it is the event loop.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HTTP = "uvicorn and httptools: the connection, the head, the answer"
ROUTES = "middleware and routes"
MESSAGE = "the body and its message"
MAC = "the mac"
LISTENER = "the listener: what it decides, counts and answers"
INBOX = "the inbox: batches"
DRIVER = "the driver: SQLAlchemy and asyncpg"
LOOP = "the event loop: waiting, reading sockets, what the driver reads"
OTHER = "other"
PARTS = (HTTP, ROUTES, MESSAGE, MAC, LISTENER, INBOX, DRIVER, LOOP, OTHER)

# By file and function, by file, or by package: the nearest counts.
_OWNERS: Mapping[str, str] = {
    "uvicorn": HTTP,
    "httptools": HTTP,
    "app/server.py": HTTP,
    "starlette": ROUTES,
    "fastapi": ROUTES,
    "asgi_correlation_id": ROUTES,
    "app/api/asgi.py": ROUTES,
    "app/api/admission.py": ROUTES,
    "app/api/context.py": ROUTES,
    "app/api/asgi.py:_read": MESSAGE,
    "starlette/requests.py:body": MESSAGE,
    "starlette/requests.py:stream": MESSAGE,
    "app/kpay": MESSAGE,
    "app/raw.py": MESSAGE,
    "app/macs.py": MAC,
    "app/api/returl.py": LISTENER,
    "app/domain.py": LISTENER,
    "app/intake.py": LISTENER,
    "starlette/responses.py": LISTENER,
    "prometheus_client": LISTENER,
    "app/inbox.py": INBOX,
    "app/bell.py": INBOX,
    "app/database.py": DRIVER,
    "sqlalchemy": DRIVER,
    "asyncpg": DRIVER,
    # Beneath every stack: nobody in Python was running.
    "uvicorn/server.py:run": LOOP,
    "uvicorn/_compat.py": LOOP,
    "app": OTHER,
}
_ROOT = f"{Path(__file__).parent.parent}/"
_FRAME = re.compile(r'  File "(?:.*/site-packages/|' + re.escape(_ROOT) + r')(.*?)", line \S+ in (\S+)')
_BEGIN = "most recent call first"


def parts(text: str) -> Mapping[str, float]:
    """Return the share of each part in the stacks of `text`; an empty text has none."""
    counts = Counter(_owner(stack) for stack in _stacks(text))
    return {part: counts[part] / max(1, counts.total()) for part in PARTS}


def _stacks(text: str) -> Iterator[Sequence[tuple[str, str]]]:
    """Yield file and function of the frames of each stack, innermost first, without those of the standard library."""
    for stack in text.split(_BEGIN)[1:]:
        yield [(frame[1], frame[2]) for frame in _FRAME.finditer(stack)]


def _owner(stack: Sequence[tuple[str, str]]) -> str:
    for file, function in stack:
        names = [f"{file}:{function}", file, *(str(folder) for folder in Path(file).parents)]
        owner = next((_OWNERS[name] for name in names if name in _OWNERS), None)
        if owner is not None:
            return owner
    return OTHER if stack else LOOP
