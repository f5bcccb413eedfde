"""The handler as FastAPI's and SQLAlchemy's own tutorials teach it: a session by dependency, select, modify, commit.

It does what kpayd's listener does: checks the mac, keeps the raw body, writes the timeline and wakes the check.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import DateTime

engine = create_async_engine(os.environ["DATABASE_URL"])
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)
SECRET_KEY = os.environ["SECRET_KEY"].encode()


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB}


class Payment(Base):
    __tablename__ = "payments"

    refid: Mapped[str] = mapped_column(primary_key=True)
    client: Mapped[str]
    amount: Mapped[int]
    currency: Mapped[str]
    pmethod: Mapped[str]
    bankid: Mapped[str]
    msisdn: Mapped[str]
    email: Mapped[str]
    details: Mapped[str]
    cname: Mapped[str]
    cnumber: Mapped[str]
    redirecturl: Mapped[str]
    orderid: Mapped[str | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata")
    tid: Mapped[str | None]
    momtransactionid: Mapped[str | None]
    payaccount: Mapped[str | None]
    statusid: Mapped[str | None]
    statusdesc: Mapped[str | None]
    status: Mapped[str]
    failure_code: Mapped[str | None]
    last_seq: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    final_at: Mapped[datetime | None]
    next_check_at: Mapped[datetime | None]
    wake_step: Mapped[int | None]


class Event(Base):
    __tablename__ = "events"

    refid: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    source: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    status: Mapped[str]
    tid: Mapped[str | None]
    momtransactionid: Mapped[str | None]
    statusid: Mapped[str | None]
    statusdesc: Mapped[str | None]


class Evidence(Base):
    __tablename__ = "evidence"

    refid: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    source: Mapped[str]
    body: Mapped[bytes]
    content_type: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Postback(BaseModel):
    tid: str | None = None
    refid: str
    momtransactionid: str | None = None
    payaccount: str | None = None
    statusid: str | None = None
    statusdesc: str | None = None


class Reply(BaseModel):
    tid: str
    refid: str
    reply: str


class PaymentOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    refid: str
    amount: int
    currency: str
    pmethod: str
    msisdn: str
    email: str
    details: str
    cname: str
    orderid: str | None
    tid: str | None
    momtransactionid: str | None
    payaccount: str | None
    statusid: str | None
    statusdesc: str | None
    status: str
    failure_code: str | None
    created_at: datetime
    updated_at: datetime
    final_at: datetime | None


async def get_session() -> AsyncIterator[AsyncSession]:
    async with SessionLocal() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]
app = FastAPI()


@app.post("/kpay/returl/{refid}/{mac}")
async def returl(refid: str, mac: str, postback: Postback, request: Request, session: Session) -> Reply:
    digest = hmac.digest(SECRET_KEY, f"returl\0{refid}".encode(), "sha256")
    if not hmac.compare_digest(base64.urlsafe_b64encode(digest[:20]).rstrip(b"=").decode(), mac):
        raise HTTPException(404)
    result = await session.execute(select(Payment).where(Payment.refid == refid).with_for_update())
    payment = result.scalar_one_or_none()
    if payment is None:
        raise HTTPException(404)
    body = await request.body()
    said = hashlib.sha256(body).digest()
    if await session.get(Evidence, (refid, said)) is None:
        payment.last_seq += 1
        payment.wake_step = 0
        payment.next_check_at = datetime.now(UTC)
        session.add(Evidence(refid=refid, digest=said, source="postback", body=body, content_type="application/json"))
        session.add(
            Event(
                refid=refid,
                seq=payment.last_seq,
                type="evidence",
                source="postback",
                status=payment.status,
                tid=postback.tid,
                momtransactionid=postback.momtransactionid,
                statusid=postback.statusid,
                statusdesc=postback.statusdesc,
            )
        )
        await session.commit()
    return Reply(tid=payment.tid or "", refid=refid, reply="OK")


@app.get("/payments/{refid}")
async def read_payment(refid: str, session: Session) -> PaymentOut:
    payment = await session.get(Payment, refid)
    if payment is None:
        raise HTTPException(404)
    return PaymentOut.model_validate(payment)
