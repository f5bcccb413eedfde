"""The pages that a payer sees: light, self-contained, readable by everyone, and harmless whatever stands in them."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import cast
from urllib.parse import parse_qsl, urlsplit

import pytest
from fastapi.responses import HTMLResponse

from app.api import pages
from app.api.payer import way_on
from app.api.words import ENGLISH, FRENCH, KINYARWANDA, Words
from app.models import Row

WAY_ON = "https://shop.example.rw/done?order=7&refid=R1&status=pending"
LANGUAGES = (ENGLISH, FRENCH, KINYARWANDA)
MOST_BYTES = 30_000


class Page(HTMLParser):
    """One page, taken apart as a browser takes it apart."""

    def __init__(self, answer: HTMLResponse) -> None:
        super().__init__()
        self.answer = answer
        self.html = bytes(answer.body).decode()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag, and that it is open."""
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """See that what ends is what was open."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text under each tag that is open."""
        for tag in set(self._open):
            self.texts.setdefault(tag, []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str) -> str:
        """Return all that stands in such tags."""
        return "".join(self.texts.get(tag, []))


def row(**changes: object) -> Row:
    """Return what a page reads of a payment."""
    values = {"amount": 4200, "currency": "RWF", "refid": "R1", "status": "pending"} | changes
    return cast("Row", SimpleNamespace(**values))


def shown(words: Words = ENGLISH, *, merchant: str = "Kigali Books", waited: int = 0, **changes: object) -> Page:
    """Return the waiting page."""
    what = pages.Shown.of(row(**changes), words, merchant=merchant, way_on=WAY_ON, waited=waited)
    return Page(pages.waiting(what, words))


def every_page(words: Words) -> dict[str, Page]:
    """Return every page of a language."""
    found = {"waiting": shown(words), "waited": shown(words, waited=30)}
    return found | {make.__name__: Page(make(words)) for make in (pages.not_valid, pages.over, pages.busy)}


PAGES = [(words, name, page) for words in LANGUAGES for name, page in every_page(words).items()]
ALL = pytest.mark.parametrize(("words", "name", "page"), PAGES, ids=[f"{each[0].language}-{each[1]}" for each in PAGES])


def hashed(text: str) -> str:
    """Return a text's hash as a Content-Security-Policy has it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@ALL
def test_every_page_is_light_and_asks_for_nothing_else(words: Words, name: str, page: Page) -> None:
    """Under 30 kB all told, and nothing in it has a browser ask any host; the only way out is the merchant's."""
    heads = sum(len(key) + len(value) + 4 for key, value in page.answer.raw_headers)
    assert len(page.html.encode()) + heads < MOST_BYTES
    addresses = re.findall(r"""(?i)\b(?:[a-z][a-z0-9+.-]*:)?//[^\s"'<>]+""", page.html)
    assert {urlsplit(each).hostname for each in addresses} <= {"shop.example.rw"}
    assert not {"img", "iframe", "object", "embed", "form", "base", "audio", "video", "source"} & {
        t for t, _ in page.tags
    }
    assert not [attributes for _, attributes in page.tags if {"src", "srcset", "style", "action"} & attributes.keys()]
    assert not [each for _, attributes in page.tags for each in attributes if each.startswith("on")]
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert "url(" not in page.text("style")
    assert "@import" not in page.text("style")


