"""What K-Pay is sent, as its guide wants it ("Payment request", "Payment request by token", "Generate token")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import SecretStr

from app import msisdn


@dataclass(frozen=True, slots=True)
class Merchant:
    """Who asks, and how K-Pay wants this account's numbers and its card payments by token written."""

    retailerid: str
    msisdn_format: Literal["international", "local"] = "international"
    tokenpay_pmethod: Literal["cc", "tokenpay"] = "cc"

    def written(self, number: str) -> str:
        """Return a stored number the way K-Pay is sent it."""
        return msisdn.local(number) if self.msisdn_format == "local" else number


@dataclass(frozen=True, slots=True)
class SavedCard:
    """A card that K-Pay keeps for a payer. Danger: it lives in memory, for one request, and is written nowhere."""

    token: SecretStr
    cvv: SecretStr


@dataclass(frozen=True, slots=True)
class Ways:
    """Where K-Pay finds this service: `returl` takes its postbacks, `redirecturl` the payer's browser."""

    returl: str
    redirecturl: str


_AS_RECORDED = ("refid", "amount", "currency", "email", "details", "cname")


def pay(payment: Mapping[str, Any], merchant: Merchant, ways: Ways) -> dict[str, Any]:
    """Return the members of a `pay` request for a recorded payment; `metadata` and `orderid` stay here."""
    request = _common(payment, merchant, ways) | {name: payment[name] for name in ("pmethod", "bankid")}
    return request | ({"logourl": payment["logourl"]} if payment["logourl"] else {})


def tokenpay(payment: Mapping[str, Any], card: SavedCard, merchant: Merchant, ways: Ways) -> dict[str, Any]:
    """Return the members of a `tokenpay` request. Danger: `token` and `cvv` are in it, in the clear."""
    return _common(payment, merchant, ways) | {
        "token": card.token.get_secret_value(),
        "cvv": card.cvv.get_secret_value(),
        "pmethod": merchant.tokenpay_pmethod,
    }


def addtoken(refid: str, number: str, email: str, cusname: str, merchant: Merchant) -> dict[str, Any]:
    """Return the members of an `addtoken` request: here alone the payer's name is `cusname`."""
    return {"refid": refid, "msisdn": merchant.written(number), "email": email, "cusname": cusname}


def tokenlist(refid: str, number: str, merchant: Merchant) -> dict[str, Any]:
    """Return the members of a `tokenlist` request."""
    return {"refid": refid, "msisdn": merchant.written(number)}


def _common(payment: Mapping[str, Any], merchant: Merchant, ways: Ways) -> dict[str, Any]:
    own_number = payment["cnumber"] == payment["msisdn"]
    return {name: payment[name] for name in _AS_RECORDED} | {
        "msisdn": merchant.written(payment["msisdn"]),
        "cnumber": merchant.written(payment["msisdn"]) if own_number else payment["cnumber"],
        "retailerid": merchant.retailerid,
        "returl": ways.returl,
        "redirecturl": ways.redirecturl,
    }
