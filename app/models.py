"""The tables. `refid` leads every key of a table about a payment, so that one PostgreSQL can become a Citus cluster.

No triggers, no foreign keys out of the evidence: a postback is kept even where its payment is missing (a restored
backup). Raw bodies are `bytea`, since text and jsonb refuse bytes that K-Pay may well send.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    func,
    or_,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from app.domain import Status

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "pk": "%(table_name)s_pkey",
    }
)


def _text(name: str, *, null: bool = False) -> Column[str]:
    return Column(name, Text, nullable=null)


def _time(name: str, *, null: bool = False, now: bool = False) -> Column[datetime]:
    return Column(name, DateTime(timezone=True), nullable=null, server_default=func.now() if now else None)


def _moment(name: str) -> Column[datetime]:
    """Return a time of writing, not of the transaction's begin: under a row's lock it grows from commit to commit."""
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp())


_NEWEST_FIRST = (text("created_at DESC"), text("refid DESC"))
# By the number of dead rows: the indexes of what is due must not wait for a fifth of the table (migration 0006).
_VACUUM = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.02",
}
_STATUSES = ", ".join(f"'{status}'" for status in Status)

payments = Table(
    "payments",
    metadata,
    # What the caller asked for.
    _text("refid"),
    _text("client"),
    Column("fingerprint", LargeBinary, nullable=False),
    _text("attempt", null=True),  # of those that tried to record it, the one that did and sends it
    Column("amount", BigInteger, nullable=False),
    _text("currency"),
    _text("pmethod"),
    _text("bankid"),
    _text("msisdn"),
    _text("email"),
    _text("details"),
    _text("cname"),
    _text("cnumber"),
    _text("redirecturl"),
    _text("logourl", null=True),
    _text("orderid", null=True),
    Column("metadata", JSONB, nullable=False),
    # What K-Pay said.
    _text("gateway"),
    _text("tid", null=True),
    _text("checkout_url", null=True),
    _text("momtransactionid", null=True),
    _text("payaccount", null=True),
    _text("statusid", null=True),
    _text("statusdesc", null=True),
    _text("retcode", null=True),
    # What was made of it; `app.intake` is the one writer of `status`.
    _text("status"),
    _text("failure_code", null=True),
    _text("failure_detail", null=True),
    _text("failure_retcode", null=True),
    Column("review_reasons", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("last_seq", Integer, nullable=False),
    _time("created_at"),
    _time("updated_at"),
    _time("final_at", null=True),
    _time("doubt_from"),
    _time("expires_at"),
    # When K-Pay is asked next, and who is asking now.
    _time("next_check_at", null=True),
    Column("check_step", SmallInteger, nullable=False, server_default="0"),
    Column("wake_step", SmallInteger, nullable=True),
    Column("recheck", Boolean, nullable=False, server_default=text("false")),
    _time("checked_at", null=True),
    _time("leased_until", null=True),
    # When personal data was taken out (app.retention).
    _time("pruned_at", null=True),
    PrimaryKeyConstraint("refid"),
    CheckConstraint(f"status IN ({_STATUSES})", name="status"),
    CheckConstraint("amount > 0", name="amount"),
    Index("payments_due_idx", "next_check_at", postgresql_where=text("next_check_at IS NOT NULL")),
    Index("payments_created_idx", *_NEWEST_FIRST),
    Index("payments_client_idx", "client", *_NEWEST_FIRST),
    Index("payments_status_idx", "status", *_NEWEST_FIRST),
    Index("payments_msisdn_idx", "msisdn", *_NEWEST_FIRST),
    Index("payments_review_idx", *_NEWEST_FIRST, postgresql_where=text("review_reasons <> '{}'")),
    Index("payments_order_idx", "client", "orderid", postgresql_where=text("orderid IS NOT NULL")),
    Index("payments_tid_idx", "tid", postgresql_where=text("tid IS NOT NULL")),
    Index("payments_momtransactionid_idx", "momtransactionid", postgresql_where=text("momtransactionid IS NOT NULL")),
    postgresql_with={"fillfactor": "80", **_VACUUM},
)
"""One row a payment. Times are the database's own."""

events = Table(
    "events",
    metadata,
    _text("refid"),
    Column("seq", Integer, nullable=False),
    _text("type"),
    _text("source"),
    _moment("created_at"),
    _text("status"),
    _text("tid", null=True),
    _text("momtransactionid", null=True),
    _text("payaccount", null=True),
    _text("statusid", null=True),
    _text("statusdesc", null=True),
    _text("retcode", null=True),
    _text("detail", null=True),
    Column("state", JSONB(none_as_null=True), nullable=True),  # the payment as it was then: app.timeline
    # Whose feed it stands in, and where: `app.publish` writes both, after the commit.
    _text("client", null=True),
    Column("position", BigInteger, nullable=True),
    PrimaryKeyConstraint("refid", "seq"),
    Index("events_outbox_idx", "created_at", postgresql_where=text("position IS NULL AND type <> 'evidence'")),
    Index("events_feed_idx", "client", "position", postgresql_where=text("position IS NOT NULL")),
    postgresql_with=_VACUUM,
)
"""A payment's timeline, numbered from 1 without gaps: `payment.*` for a change, `evidence` for what changed nothing.

A change without a position is the outbox: written in the commit that it tells of, not yet told to anybody.
"""

