"""What is written to a connection: in one piece where it comes in one turn of the loop, never to one that is gone."""

import asyncio
from collections.abc import Callable

import pytest

from app.server import _Joined


class Wire(asyncio.Transport):
    """Keeps what is written, piece by piece; like uvloop's it takes nothing more once it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep a piece."""
        if self.closed:
            raise RuntimeError("the handler is closed")
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self.closed

    def close(self) -> None:
        """Close."""
        self.closed = True

    abort = close


def head_and_body(joined: _Joined, _: Wire) -> None:
    """Answer."""
    joined.write(b"head")
    joined.write(b"body")


def head_alone(joined: _Joined, _: Wire) -> None:
    """Begin a stream."""
    joined.write(b"head")


def a_last_word(joined: _Joined, _: Wire) -> None:
    """Refuse a head."""
    joined.write(b"400")
    joined.close()


def a_long_stream(joined: _Joined, _: Wire) -> None:
    """Write more than a pair: one piece at most is held."""
    for piece in (b"1", b"2", b"3", b"4", b"5"):
        joined.write(piece)


def to_one_who_hangs_up(joined: _Joined, wire: Wire) -> None:
    """Write to a reader who is gone in the same turn."""
    joined.write(b"news")
    wire.close()


@pytest.mark.parametrize(
    ("play", "at_once", "pieces"),
    [
        (head_and_body, [b"headbody"], [b"headbody"]),
        (head_alone, [], [b"head"]),
        (a_last_word, [b"400"], [b"400"]),
        (a_long_stream, [b"12", b"34"], [b"12", b"34", b"5"]),
        (to_one_who_hangs_up, [], []),
    ],
)
def test_what_is_sent_and_when(
    play: Callable[[_Joined, Wire], None], at_once: list[bytes], pieces: list[bytes]
) -> None:
    """At once where it is a pair or the last word; else in the loop's next turn, and to nobody who is gone."""

    async def run() -> tuple[list[bytes], list[bytes], list[object]]:
        loop, errors, wire = asyncio.get_running_loop(), list[object](), Wire()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        play(_Joined(wire, loop), wire)
        before = list(wire.pieces)
        await asyncio.sleep(0)
        return before, wire.pieces, errors

    assert asyncio.run(run()) == (at_once, pieces, [])
