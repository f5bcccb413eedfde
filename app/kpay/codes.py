"""K-Pay's tables as data: codes, payment methods and financial institutions (guide, last two sections).

`retcode` and `statusid` are two tables that share numbers. A `retcode` answers a request; a `statusid` speaks of a
payment, except that a checkstatus answer with a `statusid` of 600 to 605 refuses the question.
"""

import re
from typing import Final

from app import msisdn
from app.domain import FailureCode, Says

ACCEPTED: Final = "0"
PAID: Final = "01"
FAILED: Final = "02"
PENDING: Final = "03"
NOT_FOUND: Final = "611"

STATUSIDS: Final = {
    PAID: Says.PAID,
    FAILED: Says.NOT_PAID,
    PENDING: Says.PENDING,
    ACCEPTED: Says.PENDING,
    NOT_FOUND: Says.NOT_FOUND,
}
"""What a `statusid` says; `says_of_statusid` reads the rest."""

INCOMPLETE: Final = "603"
AMBIGUOUS: Final = frozenset({"604"})
"""An unknown retailer in one of the two tables in circulation, a used refid in the other."""

REFUSES_US: Final = frozenset({"600", "601", "602", "605"}) | AMBIGUOUS
"""K-Pay refuses us, not the payment: user name and password, user, address, retailer."""

REFUSES_QUESTION: Final = frozenset({"600", "601", "602", "603", "604", "605"})

RETCODES: Final = {
    "600": (Says.REFUSED, FailureCode.MISCONFIGURED, "Invalid username / password combination"),
    "601": (Says.REFUSED, FailureCode.MISCONFIGURED, "Invalid remote user"),
    "602": (Says.REFUSED, FailureCode.MISCONFIGURED, "Location / IP not whitelisted"),
    "603": (Says.REFUSED, FailureCode.MISCONFIGURED, "Empty parameter"),
    # Two tables are in circulation; in the other one 604 is a used refid. Both readings must be safe.
    "604": (Says.IN_DOUBT, FailureCode.MISCONFIGURED, "Unknown retailer"),
    "605": (Says.REFUSED, FailureCode.MISCONFIGURED, "Retailer not enabled"),
    "606": (Says.REFUSED_AFTER_TID, FailureCode.GATEWAY_ERROR, "Error processing"),
    "607": (Says.REFUSED_AFTER_TID, FailureCode.DECLINED, "Failed mobile money transaction"),
    "608": (Says.IN_DOUBT, FailureCode.DUPLICATE_REFID, "Used ref id"),
    "609": (Says.REFUSED, FailureCode.REFUSED, "Unknown Payment method"),
    "610": (Says.REFUSED, FailureCode.REFUSED, "Unknown or not enabled Financial institution"),
}
"""What a `retcode` other than 0 says of a payment request. One that is not here leaves the outcome in doubt."""

_BANK_CODE = re.compile(r"[1-9][0-9]{1,5}|0[4-9]")


def says_of_statusid(statusid: str | None) -> Says:
    """Return what a `statusid` says of a payment: one that is not K-Pay's own is the error code of the payer's bank.

    Guide, "Post back": any value but 01 is the error code from mobile money (its example, 682, is in no table). What
    cannot be such a code (words, `00`, `1.0`) says nothing: a failure is not read into a word never seen.
    """
    if statusid in STATUSIDS:
        return STATUSIDS[statusid]
    if statusid in REFUSES_QUESTION:
        return Says.QUESTION_REFUSED
    return Says.NOT_PAID if statusid and _BANK_CODE.fullmatch(statusid) else Says.NOTHING


KNOWN: Final = frozenset(STATUSIDS) | frozenset(RETCODES)
"""Every code of K-Pay's own tables."""

EXPLANATIONS: Final = {
    "600": "user name or password is wrong: check KPAYD_GATEWAY_USERNAME and KPAYD_GATEWAY_PASSWORD",
    "601": "K-Pay does not know this user: check KPAYD_GATEWAY_USERNAME",
    "602": "this machine's address is not on K-Pay's list: send them the address that requests leave from",
    "603": "K-Pay misses a parameter: check KPAYD_RETAILERID and KPAYD_GATEWAY_URL",
    "604": "K-Pay does not know this retailer: check KPAYD_RETAILERID",
    "605": "K-Pay has not enabled this retailer: ask them to",
}
"""What an operator does about a refusal."""

BANKS: Final = {
    "010": "IMBANK RWANDA",
    "040": "BK",
    "070": "GTBANK RWANDA",
    "100": "ECOBANK RWANDA",
    "115": "ACCESS",
    "130": "COGEBANQUE",
    "145": "UOB",
    "160": "KCB RWANDA",
    "192": "EQUITY",
    "400": "BPR",
    "750": "BRD",
    "800": "ZIGAMA",
    "900": "BOA RWANDA",
    "950": "UNGUKA",
    "951": "BNR",
    "63510": "MTN MOMO",
    "63514": "AIRTEL MONEY",
    "000": "CARDS",
    "63501": "MOBICASH",
    "63502": "SPENN",
}

_WALLETS = dict.fromkeys(msisdn.MTN, "63510") | dict.fromkeys(msisdn.AIRTEL, "63514")
_IMPLIED = {"spenn": "63502", "cc": "000"}


def implied_bankid(pmethod: str, number: str) -> str | None:
    """Return the institution that a method (for `momo`, a stored number's prefix) implies, or None."""
    return _WALLETS.get(number[:5]) if pmethod == "momo" else _IMPLIED.get(pmethod)


_WORDS = (
    (FailureCode.INSUFFICIENT_FUNDS, ("insufficient", "not enough", "not_enough", "low_balance", "low balance")),
    (FailureCode.CANCELLED, ("cancel",)),
    (FailureCode.DECLINED, ("declin", "reject", "denied", "not authori", "do not honor", "do not honour")),
    (FailureCode.GATEWAY_ERROR, ("internal error", "system error", "timeout", "timed out", "unavailable")),
)


def failure_code(words: str, default: FailureCode = FailureCode.OTHER) -> FailureCode:
    """Return the failure code that K-Pay's own words point to: its codes alone do not tell why a bank said no."""
    lowered = words.lower()
    return next((code for code, signs in _WORDS if any(sign in lowered for sign in signs)), default)
