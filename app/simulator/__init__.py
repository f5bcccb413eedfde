"""A K-Pay to develop against: K-Pay's dialect, its faults, and a ledger that tells the truth.

It imports nothing from the rest of `app`: a table copied wrongly there must not be copied wrongly here, too. Its state
is in memory and gone when it stops; times in it are multiples of `Config.payer_delay`.

    serve(Config(payer_delay=0.5), port=8089)          # blocks until a signal
    make_server(Config(), port=0)                      # a uvicorn.Server, to run in a thread or a task
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.simulator.app import Config, create_simulator
    from app.simulator.server import make_server, serve
else:

    def __getattr__(name: str) -> object:
        """Import the public names when first asked for.

        So `python -m app.simulator.behaviours` does not import its own module twice, and a command that needs no
        simulator does not pay for one.
        """
        if name in {"Config", "create_simulator"}:
            from app.simulator import app as home  # noqa: PLC0415
        elif name in {"make_server", "serve"}:
            from app.simulator import server as home  # noqa: PLC0415
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(home, name)


__all__ = ["Config", "create_simulator", "make_server", "serve"]
