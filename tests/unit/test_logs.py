"""Logs: no mac, no whole phone number, and no line that somebody else wrote."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from app.logs import configure, masked

MAC = "ZmFrZS1tYWMtZm9yLXRlc3Rz"
PATH = f"/kpay/returl/R1/{MAC}"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


Writer = Callable[[Callable[[Any], None], Any], str]


@pytest.fixture(params=["json", "console"])
def written(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Writer:
    """Return what logs a value by some way and reads what was written, in each form of logs."""

    def write(way: Callable[[Any], None], value: Any) -> str:  # noqa: ANN401 - what may be logged
        configure(request.param, "INFO")
        way(value)
        return capsys.readouterr().err

    return write


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"POST {PATH} 200", "POST /kpay/returl/R1/*** 200"),
        (f'"GET https://pay.example/kpay/return/R1/{MAC}?a=1"', '"GET https://pay.example/kpay/return/R1/***?a=1"'),
        (f"{PATH} {PATH}", "/kpay/returl/R1/*** /kpay/returl/R1/***"),
        ("250788123456", "25078****456"),
        ("+250788123456 0733123456.", "+25078****456 073****456."),
        ("msisdn=250788123456,", "msisdn=25078****456,"),
        ("A250788123456 2507881234567 1250788123456", "A250788123456 2507881234567 1250788123456"),
        ("/v1/payments/R1", "/v1/payments/R1"),
    ],
)
def test_masked(text: str, shown: str) -> None:
    """Macs in paths and the middle of Rwandan numbers are hidden; longer digits and other paths are left alone."""
    assert masked(text) == shown
    assert masked(shown) == shown


def from_structlog(value: Any) -> None:  # noqa: ANN401 - what may be logged
    """Log a value as the service does."""
    structlog.get_logger().warning("seen", value=value)


def from_structlog_event(value: Any) -> None:  # noqa: ANN401 - what may be logged
    """Log a value as the event itself."""
    structlog.get_logger().warning(f"seen {value}")


def from_a_library(value: Any) -> None:  # noqa: ANN401 - what may be logged
    """Log a value as a library does."""
    logging.getLogger("library").warning("seen %s", value)


def from_a_traceback(value: Any) -> None:  # noqa: ANN401 - what may be logged
    """Log a value within an exception."""
    try:
        _fail(value)
    except RuntimeError:
        structlog.get_logger().exception("failed")


def _fail(value: object) -> None:
    raise RuntimeError(value)


WAYS = [from_structlog, from_structlog_event, from_a_library, from_a_traceback]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("secret", [PATH, "call 250788123456 now", "0788123456"], ids=["mac", "msisdn", "local"])
def test_fault_54_macs_and_numbers_are_masked(way: Callable[[Any], None], secret: str, written: Writer) -> None:
    """Should anybody log a mac or a whole number, by whatever way, the line has neither."""
    line = written(way, secret)
    assert "***" in line
    assert MAC not in line
    assert "8123456" not in line


@pytest.mark.parametrize("value", [[PATH], {"path": PATH}, ValueError(PATH)], ids=["list", "dict", "exception"])
def test_fault_54_macs_inside_values_are_masked(value: object, written: Writer) -> None:
    """A mac is masked also where the value is no plain text."""
    assert MAC not in written(from_structlog, value)


@pytest.mark.parametrize("way", WAYS[:3])
@pytest.mark.parametrize(
    "hostile",
    ["a\nforged", "a\r\nforged", "a\r\x1b[2Kforged", "\x1b[31mred", "\x9b31mred", "a\x00b\x7f\x08"],
    ids=ascii,
)
def test_fault_59_no_forged_lines(way: Callable[[Any], None], hostile: str, written: Writer) -> None:
    """What somebody else wrote starts no line of the log and drives no terminal, in JSON and on a console."""
    line = written(way, hostile)
    assert line.endswith("\n")
    assert not [char for char in line[:-1] if not char.isprintable()]


def test_fault_59_no_forged_traceback(written: Writer) -> None:
    """A traceback takes several lines on a console, and what stands in it drives no terminal either."""
    lines = written(from_a_traceback, "a\r\x1b[2Kforged\x9b31m").split("\n")
    assert "Traceback" in "".join(lines)
    assert not [char for line in lines for char in line if not char.isprintable()]


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON line has time, level, logger, event and its values, and what is hostile in them is read back whole."""
    configure("json", "INFO")
    structlog.get_logger("kpayd").info("payment changed", refid="R1\r\nforged")
    line = json.loads(capsys.readouterr().err)
    assert line.pop("timestamp").endswith("Z")
    assert line.pop("logger")
    assert line == {"event": "payment changed", "level": "info", "refid": "R1\r\nforged"}


@pytest.mark.parametrize("name", ["httpx", "httpx2", "httpcore2", "uvicorn.access"])
def test_fault_54_libraries_that_print_urls_are_quiet(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries that print whole URLs, and with them macs, are not heard, even at DEBUG."""
    configure("json", "DEBUG")
    logging.getLogger(name).info("POST %s", PATH)
    assert not capsys.readouterr().err


def test_level(capsys: pytest.CaptureFixture[str]) -> None:
    """What is below the level is not written."""
    configure("json", "ERROR")
    structlog.get_logger().warning("seen")
    assert not capsys.readouterr().err