@ALL
def test_a_browser_runs_this_page_s_own_style_and_script_alone(words: Words, name: str, page: Page) -> None:
    """The policy names the hash of the style and of the script that stand in the page, and allows nothing else."""
    policy = dict(each.strip().split(" ", 1) for each in page.answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["style-src"] == hashed(page.text("style"))
    script = page.text("script")
    assert bool(script) is name.startswith("wait")
    assert not script or policy["script-src"] == hashed(script)
    assert policy["script-src"].startswith("'sha256-")
    assert len(policy["script-src"].split()) == 1
    assert policy["connect-src"] == "'self'"
    assert {policy[each] for each in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert policy.keys() <= {
        *("default-src", "style-src", "script-src", "connect-src", "img-src"),
        *("base-uri", "form-action", "frame-ancestors"),
    }
    assert "unsafe" not in page.answer.headers["content-security-policy"]


@ALL
def test_every_page_can_be_read_by_everyone(words: Words, name: str, page: Page) -> None:
    """Language, title, one heading and a viewport that may be enlarged; the language is in the head, too."""
    assert page.html.startswith("<!doctype html>")
    assert page.all("html") == [{"lang": words.language}]
    assert page.answer.headers["content-language"] == words.language
    assert page.answer.headers["content-type"] == "text/html; charset=utf-8"
    assert page.answer.headers["vary"] == "Accept-Language"
    assert len(page.all("h1")) == 1
    assert page.text("title") == page.text("h1") != ""
    assert len(page.all("main")) == 1
    views = [meta["content"] for meta in page.all("meta") if meta.get("name") == "viewport"]
    assert views == ["width=device-width, initial-scale=1"]
    assert not re.search(r"[{}]", re.sub(r"(?s)<(style|script)>.*?</\1>", "", page.html))


@ALL
def test_only_what_waits_comes_again(words: Words, name: str, page: Page) -> None:
    """A page that waits comes again without a script, too; one that has nothing to wait for stays."""
    refreshes = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "refresh"]
    wanted = {"waiting": ["5; url=?waited=5"], "waited": ["5; url=?waited=35"], "busy": ["5"]}
    assert refreshes == wanted.get(name, [])
    assert len(page.all("noscript")) == (1 if name.startswith("wait") else 0)
    assert name.startswith("wait") is bool(
        re.search(r'<noscript><meta http-equiv="refresh"[^>]*></noscript>', page.html)
    )


@ALL
def test_every_page_is_kept_by_nobody(words: Words, name: str, page: Page) -> None:
    """No cache, frame, search engine or next page learns of it; each has its status."""
    wanted = {"cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
    wanted |= {"x-frame-options": "DENY", "x-robots-tag": "noindex"}
    assert {each: page.answer.headers[each] for each in wanted} == wanted
    statuses = {"not_valid": 404, "over": 410, "busy": 503}
    assert page.answer.status_code == statuses.get(name, 200)
    assert page.answer.headers.get("retry-after") == ("5" if name == "busy" else None)


@pytest.mark.parametrize(
    ("amount", "currency", "words", "text"),
    [
        *((1, "RWF", words, "1\u00a0RWF") for words in LANGUAGES),
        *((4200, "RWF", ENGLISH, "4,200\u00a0RWF"), (4200, "RWF", KINYARWANDA, "4,200\u00a0RWF")),
        *((4200, "RWF", FRENCH, "4\u202f200\u00a0RWF"), (1_000_000, "RWF", FRENCH, "1\u202f000\u202f000\u00a0RWF")),
        *((1_000_000, "RWF", ENGLISH, "1,000,000\u00a0RWF"), (1_000_000, "USD", KINYARWANDA, "1,000,000\u00a0USD")),
        *((999, "USD", FRENCH, "999\u00a0USD"), (10**12, "USD", ENGLISH, "1,000,000,000,000\u00a0USD")),
    ],
)
def test_amounts_are_written_as_the_language_writes_them(amount: int, currency: str, words: Words, text: str) -> None:
    """Thousands stand apart by the language's own mark, and number and currency stay on one line."""
    assert text in shown(words, amount=amount, currency=currency).texts["dd"]


@pytest.mark.parametrize("words", LANGUAGES, ids=lambda words: words.language)
@pytest.mark.parametrize("waited", [0, 30])
@pytest.mark.parametrize(
    "merchant",
    [
        *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onclick='x", "A & B &lt;b&gt;"),
        *("{merchant}", "{merchant.__class__.__mro__}", "{0}", "{", "}}", "{{ 7*7 }}", "{% raw %}", "%s %(x)d"),
        *("\u202egnp.exe", "\u200fشركة", "</h1></main><h1>", "]]>", "<!--", "é\u00a0𝄞", ""),
    ],
)
def test_a_merchants_name_is_text_and_nothing_else(merchant: str, words: Words, waited: int) -> None:
    """Whatever is in it, it is shown as it is: it makes no tag, fills no place and runs nothing."""
    page, plain = shown(words, merchant=merchant, waited=waited), shown(words, merchant="x", waited=waited)
    assert page.tags == plain.tags
    assert page.texts["dd"][1:] == ([merchant] if merchant else [])
    assert page.text("a") == words.go_on.replace("{merchant}", merchant)
    assert words.later.replace("{merchant}", merchant) in page.text("main")


@pytest.mark.parametrize(("waited", "left"), [(0, 30), (1, 29), (29, 1), (30, 0), (31, 0), (86_400, 0)])
def test_the_way_on_is_offered_after_thirty_seconds(waited: int, left: int) -> None:
    """Before, it lies ready for the script; from then on it stands on the page. Both lead to the merchant."""
    page = shown(waited=waited)
    (later,) = [attributes for name, attributes in page.tags if attributes.get("id") == "later"]
    assert (later["role"], later["data-seconds"], later["data-waited"]) == ("status", str(left), str(waited))
    assert len(page.all("template")) == (1 if left else 0)
    assert [link["href"] for link in page.all("a")] == [WAY_ON]
    inside = re.search(r'(?s)<div id="later"[^>]*>(.*?)</div>', page.html)
    assert inside is not None
    assert bool(inside[1].strip()) is (left == 0)


def test_a_way_on_that_is_full_of_marks_is_one_address() -> None:
    """What a caller's address may hold (`&`, an apostrophe) ends neither the attribute nor itself."""
    url = "https://shop.example.rw/a'b?x=1&copy=2&amp;y=%22%3E&refid=R1"
    what = pages.Shown.of(row(), ENGLISH, merchant="m", way_on=url, waited=30)
    page = Page(pages.waiting(what, ENGLISH))
    assert [link["href"] for link in page.all("a")] == [url]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        *(("", "?{}"), ("/", "/?{}"), ("/done", "/done?{}"), ("/done?", "/done?{}"), (":8443/x", ":8443/x?{}")),
        *(("/?b=2&a=1", "/?b=2&a=1&{}"), ("/?a=1&a=2", "/?a=1&a=2&{}"), ("/?a", "/?a&{}"), ("/?a=&b", "/?a=&b&{}")),
        *(("/?&&", "/?{}"), ("/?&a=1&&b=2&", "/?a=1&b=2&{}"), ("/?a=1;b=2", "/?a=1;b=2&{}")),
        *(("/?a=%26%3D%20+%e9", "/?a=%26%3D%20+%e9&{}"), ("/%2e%2E/x;p?q=/?:@", "/%2e%2E/x;p?q=/?:@&{}")),
        *(("/#top", "/?{}#top"), ("/?a=1#/cart?refid=9", "/?a=1&{}#/cart?refid=9"), ("/#?a", "/?{}#?a")),
        *(("/?refid=old", "/?{}"), ("/?status=succeeded&a=1", "/?a=1&{}"), ("/?refid&status", "/?{}")),
        *(("/?refid=1&x=2&refid=3&status=", "/?x=2&{}"), ("/?x=refid=1", "/?x=refid=1&{}")),
        *(("/?Refid=1&STATUS=2", "/?Refid=1&STATUS=2&{}"), ("/?refid2=1&xstatus=2", "/?refid2=1&xstatus=2&{}")),
    ],
)
def test_refid_and_status_come_into_the_callers_query(given: str, made: str) -> None:
    """They come last, in place of any that stood there; all else stays byte for byte and in its order."""
    url = f"https://shop.example.rw{given}"
    on = way_on(row(redirecturl=url, status="failed"))
    assert on == f"https://shop.example.rw{made.format('refid=R1&status=failed')}"
    pairs = parse_qsl(urlsplit(on).query, keep_blank_values=True)
    assert pairs[-2:] == [("refid", "R1"), ("status", "failed")]
    assert [value for name, value in pairs if name == "status"] == ["failed"]


