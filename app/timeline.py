"""The timeline: writes a payment's events, each in the transaction that makes what it tells of."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Text, bindparam, cast, insert
from sqlalchemy.dialects.postgresql import JSONB

from app.database import Direct, Prepared
from app.models import Row, events

WORDS = ("tid", "momtransactionid", "payaccount", "statusid", "statusdesc", "retcode")
"""What an event repeats of what was said."""

_GIVEN = ("refid", "seq", "type", "source", "status", *WORDS, "detail")
_NOTE = Prepared(
    insert(events).values(
        {name: bindparam(name) for name in _GIVEN} | {"state": cast(bindparam("state", type_=Text), JSONB)}
    )
)
_UNSAID = dict.fromkeys((*WORDS, "detail"))
_STATE = (
    *("status", "tid", "checkout_url", "momtransactionid", "payaccount", "statusid", "statusdesc"),
    *("failure_code", "failure_detail", "failure_retcode", "review_reasons"),
    *("updated_at", "final_at", "checked_at"),
)


async def note(by: Direct, entry: Mapping[str, Any], after: Row | None) -> None:
    """Write one event, with the payment as it is `after` it; None for one that changed nothing."""
    as_it_is = None if after is None else json.dumps(state(after))
    await _NOTE.fetch(by, **{**_UNSAID, **entry}, state=as_it_is)


def state(row: Row) -> dict[str, Any]:
    """Return what can change of a payment, as JSON holds it: an event keeps it, whatever comes later."""
    values = {name: getattr(row, name) for name in _STATE}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
