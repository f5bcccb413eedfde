"""The shapes of K-Pay's answers, and how a member of a request is read."""

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from app.simulator import wire
from app.simulator.codes import RETCODES
from app.simulator.ledger import Payment
from app.simulator.script import Reply

KIGALI: Final = timezone(timedelta(hours=2))

Order = Mapping[str, object]
"""A request's body."""


def text(value: object) -> str:
    """Take a text, or a whole number as its digits (a tid may come back as the number it was sent as); else nothing."""
    return str(value) if isinstance(value, str) or type(value) is int else ""


def has_texts(order: Order, names: tuple[str, ...]) -> bool:
    """Tell whether each of these members is a text and not empty."""
    return all(isinstance(value, str) and value for value in map(order.get, names))


def authkey() -> str:
    """Make what stands in each answer and is asked for nowhere."""
    return secrets.token_hex(13)


def response(write: wire.Writer, message: wire.Message, status: int = 200) -> Response:
    """Make the HTTP response of a message."""
    body, content_type = write(message)
    return Response(body, status, {"Content-Type": content_type})


def refusal(retcode: int, order: Order) -> Response:
    """Refuse a request without making a payment: the shape of the guide's refusal, with no tid."""
    return response(
        wire.as_json,
        {
            "reply": RETCODES[retcode],
            "url": "",
            "success": 0,
            "authkey": authkey(),
            "tid": "",
            "refid": text(order.get("refid")),
            "retcode": retcode,
        },
    )


def nobody(statusid: str) -> wire.Message:
    """Answer checkstatus about no payment: guide, "Transaction not found"."""
    return {"tid": "", "refid": "", "momtransactionid": "", "statusid": statusid, "statusdesc": RETCODES[int(statusid)]}


def taken_in(payment: Payment, reply: Reply, request: Request) -> wire.Message:
    """Answer `pay`: guide, "Payment request: Response". Its example has a url although it is no card's."""
    return {
        "reply": reply.reply,
        "url": "" if reply.retcode else f"{request.base_url}checkout/{payment.tid}",
        "success": 0 if reply.retcode else 1,
        "authkey": authkey(),
        "tid": payment.tid if reply.tid else "",
        "refid": f"{payment.refid}X" if reply.wrong_refid else payment.refid,
        "retcode": reply.retcode,
    }


def immediate(payment: Payment, reply: Reply) -> wire.Message:
    """Answer `pay` of an "automatically processed" payment: guide, "Payment request", the second response."""
    says = reply.says or payment.truth
    return {
        "tid": payment.tid,
        "refid": payment.refid,
        "momtransactionid": payment.receipt if says.receipt else "",
        "statusdesc": says.statusdesc,
        **({"comtime": f"{datetime.now(KIGALI):%Y-%m-%d %H:%M:%S}"} if reply.comtime else {}),
        "statusid": says.statusid,
        **({} if reply.retcode is None else {"retcode": reply.retcode}),
    }
