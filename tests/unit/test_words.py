"""What a payer reads: which language a browser gets, and that none of them lacks a word."""

import re
import time
from dataclasses import fields

import pytest

from app.api.words import ENGLISH, FRENCH, KINYARWANDA, Words, asked_for

ALL = (ENGLISH, FRENCH, KINYARWANDA)
EACH = pytest.mark.parametrize("words", ALL, ids=lambda words: words.language)
FILLED = {"later", "go_on"}
"""The words that name the merchant."""


@pytest.mark.parametrize(
    ("wish", "language"),
    [
        *(("en", "en"), ("fr", "fr"), ("rw", "rw")),
        *(("fr-CA", "fr"), ("rw-RW", "rw"), ("en-GB-oed", "en"), ("fr-Latn-RW", "fr")),
        *(("FR", "fr"), ("RW-rw", "rw"), ("Fr-fR;q=0.9", "fr")),
        *(("fr;q=0.5, rw;q=0.6", "rw"), ("fr;q=0.6, rw;q=0.5", "fr"), ("en;q=0.1,fr;q=0.100,rw;q=0.101", "rw")),
        *(("fr, en;q=0.9", "fr"), ("en;q=0.9, fr", "fr"), ("fr;q=1.000, en;q=0.999", "fr")),
        *(("rw, fr", "rw"), ("fr, rw", "fr"), ("en, fr, rw", "en"), ("fr;q=0.4, rw;q=0.4, en;q=0.1", "fr")),
        *(("de, fr;q=0.3", "fr"), ("de-CH, it;q=0.9, rw;q=0.1", "rw"), ("sw;q=0.9, lg", "en")),
        *(("  fr  ;  q=0.5  ,  rw ; q=0.6 ", "rw"), ("\tfr", "fr"), (",,,rw,,", "rw"), ("de\t,\tfr", "fr")),
    ],
)
def test_a_browser_gets_the_language_it_likes_best(wish: str, language: str) -> None:
    """The greatest weight wins, of equals the first; a region, upper case and space make no difference."""
    assert asked_for(wish).language == language


@pytest.mark.parametrize(
    "wish",
    [
        "",
        " ",
        ",",
        ";",
        "*",
        "*;q=0.5",
        "de, *",
        "de",
        "q=1",
        "-",
        "fr_FR",
        "f r",
        "français",
        "fra",
        "\0",
        "\xff",
        "=;=,;q=",
    ],
)
def test_a_browser_that_names_none_of_ours_gets_english(wish: str) -> None:
    """No wish, any language, only others' languages and nonsense are all answered in English."""
    assert asked_for(wish) is ENGLISH


@pytest.mark.parametrize("weight", ["0", "0.0", "0.000", "-1", "nan", "-inf", "x", "0x1", "0.5;0.5", "=", "1=1"])
def test_a_language_that_is_not_wished_for_is_not_given(weight: str) -> None:
    """A weight of 0 says no, and one that is no number is no wish; the language after it is taken."""
    assert asked_for(f"fr;q={weight}, rw;q=0.1").language == "rw"
    assert asked_for(f"fr;q={weight}") is ENGLISH


@pytest.mark.parametrize(
    "wish",
    [
        *("a" * 100_000, "," * 100_000, "fr;q=" + "9" * 100_000, "de," * 33_000 + "fr", ";" * 100_000),
        *(" " * 100_000, "fr;" + "q=" * 50_000, "fr-" * 33_000),
    ],
    ids=lambda wish: wish[:8],
)
def test_a_huge_wish_costs_nothing(wish: str) -> None:
    """100 kB of it are answered as quickly as a line, a hundred times over."""
    began = time.perf_counter()
    answers = {asked_for(wish).language for _ in range(100)}
    assert time.perf_counter() - began < 1
    assert len(answers) == 1


def test_what_a_huge_wish_says_first_is_heard() -> None:
    """The first words of a wish decide, also where 100 kB follow."""
    assert asked_for("rw, fr;q=0.9, " + "de," * 33_000).language == "rw"


@EACH
def test_every_language_has_every_word(words: Words) -> None:
    """No word is empty, has stray space about it, or stands in the wrong place; two languages share none but names."""
    texts = {field.name: getattr(words, field.name) for field in fields(Words)}
    for name, text in texts.items():
        assert text, name
        assert text.strip() == text or name == "thousands", name
    sentences = set(texts.values()) - {words.thousands, words.language}
    assert len(sentences) == len(texts) - 2
    for other in ALL:
        if other is not words:
            assert not sentences & {getattr(other, field.name) for field in fields(Words)}


@EACH
def test_every_place_for_the_merchant_is_filled(words: Words) -> None:
    """`{merchant}` stands in the same words of every language, and nothing else in braces stands anywhere."""
    with_braces = {field.name for field in fields(Words) if re.search(r"[{}]", getattr(words, field.name))}
    assert with_braces == FILLED
    for name in FILLED:
        text: str = getattr(words, name)
        assert re.findall(r"\{.*?\}", text) == ["{merchant}"]
        assert "Boulangerie" in text.format(merchant="Boulangerie")
        assert not re.search(r"[{}]", text.format(merchant="Boulangerie"))
