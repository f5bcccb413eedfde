"""What can go wrong with a call to K-Pay, by what it leaves known.

    GatewayError
    ├── NotSent          no connection came about: K-Pay cannot have the request; it may be tried again
    └── InDoubt          the request may have landed: never send again, ask

An answer that K-Pay did give is no error: it is an `Answer`, whatever it says and whatever its HTTP status.
"""


class GatewayError(Exception):
    """A call to K-Pay brought no answer; the message says why and holds no secret."""


class NotSent(GatewayError):  # noqa: N818 - the name says what is known
    """No connection came about, so nothing was sent."""


class InDoubt(GatewayError):  # noqa: N818 - the name says what is known
    """The connection stood; whether K-Pay took the request in is not known."""
