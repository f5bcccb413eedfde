"""Events as Stripe sends them: their members are real ones, their size is, and so is their signature."""

import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from bench.wrk import spoken

SIGNED_BY = "whsec_" + "b" * 32
KEY = "sk_test_" + "b" * 24
ENDPOINT = str(uuid.UUID(int=6))
ENVIRONMENT = {"STRIPE_KEY": KEY, "STRIPE_SECRET": SIGNED_BY, "ENDPOINT_UUID": ENDPOINT}

Json = dict[str, Any]

_ADDRESS = {"city": "Kigali", "country": "RW", "line1": "KN 3 Rd", "line2": None, "postal_code": None, "state": None}
_BILLING = {"address": _ADDRESS, "email": "ikaneza@example.rw", "name": "KANEZA", "phone": "250788312934"}
_CARD = {
    "brand": "visa",
    "checks": {"address_line1_check": "pass", "address_postal_code_check": None, "cvc_check": "pass"},
    "country": "RW",
    "exp_month": 8,
    "exp_year": 2031,
    "fingerprint": "Xt5EWLLDS7FJjR1c",
    "funding": "credit",
    "installments": None,
    "last4": "4242",
    "mandate": None,
    "network": "visa",
    "three_d_secure": None,
    "wallet": None,
}


def detached(path: str, count: int) -> Iterator[bytes]:
    """Yield so many `payment_method.detached`, each of another payment method."""
    return _signed(path, count, "payment_method.detached", _payment_method)


def charged(path: str, count: int) -> Iterator[bytes]:
    """Yield so many `charge.succeeded`, each of another charge."""
    return _signed(path, count, "charge.succeeded", _charge)


def _signed(path: str, count: int, kind: str, thing: Callable[[str], Json]) -> Iterator[bytes]:
    # The list is made once and its names replaced: making JSON anew for each would take longer than sending it.
    now = int(time.time())
    event = {
        "id": "evt_NAME",
        "object": "event",
        "api_version": "2020-08-27",
        "created": now,
        "data": {"object": thing("NAME")},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": "req_NAME", "idempotency_key": "key-NAME"},
        "type": kind,
    }
    parts = json.dumps(event, indent=2).encode().split(b"NAME")
    for _ in range(count):
        body = uuid.uuid4().hex[:24].encode().join(parts)
        signature = hmac.new(SIGNED_BY.encode(), b"%d.%b" % (now, body), hashlib.sha256).hexdigest()
        yield spoken("POST", path, body, [("Stripe-Signature", f"t={now},v1={signature}")])


def _payment_method(name: str) -> Json:
    return {
        "id": f"pm_{name}",
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": _BILLING,
        "card": _CARD,
        "created": 1_760_000_000,
        "customer": None,
        "livemode": False,
        "metadata": {"order": "1042"},
        "type": "card",
    }


def _charge(name: str) -> Json:
    nothing = (
        *("application", "application_fee", "application_fee_amount", "calculated_statement_descriptor", "customer"),
        *("destination", "dispute", "failure_balance_transaction", "failure_code", "failure_message", "invoice"),
        *("on_behalf_of", "order", "review", "shipping", "source", "source_transfer", "statement_descriptor"),
        *("statement_descriptor_suffix", "transfer_data", "transfer_group", "receipt_email", "receipt_number"),
    )
    return {
        "id": f"ch_{name}",
        "object": "charge",
        "amount": 4200,
        "amount_captured": 4200,
        "amount_refunded": 0,
        "balance_transaction": f"txn_{name}",
        "billing_details": _BILLING,
        "captured": True,
        "created": 1_760_000_000,
        "currency": "rwf",
        "description": "order 1042",
        "disputed": False,
        "fraud_details": {},
        "livemode": False,
        "metadata": {"order": "1042"},
        "outcome": {
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "risk_score": 32,
            "seller_message": "Payment complete.",
            "type": "authorized",
        },
        "paid": True,
        "payment_intent": f"pi_{name}",
        "payment_method": f"pm_{name}",
        "payment_method_details": {"card": _CARD, "type": "card"},
        "receipt_url": "https://pay.example.rw/receipts/payment/NAME",
        "refunded": False,
        "refunds": {"object": "list", "data": [], "has_more": False, "total_count": 0, "url": "/refunds"},
        "status": "succeeded",
    } | dict.fromkeys(nothing)
