"""What the measurements rest on: whose a moment of CPU is, and that a script for pgbench says what was sent."""

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from bench import script, stacks

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = str(stacks.__file__).removesuffix("bench/stacks.py")


def part_in(*files: str) -> str:
    """Return the part of a moment in the last of `files`, which each file before it has called."""

    def inner() -> str:
        return stacks.part_of(sys._getframe(1))

    for file in reversed(files):
        names: dict[str, Callable[[], str]] = {"inner": inner}
        exec(compile("def f():\n    part = inner()\n    return part", file, "exec"), names)  # noqa: S102 - our own words
        inner = names["f"]
    return inner()


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (("/lib/site-packages/uvicorn/protocols/x.py",), stacks.HTTP),
        (("/lib/site-packages/uvicorn/x.py", f"{ROOT}app/macs.py", "/lib/python3/hmac.py"), stacks.MAC),
        (("/lib/site-packages/starlette/x.py", f"{ROOT}app/kpay/wire.py"), stacks.MESSAGE),
        ((f"{ROOT}app/inbox.py", "/lib/site-packages/sqlalchemy/engine/base.py"), stacks.DRIVER),
        ((f"{ROOT}app/load.py",), stacks.OTHER),
        (("/lib/site-packages/uvicorn/_compat.py", "/lib/python3/asyncio/runners.py"), stacks.LOOP),
    ],
)
def test_a_moment_belongs_to_the_innermost_part(files: tuple[str, ...], part: str) -> None:
    """A frame of the standard library counts for its caller."""
    assert part_in(*files) == part


def test_a_moment_in_nobodys_code_is_the_event_loops() -> None:
    """Where no Python runs there is no frame."""
    assert stacks.part_of(None) == stacks.LOOP


def test_a_parameter_comes_into_a_script_as_it_was_sent() -> None:
    """A colon would be a variable of pgbench's, and a quote would end the text."""
    sent: tuple[object, ...] = ("it's 12:30 \\ now", b"\x00:", None, timedelta(hours=1), ["a", "b"], [], True, 7)
    written = script._as_sql("$1 $2 $3 $4 $5 $6 $7 $8", sent, frozenset())
    assert written == (r"E'it''s 12\x3a30 \\ now' '\x003a'::bytea NULL E'1\x3a00\x3a00' ARRAY[E'a', E'b'] '{}' True 7")


def test_what_one_payment_alone_is_called_becomes_pgbenchs_number() -> None:
    """So that each turn is another payment."""
    assert script._as_sql("$1::TEXT -- no more", ("T1",), frozenset({"T1"})) == ":n::TEXT"