def test_a_disguised_refid_of_the_callers_own_is_known() -> None:
    """`re%66id` is read as a browser's next server reads it: ours stands alone."""
    on = way_on(row(redirecturl="https://shop.example.rw/?re%66id=old&st%61tus=succeeded&a=1"))
    assert parse_qsl(urlsplit(on).query) == [("a", "1"), ("refid", "R1"), ("status", "pending")]


def test_the_way_on_is_plain_ascii() -> None:
    """What leaves in a `Location` needs no encoding: the caller's address is ASCII, and so is all that is added."""
    for status in ("created", "pending", "succeeded", "failed", "expired"):
        on = way_on(row(redirecturl="https://shop.example.rw/?x=%C3%A9", refid="a_B-9" * 8, status=status))
        assert re.fullmatch(r"[!-~]+", on)
        assert on.endswith(f"&refid={'a_B-9' * 8}&status={status}")


def test_what_the_pages_weigh(record_property: pytest.FixtureRequest) -> None:
    """The heaviest page, in any language, is told in the report: a few kilobytes."""
    sizes = {f"{words.language} {name}": len(page.html.encode()) for words, name, page in PAGES}
    assert 1_000 < max(sizes.values()) < 8_000
    record_property("bytes", str(sizes))  # type: ignore[operator]
