"""Makes fastapi-getpaid's tables."""

import asyncio
import os

from fastapi_getpaid.contrib.sqlalchemy.models import Base
from sqlalchemy.ext.asyncio import create_async_engine


async def make() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


asyncio.run(make())
