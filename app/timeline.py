"""The timeline: writes a payment's events, each in the transaction that makes what it tells of."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Select, Text, bindparam, cast, column, func, insert, select, true
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.dml import ReturningUpdate

from app.database import Direct, Prepared
from app.domain import EVIDENCE
from app.models import Row, events, mapping

WORDS = ("tid", "momtransactionid", "payaccount", "statusid", "statusdesc", "retcode")
"""What an event repeats of what was said."""

_GIVEN = ("refid", "seq", "type", "source", "status", *WORDS, "detail")
_NOTE = Prepared(
    insert(events).values(
        {name: bindparam(name) for name in _GIVEN} | {"state": cast(bindparam("state", type_=Text), JSONB)}
    )
)
_UNSAID = dict.fromkeys((*WORDS, "detail"))
_ENTRIES = (
    func.jsonb_to_recordset(cast(bindparam("entries", type_=Text), JSONB))
    .table_valued(*(column(name, events.c[name].type) for name in (*_GIVEN[1:], "state")))
    .render_derived("entry", with_types=True)
)
_STATE = (
    *("status", "tid", "checkout_url", "momtransactionid", "payaccount", "statusid", "statusdesc"),
    *("failure_code", "failure_detail", "failure_retcode", "review_reasons"),
    *("updated_at", "final_at", "checked_at"),
)


async def note(by: Direct, entry: Mapping[str, Any], after: Row) -> None:
    """Write one event, with the payment as it is `after` it."""
    await _NOTE.fetch(by, **{**_UNSAID, **entry}, state=json.dumps(state(mapping(after))))


def noting(change: ReturningUpdate[Any]) -> Select[Any]:
    """Return the change of a payment and the writing of its events as one statement: `entries` are from `written`."""
    changed = change.cte("changed")
    given = select(changed.c.refid, *_ENTRIES.c).select_from(changed.join(_ENTRIES, true()))
    return select(changed).add_cte(insert(events).from_select([*given.selected_columns.keys()], given).cte("noted"))


def written(entries: Iterable[Mapping[str, Any]], after: Mapping[str, Any]) -> str:
    """Return entries for `noting`, each with the payment as it is `after` it, unless it changed nothing."""
    as_it_is = state(after)
    return json.dumps([{**each, "state": None if each["type"] == EVIDENCE else as_it_is} for each in entries])


def state(payment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can change of a payment, as JSON holds it: an event keeps it, whatever comes later."""
    values = {name: payment[name] for name in _STATE}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
