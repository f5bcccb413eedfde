"""One Chromium, driven by Playwright, for the tests of one module after the other.

While Playwright runs, its event loop belongs to this thread, and nothing else here may call `asyncio.run`. So what
does (the service's, which makes a key) is asked for first, and a browser lives no longer than its module.
"""

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.support import Merchant, Shop, run_merchant
from tests.support import Service, Simulator

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MILLISECONDS = 20_000
"""How long a browser is waited for."""

Opener = Callable[..., Page]


@pytest.fixture(scope="session")
def merchant() -> Iterator[Merchant]:
    """Run the merchant's site."""
    with run_merchant() as merchant:
        yield merchant


@pytest.fixture(scope="session")
def shop(service: Service, simulator: Simulator, merchant: Merchant) -> Shop:
    """Return the shop that sells over the service."""
    return Shop(service, simulator, merchant)


@pytest.fixture(scope="module")
def browser(shop: Shop, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Run the system's Chromium, without the switches that a module's `WITHOUT` names; the shop is there before it."""
    if CHROMIUM is None:
        pytest.skip("NOT SHOWN: no Chromium is installed, so no payer's browser is seen")
    expect.set_options(timeout=MILLISECONDS)
    with sync_playwright() as playwright:
        without: list[str] = getattr(request.module, "WITHOUT", [])
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, ignore_default_args=without, timeout=3 * MILLISECONDS
        )
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Opener]:
    """Return an opener of tabs, each in a profile of its own; it takes Playwright's options for that."""
    opened: list[BrowserContext] = []

    def opener(**options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type] # as they are called there
        context.set_default_timeout(MILLISECONDS)
        opened.append(context)
        return context.new_page()

    yield opener
    for context in opened:
        context.close()


@pytest.fixture
def page(open_tab: Opener) -> Page:
    """Open a tab as a desktop has it."""
    return open_tab()
