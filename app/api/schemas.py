"""The REST API's words: what a caller sends and what it gets, in K-Pay's field names."""

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic.config import JsonDict

from app import feed
from app import msisdn as numbers
from app.body import Event, Method, Payment, event_id
from app.deliveries import DeliveryState, state_of
from app.domain import Source, Status
from app.kpay import codes
from app.kpay.request import SavedCard
from app.models import Row
from app.orders import NewPayment
from app.reads import MOST
from app.settings import is_loopback

REFID_PATTERN = r"^[A-Za-z0-9_-]{1,40}$"
MAX_AMOUNT = 1_000_000_000_000
MAX_METADATA = 50

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
        raise ValueError("must be an https URL without a user name")
    return value


Line = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True), AfterValidator(_printable)]
Email = Annotated[Line, Field(max_length=254), AfterValidator(_email)]
Url = Annotated[Line, Field(max_length=2_000), AfterValidator(_web_url)]
Msisdn = Annotated[Line, Field(max_length=20), AfterValidator(numbers.normalise)]


def _digits(value: object) -> object:
    """Return the guide's "Integer" as the text that its example has; a text keeps its zeros in front."""
    return str(value) if type(value) is int else value


def _cvv(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[0-9]{3,4}", value.get_secret_value()):
        raise ValueError("must be the three or four digits of the card validation code, as text")
    return value


def _token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{1,200}", value.get_secret_value()):
        raise ValueError("must be a token from GET /v1/tokens")
    return value


_CHANCE = 16
"""Characters of a token that no other text has by chance."""


def _stands_in(members: Mapping[str, Any], token: str) -> bool:
    """Whether a token of some length is part of another member."""
    return len(token) >= _CHANCE and any(token in str(said) for said in members.values())


Cvv = Annotated[SecretStr, BeforeValidator(_digits), AfterValidator(_cvv)]
Token = Annotated[SecretStr, AfterValidator(_token)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=40), AfterValidator(_no_nul)]
MetadataValue = Annotated[str, StringConstraints(max_length=500), AfterValidator(_no_nul)]


_EXAMPLE: JsonDict = {
    "refid": "order-1042-1",
    "orderid": "1042",
    "amount": 4200,
    "pmethod": "momo",
    "msisdn": "250788312934",
    "email": "ikaneza@example.rw",
    "details": "order 1042",
    "cname": "KANEZA",
    "redirecturl": "https://shop.example.rw/done",
    "metadata": {"cashier": "7"},
}


