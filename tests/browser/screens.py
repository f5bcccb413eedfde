"""Screens that payers have, what is asked of every page on them, and pictures for whoever wants to look."""

from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

SMALLEST = 24.0
"""WCAG 2.2, 2.5.8: the least side of what a finger has to hit, in CSS pixels."""
PHONE: dict[str, object] = {
    "viewport": {"width": 360, "height": 640},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
DESKTOP: dict[str, object] = {"viewport": {"width": 1280, "height": 800}}

_WIDTH = "document.scrollingElement.scrollWidth"
_HIT = "a:not(td a), button, input, summary"  # a link in a table has the height of its row to itself
_TARGETS = """all => all.filter(each => each.checkVisibility()).map(each => {
  const { width, height } = each.getBoundingClientRect();
  return [each.outerHTML.slice(0, 80), width, height];
})"""
_CLIPPED = """all => all.filter(each => each.checkVisibility() && !each.closest(".scroll")
  && each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== "inline"
).map(each => each.outerHTML.slice(0, 80))"""


def fits(page: Page) -> int:
    """Assert that nothing scrolls sideways or is cut off, and fingers hit all; return how many things they may hit."""
    screen = page.viewport_size
    assert screen is not None
    assert page.evaluate(_WIDTH) <= screen["width"]
    assert page.locator("main *").evaluate_all(_CLIPPED) == []
    targets: list[tuple[str, float, float]] = page.locator(_HIT).evaluate_all(_TARGETS)
    assert [target for target in targets if min(target[1:]) < SMALLEST] == []
    return len(targets)


def accessible(page: Page, *, but: frozenset[str] = frozenset()) -> int:
    """Assert that axe finds nothing wrong except the rules named; return how many rules it found kept."""
    found = Axe().run(page)
    assert {each["id"] for each in found.response["violations"]} == but, found.generate_report()
    return len(found.response["passes"])


def picture(page: Page, folder: Path, name: str) -> None:
    """Keep a picture of a page in pytest's own folder."""
    page.screenshot(path=folder / f"{name}.png", full_page=True, animations="disabled")
