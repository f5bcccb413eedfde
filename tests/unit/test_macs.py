"""Macs: what opens the listener, and all that does not."""

import re
from collections.abc import Callable

import pytest

from app.macs import RETURL, Macs

OLD, NEW = "o" * 32, "n" * 32
MACS = Macs([NEW, OLD])


def test_right_mac() -> None:
    """A mac opens what it was made for; it is 128 bits or more, safe in a URL, and the same every time."""
    mac = MACS.make(RETURL, "R1")
    assert MACS.verify(RETURL, "R1", mac)
    assert re.fullmatch(r"[A-Za-z0-9_-]{22,}", mac)
    assert MACS.make(RETURL, "R1") == mac


@pytest.mark.parametrize(
    ("purpose", "refid"),
    [(RETURL, "R2"), (RETURL, "r1"), (RETURL, ""), ("return", "R1"), ("", "R1"), (f"{RETURL}R", "1")],
)
def test_mac_of_something_else(purpose: str, refid: str) -> None:
    """A mac opens neither another payment nor another purpose."""
    assert not MACS.verify(purpose, refid, MACS.make(RETURL, "R1"))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mac: "",
        lambda mac: mac[:-1],
        lambda mac: mac + "=",
        lambda mac: mac + "A",
        lambda mac: mac.swapcase(),
        lambda mac: " " + mac,
        lambda mac: "Ω" * len(mac),
        lambda mac: "\udcff",
        lambda mac: "\0",
        lambda mac: mac * 1_000,
    ],
    ids=["empty", "cut", "padded", "longer", "other-case", "space", "not-ascii", "not-utf-8", "nul", "very-long"],
)
def test_wrong_mac(wrong: Callable[[str], str]) -> None:
    """What is not the mac opens nothing, whatever it is made of."""
    assert not MACS.verify(RETURL, "R1", wrong(MACS.make(RETURL, "R1")))


def test_rotation() -> None:
    """The first key signs; a mac of any key opens, until its key is gone."""
    old = Macs([OLD]).make(RETURL, "R1")
    assert MACS.verify(RETURL, "R1", old)
    assert MACS.make(RETURL, "R1") == Macs([NEW]).make(RETURL, "R1") != old
    assert not Macs([NEW]).verify(RETURL, "R1", old)


def test_keys_are_not_shown() -> None:
    """No key is in what is shown of the maker of macs."""
    assert OLD not in repr(MACS)
    assert NEW not in repr(MACS)