class PaymentRequest(BaseModel):
    """A payment to start."""

    model_config = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True, json_schema_extra={"examples": [_EXAMPLE]}
    )

    refid: str | None = Field(
        default=None,
        pattern=REFID_PATTERN,
        description="Your reference, unique for ever; made here if left out. Give it, or an Idempotency-Key: with "
        "neither, a repetition is a second payment",
    )
    amount: int = Field(gt=0, le=MAX_AMOUNT, description="In whole units of `currency`", examples=[4200])
    currency: Literal["RWF", "USD"] = Field(default="RWF", description="`USD` only where this service allows it")
    pmethod: Method = Field(description="The payment method", examples=["momo"])
    msisdn: Msisdn = Field(description="The payer's phone number", examples=["250788312934"])
    email: Email = Field(description="The payer's e-mail address", examples=["ikaneza@example.rw"])
    details: Line = Field(max_length=200, description="What is being paid for", examples=["order 1042"])
    cname: Line = Field(max_length=100, description="The payer's name", examples=["KANEZA"])
    cnumber: Line | None = Field(
        max_length=100, default=None, description="The payer's number at the processor; left out, it is the msisdn"
    )
    redirecturl: Url = Field(
        description="Where the payer's browser ends up: https, at one of your hosts where the operator has set any",
        examples=["https://shop.example.rw/done"],
    )
    logourl: Url | None = Field(default=None, description="A logo for the card checkout page")
    bankid: str | None = Field(
        default=None,
        validate_default=True,
        description="The institution; implied by momo, spenn and cc, required for bank and smartcash. "
        + "; ".join(f"{code} {name}" for code, name in codes.BANKS.items()),
        examples=["63510"],
    )
    orderid: Line | None = Field(
        max_length=64,
        default=None,
        description="Your order; at most one open or paid payment each, so that a payer who taps twice pays once",
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default={}, max_length=MAX_METADATA, description="Yours: kept and given back, never sent to K-Pay"
    )
    token: Token | None = Field(
        default=None,
        description="A saved card's, from `GET /v1/tokens`: the card is charged at once. Goes with `cvv` and with "
        "`pmethod` `cc`; passed on to K-Pay and kept nowhere",
    )
    cvv: Cvv | None = Field(
        default=None,
        validate_default=True,
        description="The saved card's validation code, three or four digits as text; passed on to K-Pay once and kept "
        "nowhere. All other members are kept: put it into none of them",
    )

    @field_validator("token")
    @classmethod
    def _by_card_only(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and info.data.get("pmethod", "cc") != "cc":
            raise ValueError("is for pmethod cc only")
        if value is not None and _stands_in(info.data, value.get_secret_value()):
            raise ValueError("stands in another member too: all others are kept, so give it here alone")
        return value

    @field_validator("cvv")
    @classmethod
    def _with_token(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "token" in info.data and (value is None) is not (info.data["token"] is None):
            raise ValueError("is required with a token" if value is None else "is for a saved card: give its token too")
        return value

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

    def faults(
        self, *, allow_usd: bool, allow_loopback: bool, redirect_hosts: frozenset[str] = frozenset()
    ) -> list[dict[str, str]]:
        """Return what this deployment, or this client, is not allowed, as field faults."""
        found = []
        if self.currency == "USD" and not allow_usd:
            found.append({"field": "currency", "detail": "USD is not enabled here: must be RWF"})
        for name in ("redirecturl", "logourl"):
            url = getattr(self, name)
            if url is not None and urlsplit(url).scheme == "http" and not allow_loopback:
                found.append({"field": name, "detail": "must be an https URL without a user name"})
        if redirect_hosts and urlsplit(self.redirecturl).hostname not in redirect_hosts:
            allowed = ", ".join(sorted(redirect_hosts))
            found.append(
                {"field": "redirecturl", "detail": f"its host must be one that the operator has set: {allowed}"}
            )
        return found

    def order(self) -> NewPayment:
        """Return the payment with nothing left out but, perhaps, its refid."""
        asked = self.model_dump(exclude={"token", "cvv"})
        card = SavedCard(self.token, self.cvv) if self.token and self.cvv else None
        return NewPayment(**asked | {"cnumber": self.cnumber or self.msisdn}, card=card)


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

    status: Status | None = Field(default=None, description="Those in this status only")
    pmethod: Method | None = Field(default=None, description="Those paid by this method only")
    msisdn: Msisdn | None = Field(default=None, description="Those of this phone number only, however it is written")
    tid: str | None = Field(default=None, pattern=r"^[!-~]{1,64}$", description="K-Pay's own reference")
    needs_review: bool | None = Field(
        default=None, description="Those that a person should look at (true), or nobody need look at (false)"
    )
    created_after: Moment | None = Field(default=None, description="Those recorded after this time only")
    created_before: Moment | None = Field(default=None, description="Those recorded before this time only")
    limit: int = Field(default=50, ge=1, le=MOST, description="How many at most")
    cursor: str | None = Field(default=None, max_length=200, description="`next_cursor` of the page before")


class PaymentPage(BaseModel):
    """Some payments, newest first."""

    items: list[Payment] = Field(description="The payments")
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last")


class TimelineEntry(BaseModel):
    """One entry of a payment's timeline."""

    seq: int = Field(description="From 1, without gaps", examples=[4])
    type: str = Field(
        description="`payment.*` for a change, `evidence` for what changed nothing", examples=["payment.succeeded"]
    )
    source: Source = Field(description="Where it was learnt", examples=["checkstatus"])
    created_at: datetime = Field(description="When it was learnt")
    status: Status = Field(description="The payment's status after it", examples=["succeeded"])
    tid: str | None = Field(description="K-Pay's reference, where it was named", examples=["A1011795525339"])
    momtransactionid: str | None = Field(
        description="The reference at the payer's bank or operator, where it was named", examples=["1795525339101"]
    )
    payaccount: str | None = Field(description="The account or number that paid, where it was named")
    statusid: str | None = Field(description="K-Pay's code for the status, where it gave one", examples=["01"])
    statusdesc: str | None = Field(description="The same in K-Pay's words")
    retcode: str | None = Field(description="K-Pay's code for the call, where it gave one")
    detail: str | None = Field(description="What was noticed here: why K-Pay could not be asked, reasons for a review")


class Timeline(BaseModel):
    """All that happened to a payment, oldest first."""

    items: list[TimelineEntry] = Field(description="The entries")

    @classmethod
    def of(cls, rows: Any) -> "Timeline":  # noqa: ANN401 - rows of `events`
        """Return rows of `events` as callers see them."""
        names = TimelineEntry.model_fields
        return cls(items=[TimelineEntry(**{name: getattr(row, name) for name in names}) for row in rows])


class EventQuery(BaseModel):
    """Which events are wanted."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    after: str | None = Field(
        default=None, max_length=80, description="`next_cursor` of the page before; left out, from the beginning"
    )
    limit: int = Field(default=100, ge=1, le=feed.MOST, description="How many events at most")


class EventPage(BaseModel):
    """Some events, in the order in which they were committed."""

    items: list[Event] = Field(description="The events")
    next_cursor: str | None = Field(
        description="Give it as `after` for what comes next; null only while there has never been an event"
    )


class Notification(BaseModel):
    """An event as it is sent to your webhook URL; its id is the header `webhook-id`."""

    type: str = Field(
        description="What happened: `payment.pending`, `payment.succeeded`, `payment.failed`, `payment.expired` or "
        "`payment.needs_review`",
        examples=["payment.succeeded"],
    )
    timestamp: datetime = Field(description="When it happened", examples=["2026-01-31T08:00:21.480000Z"])
    data: Payment = Field(description="The payment as it was then")


class DeliveryQuery(BaseModel):
    """Which notifications are wanted."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    state: DeliveryState | None = Field(default=None, description="Where they stand; left out, any")
    limit: int = Field(default=50, ge=1, le=MOST, description="How many at most")
    cursor: str | None = Field(default=None, max_length=80, description="`next_cursor` of the page before")


class Delivery(BaseModel):
    """A notification and how it fared."""

    id: str = Field(description="The event's id, sent as `webhook-id`", examples=["evt_order-1042-1_4"])
    type: str = Field(description="The event's type", examples=["payment.succeeded"])
    refid: str = Field(description="The payment's refid", examples=["order-1042-1"])
    state: DeliveryState = Field(
        description="`waiting` for its next attempt, `delivered`, or `parked`: tried again when somebody says so"
    )
    attempts: int = Field(description="How often it was tried", examples=[2])
    http_status: int | None = Field(description="What the receiver answered last; null: nothing", examples=[500])
    error: str | None = Field(description="Why the last attempt failed", examples=["HTTP 500"])
    created_at: datetime = Field(description="When the event was published")
    next_at: datetime | None = Field(description="When it is tried next")
    delivered_at: datetime | None = Field(description="When it was received")
    parked_at: datetime | None = Field(description="When it was parked")

    @classmethod
    def of(cls, row: Row) -> "Delivery":
        """Return a row of `app.deliveries.page` as clients see it."""
        known = {name: getattr(row, name) for name in cls.model_fields if name not in ("id", "state")}
        return cls(id=event_id(row.refid, row.seq), state=state_of(row), **known)


class DeliveryPage(BaseModel):
    """Some notifications, newest first."""

    items: list[Delivery] = Field(description="The notifications")
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last")


class Retried(BaseModel):
    """How many notifications are sent again."""

    retried: int = Field(description="How many; 0 where there was nothing to send again", examples=[1])
