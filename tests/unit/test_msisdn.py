"""Phone numbers: one stored form, K-Pay's two forms, and what is no number."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.kpay import codes
from app.kpay.request import Merchant
from app.msisdn import is_rwandan_mobile, local, masked, normalise


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("250788123456", "250788123456"),
        ("+250788123456", "250788123456"),
        ("0788123456", "250788123456"),
        ("0733123456", "250733123456"),
        (" 0788 123 456 ", "250788123456"),
        ("+250-788-123-456", "250788123456"),
        ("254712345678", "254712345678"),
        ("+32470123456", "32470123456"),
    ],
)
def test_normalise(text: str, number: str) -> None:
    """Local, international and grouped numbers are stored as country code and number."""
    assert normalise(text) == number
    assert normalise(number) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "words",
        "788654321",
        "078865432",
        "07881234567",
        "250088123456",
        "25078812346",
        "2507881234567",
        "0088250788123456",
        "++250788123456",
        "250788123456x",
        "tel:250788123456",
        "\u0662\u0665\u0660788123456",
        "\uff12\uff15\uff10788123456",
        "0" * 100,
        "9" * 1_000,
        "\0",
        "\ud800",
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_no_number(text: str) -> None:
    """What no numbering plan has is refused in words that do not repeat it."""
    with pytest.raises(ValueError, match="must be a phone number that can be in use") as caught:
        normalise(text)
    assert len(text) < len("788654321") or text not in str(caught.value)


@settings(max_examples=300, database=None, deadline=None)
@given(st.text(st.characters(), max_size=20) | st.text("+-0123456789 ", max_size=16))
def test_any_text(text: str) -> None:
    """Any text is a number or a ValueError, and a number that was made stays as it is."""
    try:
        number = normalise(text)
    except ValueError:
        return
    assert number.isascii()
    assert number.isdigit()
    assert normalise(number) == number


def test_forms_for_k_pay() -> None:
    """K-Pay is sent the number as its account wants it; a number of another country has no local form."""
    assert Merchant("02").written("250788123456") == "250788123456"
    assert Merchant("02", "local").written("250788123456") == "0788123456"
    assert local("254712345678") == "254712345678"


@pytest.mark.parametrize("number", ["0788123456", "0722123456"])
def test_local_form_comes_back(number: str) -> None:
    """The local form of a stored number is the number that was given."""
    assert local(normalise(number)) == number


def test_rwandan() -> None:
    """A Rwandan mobile number is told from others."""
    assert is_rwandan_mobile("250788123456")
    assert not is_rwandan_mobile("254712345678")


@pytest.mark.parametrize(
    ("pmethod", "number", "bankid"),
    [
        ("momo", "250788123456", "63510"),
        ("momo", "250798123456", "63510"),
        ("momo", "250728123456", "63514"),
        ("momo", "250738123456", "63514"),
        ("momo", "254712345678", None),
        ("spenn", "250788123456", "63502"),
        ("cc", "254712345678", "000"),
        ("bank", "250788123456", None),
    ],
)
def test_implied_institution(pmethod: str, number: str, bankid: str | None) -> None:
    """The method, and for mobile money the number, imply the institution; a bank must be named."""
    assert codes.implied_bankid(pmethod, number) == bankid


def test_masked() -> None:
    """A masked number shows its ends alone."""
    assert masked("250788123456") == "25078...456"
