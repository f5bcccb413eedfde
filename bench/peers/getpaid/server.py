"""fastapi-getpaid as its README sets it up, with its dummy backend, on PostgreSQL."""

import os

from fastapi import FastAPI
from fastapi_getpaid.config import GetpaidConfig
from fastapi_getpaid.contrib.sqlalchemy.repository import SQLAlchemyPaymentRepository
from fastapi_getpaid.contrib.sqlalchemy.retry_store import SQLAlchemyRetryStore
from fastapi_getpaid.router import create_payment_router
from getpaid_core.backends.dummy import DummyProcessor
from getpaid_core.registry import registry
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

registry.register(DummyProcessor)

config = GetpaidConfig(
    default_backend="dummy",
    success_url="https://shop.example.rw/done",
    failure_url="https://shop.example.rw/failed",
    backends={"dummy": {"module": "getpaid_core.backends.dummy"}},
)
engine = create_async_engine(os.environ["DATABASE_URL"])
session_factory = async_sessionmaker(engine, expire_on_commit=False)

app = FastAPI(title="My Payment Service")
app.include_router(
    create_payment_router(
        config=config,
        repository=SQLAlchemyPaymentRepository(session_factory),
        retry_store=SQLAlchemyRetryStore(session_factory),
    ),
    prefix="/api",
)
