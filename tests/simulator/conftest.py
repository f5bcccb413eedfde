"""The fixtures of the simulator's tests."""

from collections.abc import Iterator

import pytest

from app.simulator import Config

from .support import DELAY, Kpay, Listener, running


@pytest.fixture(scope="session")
def listener() -> Iterator[Listener]:
    """Give a listener, for all tests."""
    with Listener().running() as listener:
        yield listener


@pytest.fixture(scope="session")
def kpay(listener: Listener) -> Iterator[Kpay]:
    """Give a simulator that nobody may change, for all tests."""
    with running(Config(payer_delay=DELAY), listener) as kpay:
        yield kpay


@pytest.fixture(scope="session")
def slow_kpay(listener: Listener) -> Iterator[Kpay]:
    """Give a simulator whose payers leave time to look, that nobody may change, for all tests."""
    with running(Config(payer_delay=4 * DELAY), listener) as kpay:
        yield kpay


@pytest.fixture
def own_kpay(listener: Listener) -> Iterator[Kpay]:
    """Give a simulator of one's own, to change."""
    with running(Config(payer_delay=DELAY, key="secret"), listener) as kpay:
        kpay.http.headers["Kpay-Key"] = "secret"
        yield kpay
