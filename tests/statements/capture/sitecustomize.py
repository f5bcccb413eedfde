"""Notes every distinct statement that a process sends, by SQLAlchemy or its driver, for the lint at the end of a run.

Python imports this by its name wherever the folder is on PYTHONPATH. A process that never imports SQLAlchemy pays
nothing; the others a look into a set for each statement. Written at once, since processes are killed with -9.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # without the import: every process would pay for it
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

FOLDER = "STATEMENTS_FOLDER"
"""The variable that says where to: not one of kpayd's own, which children do not inherit."""

_seen: set[str] = set()


def _note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
    if statement not in _seen:
        _seen.add(statement)
        import json  # noqa: PLC0415 - only where there is something to write
        from pathlib import Path  # noqa: PLC0415

        try:
            # By process: what is forked goes on in a file of its own.
            with Path(os.environ[FOLDER], f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(statement) + "\n")
        except (OSError, KeyError):
            pass  # the run is over, or the test has taken the environment away: nobody's call fails for it


def listen() -> None:
    """Note what every engine sends from now on, and what its driver is given past it."""
    from sqlalchemy import Engine, Pool, event  # noqa: PLC0415 - by whoever has it already

    event.listen(Engine, "before_cursor_execute", _note)
    event.listen(Pool, "connect", _listen_to_driver)


def _listen_to_driver(connection: Any, *_: object) -> None:  # noqa: ANN401 - SQLAlchemy's adapter
    """Note what goes by asyncpg alone: it logs nothing of what SQLAlchemy has prepared."""
    if hasattr(connection, "driver_connection"):
        connection.driver_connection.add_query_logger(lambda logged: _note(None, None, logged.query))


class _WhenImported:
    """Listens as soon as SQLAlchemy has been imported, by whomever."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Return how SQLAlchemy is loaded, with `listen` after it; for all else, nothing."""
        if name != "sqlalchemy":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec  # noqa: PLC0415 - every process would pay for it

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                listen()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FOLDER in os.environ:
    sys.meta_path.insert(0, _WhenImported())
