"""Waiting for a payment to end: a call that waits holds a connection to us and none to the database.

The bell wakes it, wherever the payment changed (app.bell). What no bell told `app.watch` finds out, for all who wait
by one question.
"""

import asyncio
import time

from starlette.requests import Request
from starlette.types import Receive

from app import metrics
from app.api.context import Context
from app.bell import of_payment
from app.domain import FINAL
from app.models import Row

LONGEST_WAIT = 60


async def until_final(request: Request, parts: Context, row: Row, seconds: float) -> Row:
    """Return the payment once it is final, or as it is when `seconds` are up, we stop or the caller has gone."""
    until = time.monotonic() + seconds
    leaving = asyncio.create_task(gone(request.receive))
    try:
        with metrics.WAITS.track_inprogress(), parts.bell.listen(of_payment(row.refid)) as changed:
            leaving.add_done_callback(lambda _: changed.ring())
            while True:
                row = await parts.lookup.one(row.refid) or row
                left = until - time.monotonic()
                if row.status in FINAL or left <= 0 or leaving.done() or parts.stopping.is_set():
                    return row
                await changed.within(left)
                if leaving.done() or parts.stopping.is_set():
                    return row  # as it was read last: thousands may be told at once
    finally:
        leaving.cancel()


async def gone(receive: Receive) -> None:
    """Return when whoever sent a request has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
