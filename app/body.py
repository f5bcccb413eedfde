"""The payment as clients are told of it: over REST, in their feed and in notifications, always the same members."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from app.domain import RETRYABLE, FailureCode, Review, Status
from app.models import Row, mapping

Method = Literal["momo", "cc", "bank", "spenn", "smartcash"]


EXAMPLE: JsonDict = {
    "refid": "order-1042-1",
    "status": "succeeded",
    "amount": 4200,
    "currency": "RWF",
    "pmethod": "momo",
    "bankid": "63510",
    "msisdn": "250788312934",
    "email": "ikaneza@example.rw",
    "details": "order 1042",
    "cname": "KANEZA",
    "cnumber": "250788312934",
    "redirecturl": "https://shop.example.rw/done",
    "logourl": None,
    "orderid": "1042",
    "metadata": {"cashier": "7"},
    "tid": "A1011795525339",
    "checkout_url": None,
    "momtransactionid": "1795525339101",
    "payaccount": "250788312934",
    "statusid": "01",
    "statusdesc": "Successfully processed transaction.",
    "failure": None,
    "needs_review": False,
    "review_reasons": [],
    "created_at": "2026-01-31T08:00:00.125000Z",
    "updated_at": "2026-01-31T08:00:21.480000Z",
    "final_at": "2026-01-31T08:00:21.480000Z",
    "checked_at": "2026-01-31T08:00:21.480000Z",
}


class FailureBody(BaseModel):
    """Why a payment failed."""

    code: FailureCode = Field(description="What programs look at", examples=["insufficient_funds"])
    detail: str = Field(description="What K-Pay said, in its words", examples=["Insufficient funds"])
    retcode: str | None = Field(description="K-Pay's code for it; null where K-Pay gave none", examples=["02"])
    retryable: bool = Field(description="Whether the same order under a new refid may well succeed")


class Payment(BaseModel):
    """A payment and what is known of it."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    refid: str = Field(description="Your reference, or the one that was made here")
    status: Status = Field(
        description="`created`: recorded, K-Pay has not provably accepted it; `pending`: K-Pay has it, the payer has "
        "not finished; `succeeded`: paid, for good; `failed`: not paid; `expired`: no final word in time. The last "
        "two can still become `succeeded`"
    )
    amount: int = Field(description="In whole units of `currency`")
    currency: str = Field(description="`RWF` or `USD`")
    pmethod: Method = Field(description="The payment method")
    bankid: str = Field(description="The institution, by K-Pay's code")
    msisdn: str = Field(description="The payer's phone number, always as `2507...`")
    email: str = Field(description="The payer's e-mail address")
    details: str = Field(description="What is being paid for")
    cname: str = Field(description="The payer's name")
    cnumber: str = Field(description="The payer's number at the processor")
    redirecturl: str = Field(description="Where the payer's browser ends up")
    logourl: str | None = Field(description="The logo for the card checkout page")
    orderid: str | None = Field(description="Your order")
    metadata: dict[str, str] = Field(description="Yours, as you gave it")
    tid: str | None = Field(description="K-Pay's own reference")
    checkout_url: str | None = Field(
        description="K-Pay's page for the payer, where it named one: by card it is where they pay"
    )
    momtransactionid: str | None = Field(description="The reference at the payer's bank or operator")
    payaccount: str | None = Field(description="The account or number that paid")
    statusid: str | None = Field(description="K-Pay's last word on it, as a code")
    statusdesc: str | None = Field(description="The same in K-Pay's words")
    failure: FailureBody | None = Field(description="Why it failed; null where it has not")
    needs_review: bool = Field(description="Whether a person should look at it")
    review_reasons: list[Review] = Field(description="Why a person should look at it; empty where nobody need")
    created_at: datetime = Field(description="When it was recorded")
    updated_at: datetime = Field(description="When its timeline last grew")
    final_at: datetime | None = Field(description="When its status became final; null while it is open")
    checked_at: datetime | None = Field(description="When K-Pay last answered a question about it")

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return a row of `payments` as clients see it."""
        return cls._of(mapping(row))

    @classmethod
    def at(cls, row: Row, state: Mapping[str, Any] | None) -> Self:
        """Return a row of `payments` as it was when an event kept `state`; where none was kept, as it is."""
        return cls._of({**mapping(row), **(state or {})})

    @classmethod
    def _of(cls, columns: Mapping[str, Any]) -> Self:
        code = columns["failure_code"]
        failure = code and FailureBody(
            code=code,
            detail=columns["failure_detail"],
            retcode=columns["failure_retcode"],
            retryable=code in RETRYABLE,
        )
        recorded = {name: columns[name] for name in _RECORDED}
        return cls(**recorded, failure=failure, needs_review=bool(columns["review_reasons"]))


_RECORDED = [name for name in Payment.model_fields if name not in {"failure", "needs_review"}]


class Event(BaseModel):
    """Something that happened to a payment, as its client's feed and notifications tell it."""

    id: str = Field(
        description="Unique, and always the same for the same event; ends with the number by which the payment's "
        "events are ordered",
        examples=["evt_order-1042-1_4"],
    )
    type: str = Field(
        description="What happened: `payment.created`, `payment.pending`, `payment.succeeded`, `payment.failed`, "
        "`payment.expired` or `payment.needs_review`",
        examples=["payment.succeeded"],
    )
    refid: str = Field(description="The payment's refid", examples=["order-1042-1"])
    timestamp: datetime = Field(description="When it happened", examples=["2026-01-31T08:00:21.480000Z"])
    data: Payment = Field(description="The payment as it was then")


def event_id(refid: str, seq: int) -> str:
    """Return the id of a payment's event."""
    return f"evt_{refid}_{seq}"