feed = Table(
    "feed",
    metadata,
    Column("id", SmallInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    _time("since", now=True),  # what is older was written before there was a feed
    PrimaryKeyConstraint("id"),
)
"""One row: the last position given out. Its lock is what makes positions appear in their order."""

deliveries = Table(
    "deliveries",
    metadata,
    _text("refid"),
    Column("seq", Integer, nullable=False),
    _text("client"),
    _time("created_at", now=True),
    _time("next_at", null=True),  # when it is tried next (while under way: in case it is lost); null: it is over
    Column("attempts", SmallInteger, nullable=False, server_default="0"),
    _time("delivered_at", null=True),
    _time("parked_at", null=True),
    Column("http_status", SmallInteger, nullable=True),  # of the last attempt, where there was an answer
    _text("error", null=True),
    PrimaryKeyConstraint("refid", "seq"),
    Index("deliveries_due_idx", "client", "next_at", postgresql_where=text("next_at IS NOT NULL")),
    Index("deliveries_parked_idx", "client", postgresql_where=text("parked_at IS NOT NULL")),
    Index("deliveries_client_idx", "client", *_NEWEST_FIRST, text("seq DESC")),
    postgresql_with=_VACUUM,
)
"""One row for each event that a client is notified of."""

NEVER = text("'infinity'")


def or_never(moment: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """Return a time, or `NEVER` where it is null: for rows that are named by their keys already.

    So asked, PostgreSQL cannot take the index of what waits. Where its statistics are older than a backlog it does that
    otherwise, and looks at all that waits to find each of a few.
    """
    return func.coalesce(moment, NEVER)


IS_OPEN = deliveries.c.next_at.is_not(None)
"""Which deliveries are not over."""
IS_STILL_OPEN = or_never(deliveries.c.next_at) < NEVER
"""Whether deliveries that are named by their keys are not over."""

evidence = Table(
    "evidence",
    metadata,
    _text("refid"),
    Column("digest", LargeBinary, nullable=False),
    _text("source"),
    Column("body", LargeBinary, nullable=False),
    _text("content_type"),
    Column("http_status", SmallInteger, nullable=True),
    _text("remote", null=True),
    _time("created_at", now=True),
    PrimaryKeyConstraint("refid", "digest"),
)
"""Raw bodies as the versions before schema 0007 keep them, which may still be running. Nothing new comes from us."""

bodies = Table(
    "bodies",
    metadata,
    _text("refid"),
    Column("digest", LargeBinary, nullable=False),
    Column("month", Date, nullable=False),  # in which the payment was made, whenever the row is written: app.months
    _text("source"),
    Column("body", LargeBinary, nullable=False),
    _text("content_type"),
    Column("http_status", SmallInteger, nullable=True),
    _text("remote", null=True),
    _time("created_at", now=True),
    PrimaryKeyConstraint("refid", "digest", "month"),
    postgresql_partition_by="RANGE (month)",
)
"""Raw bodies, append-only, before anybody made sense of them. `digest` is of source and body: same words once."""

claims = Table(
    "claims",
    metadata,
    _text("client"),
    _text("kind"),
    _text("value"),
    _text("refid"),
    _time("created_at", now=True),
    PrimaryKeyConstraint("client", "kind", "value"),
)
"""Names that one payment of a client may hold: an `Idempotency-Key` for good, an `orderid` while it is open or paid."""

clients = Table(
    "clients",
    metadata,
    _text("name"),
    Column("key_hash", LargeBinary, nullable=False),
    Column("previous_key_hash", LargeBinary, nullable=True),
    _time("key_used_at", null=True),  # to the minute
    _time("previous_key_used_at", null=True),
    Column("scopes", ARRAY(Text), nullable=False),
    _text("webhook_url", null=True),
    _text("webhook_secret"),
    _text("previous_webhook_secret", null=True),
    _time("webhook_since", now=True),  # older events are not sent
    _time("webhook_failing_since", null=True),
    _time("webhook_failed_at", null=True),
    _time("webhook_paused_until", null=True),
    _time("webhook_disabled_at", null=True),
    # Where its payers' browsers may be sent in the end; empty: anywhere.
    Column("redirect_hosts", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    _time("created_at", now=True),
    _time("revoked_at", null=True),
    PrimaryKeyConstraint("name"),
    Index("clients_key_hash_idx", "key_hash", unique=True),
    Index("clients_previous_key_hash_idx", "previous_key_hash", unique=True),
)
"""API clients. Keys are 256 random bits, kept as SHA-256 only; two are valid at a time while one is being rotated."""

OUT_OF_SERVICE = or_(
    clients.c.webhook_url.is_(None), clients.c.webhook_disabled_at.is_not(None), clients.c.revoked_at.is_not(None)
)
"""Which clients are not notified (any more)."""

client_events = Table(
    "client_events",
    metadata,
    _text("client"),
    Column("id", BigInteger, Identity(always=True), nullable=False),
    _text("type"),
    _text("detail", null=True),
    _moment("created_at"),
    PrimaryKeyConstraint("client", "id"),
)
"""What was done to a client, and by its receiver: made, rotated, revoked, notifications turned on or disabled."""

Row = Any
"""A row as Core or the driver gives it, a named tuple: attributes by column name, typed where it becomes an object."""


def mapping(row: Row) -> Mapping[str, Any]:
    """Return `row` by column name."""
    return cast("Mapping[str, Any]", row._asdict())
