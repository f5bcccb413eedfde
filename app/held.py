"""A connection that is kept at hand, and how PostgreSQL plans what goes by it."""

import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

_PLANNED_SECONDS = 10.0
"""A plan that was made for an empty table reads all of it when it has grown, so none is kept for long."""

# With what a batch happens to hold in view PostgreSQL plans it anew each time, which can take longer than to do it. On
# Citus (docs/scaling.md) there is no other way: by what is given it finds the shards. And whoever runs the database may
# know better (docs/postgres.md).
_PLAN_ONCE = """
SELECT set_config('plan_cache_mode', 'force_generic_plan', false)
WHERE current_setting('plan_cache_mode') = 'auto' AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
"""


class Driver(Protocol):
    """What is needed of asyncpg's connection."""

    async def fetch(self, query: str, *args: object) -> Sequence[Mapping[str, Any]]:
        """Execute a statement and return its rows."""

    async def execute(self, query: str) -> str:
        """Execute words without parameters."""

    def is_closed(self) -> bool:
        """Whether it has ended."""

    def is_in_transaction(self) -> bool:
        """Whether one is open."""

    def terminate(self) -> None:
        """End it and say no goodbye."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A connection that is kept at hand between two uses."""

    connection: AsyncConnection
    driver: Driver
    until: float
    era: int  # those of an earlier one are not used again
    info: MutableMapping[Any, Any]  # SQLAlchemy's, of the driver's connection

    @property
    def plans_once(self) -> bool:
        """Whether PostgreSQL was told to keep the plans of what goes by it."""
        return "plans_once" in self.info

    async def plan_once(self) -> None:
        """Have PostgreSQL plan what comes next once, for some seconds."""
        now = time.monotonic()
        if self.info.setdefault("plans_until", now + _PLANNED_SECONDS) < now:
            await self.driver.execute("DISCARD PLANS")
            self.info["plans_until"] = now + _PLANNED_SECONDS
        if not self.plans_once:
            await self.driver.execute(_PLAN_ONCE)
            self.info["plans_once"] = True

    async def plan_by_value(self, scope: Literal["SESSION", "LOCAL"]) -> None:
        """Have PostgreSQL plan by what is given again, as it comes: a list's filters are of every kind.

        `LOCAL` is to the end of the transaction that is open: more than that would be undone by its rollback.
        """
        if self.plans_once:
            await self.connection.exec_driver_sql(f"SET {scope} plan_cache_mode TO DEFAULT")
            if scope == "SESSION":
                del self.info["plans_once"]

    @property
    def is_good(self) -> bool:
        """Whether it can be used again: it is there, nothing is left open in it, and its time is not up."""
        return not (self.driver.is_closed() or self.driver.is_in_transaction() or self.until < time.monotonic())
