"""The tables of K-Pay's guide, typed in a second time: codes, banks, methods, required parameters."""

from typing import Final

RETCODES: Final = {
    0: "No error. Transaction being processed",
    600: "Invalid username / password combination",
    601: "Invalid remote user",
    602: "Location / IP not whitelisted",
    603: "Empty parameter. - missing required parameters",
    604: "Unknown retailer",
    605: "Retailer not enabled",
    606: "Error processing",
    607: "Failed mobile money transaction",
    608: "Used ref id - error uniqueness",
    609: "Unknown Payment method",
    610: "Unknown or not enabled Financial institution",
    611: "Transaction not found",
}
"""Guide, "KPay error / return code": what a `retcode` says of a request."""

STATUSIDS: Final = {
    "01": "Successful payment",
    "02": "Payment failed",
    "03": "Pending transaction",
    "682": "An internal error caused the operation to fail",
}
"""Same table: what a `statusid` says of a payment. 682 stands in an example of the guide and in no table of it."""

PMETHODS: Final = frozenset({"cc", "momo", "bank", "spenn", "smartcash"})
"""Guide, "Payment request", the row of pmethod."""

BANKS: Final = {
    "010": "INVESTMENT AND MORTGAGE BANK",
    "040": "BANQUE DE KIGALI",
    "070": "GUARANTY TRUST BANK (RWANDA)",
    "100": "ECOBANK RWANDA",
    "115": "ACCESS RWANDA",
    "130": "COMPAGNIE GENERALE DE BANQUES",
    "145": "URWEGO OPPORTUNITY BANK",
    "160": "KENYA COMMERCIAL BANK",
    "192": "EQUITY BANK",
    "400": "BANQUE POPULAIRE DU RWANDA",
    "750": "BANQUE RWANDAISE DE DEVELOPEMENT",
    "800": "ZIGAMA CREDIT AND SAVINGS SCHEME",
    "900": "BANK OF AFRICA RWANDA",
    "950": "UNGUKA BANK",
    "951": "BANQUE NATIONALE DU RWANDA",
    "63510": "MTN MOBILE MONEY",
    "63514": "TIGO - AIRTEL",
    "000": "VISA - MASTERCARD",
    "63501": "MOBICASH",
    "63502": "SPENN",
}
"""Guide, "Bank codes"."""

CURRENCIES: Final = frozenset({"RWF", "USD"})
"""Guide, "Payment request", the row of currency; RWF when it is left out."""

REQUIRED: Final = (
    "msisdn",
    "email",
    "details",
    "refid",
    "cname",
    "cnumber",
    "pmethod",
    "retailerid",
    "returl",
    "redirecturl",
    "bankid",
)
"""Guide, "Payment request": the texts that must be there and not be empty; `amount` is the one required number."""

REQUIRED_OF_ADDTOKEN: Final = ("msisdn", "email", "cusname", "refid")
"""Guide, "Generate token": the payer's name is `cusname` here, and `cname` everywhere else."""

REQUIRED_OF_TOKENLIST: Final = ("msisdn", "refid")
"""Guide, "Request token registered on a client"."""

REQUIRED_OF_TOKENPAY: Final = (
    "msisdn",
    "email",
    "details",
    "token",
    "refid",
    "cname",
    "cnumber",
    "pmethod",
    "retailerid",
    "returl",
)
"""Guide, "Payment request by token": the texts. `amount` is a number, `cvv` either. Its table has `currency` among
them; its own example leaves that out."""

TOKENPAY_PMETHODS: Final = frozenset({"cc", "tokenpay"})
"""Same section: `cc` is what its text says, `tokenpay` what its example has."""
