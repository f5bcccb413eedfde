"""The payment request as K-Pay's guide wants it (guide, "Payment request")."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app import msisdn


@dataclass(frozen=True, slots=True)
class Merchant:
    """Who asks, and how K-Pay wants this account's numbers written."""

    retailerid: str
    msisdn_format: Literal["international", "local"] = "international"

    def written(self, number: str) -> str:
        """Return a stored number the way K-Pay is sent it."""
        return msisdn.local(number) if self.msisdn_format == "local" else number


_AS_RECORDED = ("refid", "amount", "currency", "email", "details", "cname", "pmethod", "bankid", "redirecturl")


def pay(payment: Mapping[str, Any], merchant: Merchant, returl: str) -> dict[str, Any]:
    """Return the members of a `pay` request for a recorded payment; `metadata` and `orderid` stay here."""
    own_number = payment["cnumber"] == payment["msisdn"]
    request = {name: payment[name] for name in _AS_RECORDED} | {
        "msisdn": merchant.written(payment["msisdn"]),
        "cnumber": merchant.written(payment["msisdn"]) if own_number else payment["cnumber"],
        "retailerid": merchant.retailerid,
        "returl": returl,
    }
    return request | ({"logourl": payment["logourl"]} if payment["logourl"] else {})
