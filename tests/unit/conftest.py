"""The fixtures of the unit tests."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, the loop that the service runs on."""
    return "asyncio"
