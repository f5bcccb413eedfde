"""The REST API's words: what a caller sends and what it gets, in K-Pay's field names."""

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from app import msisdn as numbers
from app.domain import RETRYABLE, FailureCode, Review, Source, Status
from app.kpay import codes
from app.models import Row, mapping
from app.orders import NewPayment
from app.reads import MOST
from app.settings import is_loopback

REFID_PATTERN = r"^[A-Za-z0-9_-]{1,40}$"
MAX_AMOUNT = 1_000_000_000_000
MAX_METADATA = 50

Method = Literal["momo", "cc", "bank", "spenn", "smartcash"]


# No-break spaces, soft hyphens and joined emoji are what offices and phones write; what turns a line round is not.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _printable(value: str) -> str:
    if any(unicodedata.category(char) in _UNPRINTABLE or char in _BIDI for char in value):
        raise ValueError("must not hold control characters or line breaks")
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold NUL")
    return value


def _email(value: str) -> str:
    if not re.fullmatch(r"[^@\s]{1,64}@[^@\s.]{1,63}(\.[^@\s.]{1,63}){1,8}", value):
        raise ValueError("must be an e-mail address, e.g. ikaneza@example.rw")
    return value


_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?|[0-9a-f:.]{2,45}")
_NOT_IN_A_URL = frozenset(' "<>\\^`{|}')


def _web_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        good = good and bool(_HOST.fullmatch(parts.hostname or "")) and parts.username is None and parts.port != 0
    except ValueError:
        good = False
    if not good or not value.isascii() or set(value) & _NOT_IN_A_URL:
        raise ValueError("must be an https URL")
    return value


Line = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True), AfterValidator(_printable)]
Email = Annotated[Line, Field(max_length=254), AfterValidator(_email)]
Url = Annotated[Line, Field(max_length=2_000), AfterValidator(_web_url)]
Msisdn = Annotated[Line, Field(max_length=20), AfterValidator(numbers.normalise)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=40), AfterValidator(_no_nul)]
MetadataValue = Annotated[str, StringConstraints(max_length=500), AfterValidator(_no_nul)]


