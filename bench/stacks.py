"""Whose a moment of the service's CPU is: the part of the way that a Python frame belongs to.

The innermost frame that belongs to a part decides; one of the standard library belongs to whoever called it. C code has
no frames and belongs to what called it: nobody in Python where it is the event loop.
"""

import opcode
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType

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
    "app/api/identity.py": ROUTES,
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
_NAME = re.compile(rf"(?:.*/site-packages/|{re.escape(_ROOT)})(.*)")
_RESUME = opcode.opmap["RESUME"]


def part_of(frame: FrameType | None) -> str:
    """Return the part that the CPU just used belongs to, seen from a signal's handler, which is given `frame`.

    Python calls a handler when C code has come back to it. Where that was to call, or to go on with, a function that
    has done nothing yet, the time was its caller's.
    """
    if frame is not None and _begins(frame.f_code, frame.f_lasti):
        frame = frame.f_back
    while frame is not None:
        if (part := _owner(frame.f_code.co_filename, frame.f_code.co_name)) is not None:
            return part
        frame = frame.f_back
    return LOOP


@lru_cache(None)
def _begins(code: CodeType, instruction: int) -> bool:
    return code.co_code[instruction] == _RESUME


@lru_cache(None)
def _owner(path: str, function: str) -> str | None:
    # Not by the code: two of the same words are equal, in whichever files they are.
    found = _NAME.fullmatch(path)
    if found is None:
        return None
    file = found[1]
    names = [f"{file}:{function}", file, *(str(folder) for folder in Path(file).parents)]
    return next((_OWNERS[name] for name in names if name in _OWNERS), None)
