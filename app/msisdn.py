"""Phone numbers: one stored form (`2507...`), K-Pay's two forms, and the operator that a number implies."""

import phonenumbers

MTN = ("25078", "25079")
AIRTEL = ("25072", "25073")

_LOCAL_LENGTH = 10


def normalise(text: str) -> str:
    """Return `text` as country code and number without `+`, e.g. `250788123456`.

    Takes `0788123456`, `250788123456`, `+250788123456` and numbers of other countries with their country code.
    Raises `ValueError` for what no country's numbering plan has.
    """
    compact = text.strip().removeprefix("+").replace(" ", "").replace("-", "")
    if not (compact.isascii() and compact.isdigit()):
        raise ValueError("must be a phone number that can be in use, with its country code, e.g. 250788123456")
    national = compact.startswith("0") and len(compact) == _LOCAL_LENGTH
    try:
        number = phonenumbers.parse(compact if national else f"+{compact}", "RW" if national else None)
    except phonenumbers.NumberParseException:
        number = None
    if number is None or not phonenumbers.is_valid_number(number):
        raise ValueError("must be a phone number that can be in use, with its country code, e.g. 250788123456")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164).removeprefix("+")


def is_rwandan_mobile(msisdn: str) -> bool:
    """Whether a normalised number is a Rwandan mobile number."""
    return msisdn.startswith("2507")


def local(msisdn: str) -> str:
    """Return `250788123456` as `0788123456`; a number of another country stays as it is."""
    return f"0{msisdn.removeprefix('250')}" if msisdn.startswith("250") else msisdn


def masked(msisdn: str) -> str:
    """Return the number with all but its ends hidden, for logs and lists; of a short one less is shown."""
    return f"{msisdn[:5] if len(msisdn) > len('25078') * 2 else ''}...{msisdn[-3:]}"