class PaymentRequest(BaseModel):
    """A payment to start."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    refid: str | None = Field(
        default=None,
        pattern=REFID_PATTERN,
        description="Your reference, unique for ever; made here if left out. Give it, or an Idempotency-Key: with "
        "neither, a repetition is a second payment",
    )
    amount: int = Field(gt=0, le=MAX_AMOUNT, description="In whole units of `currency`", examples=[4200])
    currency: Literal["RWF", "USD"] = "RWF"
    pmethod: Method = Field(description="The payment method", examples=["momo"])
    msisdn: Msisdn = Field(description="The payer's phone number", examples=["250788312934"])
    email: Email = Field(description="The payer's e-mail address", examples=["ikaneza@example.rw"])
    details: Line = Field(max_length=200, description="What is being paid for", examples=["order 1042"])
    cname: Line = Field(max_length=100, description="The payer's name", examples=["KANEZA"])
    cnumber: Line | None = Field(
        max_length=100, default=None, description="The payer's number at the processor; left out, it is the msisdn"
    )
    redirecturl: Url = Field(description="Where the payer's browser ends up", examples=["https://shop.example.rw/done"])
    logourl: Url | None = Field(default=None, description="A logo for the card checkout page")
    bankid: str | None = Field(
        default=None,
        validate_default=True,
        description="The institution; implied by momo, spenn and cc, required for bank and smartcash. "
        + "; ".join(f"{code} {name}" for code, name in codes.BANKS.items()),
        examples=["63510"],
    )
    orderid: Line | None = Field(
        max_length=64, default=None, description="Your order; at most one open or paid payment each"
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default={}, max_length=MAX_METADATA, description="Yours: kept and given back, never sent to K-Pay"
    )

    @field_validator("bankid")
    @classmethod
    def _bankid(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            if value not in codes.BANKS:
                raise ValueError("must be one of K-Pay's bank codes, e.g. 63510 for MTN mobile money")
            return value
        pmethod = info.data.get("pmethod")
        if pmethod is None or (pmethod == "momo" and "msisdn" not in info.data):
            return None  # the fault is there, not here
        implied = codes.implied_bankid(pmethod, info.data.get("msisdn", ""))
        if implied is None:
            raise ValueError(f"is required for pmethod {pmethod}: the number does not imply an institution")
        return implied

    def faults(self, *, allow_usd: bool, allow_loopback: bool) -> list[dict[str, str]]:
        """Return what this deployment does not allow, as field faults."""
        found = []
        if self.currency == "USD" and not allow_usd:
            found.append({"field": "currency", "detail": "USD is not enabled here: must be RWF"})
        for name in ("redirecturl", "logourl"):
            url = getattr(self, name)
            if url is not None and urlsplit(url).scheme == "http" and not allow_loopback:
                found.append({"field": name, "detail": "must be an https URL"})
        return found

    def order(self) -> NewPayment:
        """Return the payment with nothing left out but, perhaps, its refid."""
        asked = self.model_dump()
        return NewPayment(**asked | {"cnumber": self.cnumber or self.msisdn})


class FailureBody(BaseModel):
    """Why a payment failed."""

    code: FailureCode
    detail: str = Field(description="What K-Pay said, in its words")
    retcode: str | None
    retryable: bool = Field(description="Whether the same order under a new refid may well succeed")


class Payment(BaseModel):
    """A payment and what is known of it."""

    refid: str
    status: Status
    amount: int
    currency: str
    pmethod: Method
    bankid: str
    msisdn: str
    email: str
    details: str
    cname: str
    cnumber: str
    redirecturl: str
    logourl: str | None
    orderid: str | None
    metadata: dict[str, str]
    tid: str | None = Field(description="K-Pay's own reference")
    checkout_url: str | None = Field(description="Where the payer goes to pay by card")
    momtransactionid: str | None = Field(description="The reference at the payer's bank or operator")
    payaccount: str | None = Field(description="The account or number that paid")
    statusid: str | None
    statusdesc: str | None
    failure: FailureBody | None
    needs_review: bool = Field(description="Whether a person should look at it")
    review_reasons: list[Review]
    created_at: datetime
    updated_at: datetime
    final_at: datetime | None
    checked_at: datetime | None = Field(description="When K-Pay last answered a question about it")

    @classmethod
    def of(cls, row: Row) -> "Payment":
        """Return a row of `payments` as callers see it."""
        columns = mapping(row)
        failure = row.failure_code and FailureBody(
            code=row.failure_code,
            detail=row.failure_detail,
            retcode=row.failure_retcode,
            retryable=row.failure_code in RETRYABLE,
        )
        known = {name: columns[name] for name in cls.model_fields if name in columns}
        return cls(**known, failure=failure, needs_review=bool(row.review_reasons))


def _sane(value: datetime) -> datetime:
    try:
        year = value.astimezone(UTC).year
    except OverflowError:
        year = 0
    if not 2000 <= year < 9000:  # noqa: PLR2004 - years that PostgreSQL and Python both count
        raise ValueError("must be a time between the years 2000 and 9000")
    return value


Moment = Annotated[AwareDatetime, AfterValidator(_sane)]


class PaymentQuery(BaseModel):
    """Which payments are wanted."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    status: Status | None = None
    pmethod: Method | None = None
    msisdn: Msisdn | None = None
    tid: str | None = Field(default=None, pattern=r"^[!-~]{1,64}$", description="K-Pay's own reference")
    needs_review: bool | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    limit: int = Field(default=50, ge=1, le=MOST)
    cursor: str | None = Field(default=None, max_length=200, description="`next_cursor` of the page before")


class PaymentPage(BaseModel):
    """Some payments, newest first."""

    items: list[Payment]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last")


class Event(BaseModel):
    """One entry of a payment's timeline."""

    seq: int = Field(description="From 1, without gaps")
    type: str = Field(description="`payment.*` for a change, `evidence` for what changed nothing")
    source: Source
    created_at: datetime
    status: Status = Field(description="The payment's status after it")
    tid: str | None
    momtransactionid: str | None
    payaccount: str | None
    statusid: str | None
    statusdesc: str | None
    retcode: str | None
    detail: str | None


class Timeline(BaseModel):
    """All that happened to a payment, oldest first."""

    items: list[Event]

    @classmethod
    def of(cls, rows: Any) -> "Timeline":  # noqa: ANN401 - rows of `events`
        """Return rows of `events` as callers see them."""
        return cls(items=[Event(**{name: getattr(row, name) for name in Event.model_fields}) for row in rows])
