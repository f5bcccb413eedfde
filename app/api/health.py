"""Liveness, readiness and metrics, for orchestrators and Prometheus."""

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import func, select, text

from app import metrics
from app.api.context import Context, Parts
from app.database import UNAVAILABLE
from app.models import deliveries, payments

router = APIRouter(tags=["operation"])

_READY = {
    "ready": True,
    "stopping": False,
    "database": "ok",
    "schema": "current",
    "gateway": {"host": "pay.esicia.rw", "status": "ok"},
    "unseen": {},
}


@router.head("/healthz", include_in_schema=False)
@router.get(
    "/healthz",
    operation_id="healthz",
    responses={200: {"content": {"application/json": {"example": {"status": "ok"}}}}},
)
async def healthz() -> dict[str, str]:
    """Tell that the process runs and its event loop turns."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    operation_id="readyz",
    responses={
        200: {"description": "Ready", "content": {"application/json": {"example": _READY}}},
        503: {
            "description": "Not ready; the body says why",
            "content": {"application/json": {"example": _READY | {"ready": False, "stopping": True}}},
        },
    },
)
async def readyz(parts: Parts) -> JSONResponse:
    """Tell whether traffic should come here: database reachable, schema current, not stopping.

    A K-Pay that is down is told in the body and leaves the status 200: postbacks must still find the listener.
    """
    database, schema = await _database(parts)
    breaker = parts.reconciler.breaker
    stopping = parts.stopping.is_set()
    ready = database == "ok" and schema in ("current", "newer") and not stopping
    gateway: dict[str, Any] = {
        "host": parts.settings.gateway,
        "port": parts.settings.gateway_port,
        "status": "down" if breaker.is_open else "ok",
    }
    if breaker.is_open:
        gateway |= {"reason": breaker.reason, "next_try_in": max(0.0, round(breaker.until - time.monotonic(), 1))}
    body = {"ready": ready, "stopping": stopping, "database": database, "schema": schema, "gateway": gateway}
    return JSONResponse(body | {"unseen": parts.unseen.counts}, 200 if ready else 503)


@router.get("/metrics", include_in_schema=False)
async def prometheus(parts: Parts) -> Response:
    """Expose the metrics in Prometheus' text format."""
    age = func.extract("epoch", func.now() - func.min(payments.c.next_check_at))
    due = select(age, func.count()).where(
        payments.c.next_check_at.is_not(None), payments.c.gateway == parts.settings.gateway
    )
    parked = select(func.count()).select_from(deliveries).where(deliveries.c.parked_at.is_not(None))
    waits = func.extract("epoch", func.now() - func.min(deliveries.c.created_at))
    oldest = select(waits).where(deliveries.c.next_at.is_not(None))
    try:
        async with parts.database.autocommit() as connection:
            seconds, count = (await connection.execute(due)).one()
            metrics.DELIVERIES_PARKED.set((await connection.execute(parked)).scalar_one())
            metrics.OLDEST_DELIVERY.set(float((await connection.execute(oldest)).scalar_one() or 0))
    except UNAVAILABLE:
        # The counters are still worth having; the absence of this one is an alarm of its own.
        metrics.OLDEST_DUE.set(float("nan"))
    else:
        metrics.OLDEST_DUE.set(max(0.0, float(seconds or 0)))
        metrics.OPEN_PAYMENTS.set(count)
    return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


async def _database(parts: Context) -> tuple[str, str]:
    try:
        async with parts.database.autocommit() as connection:
            exists = (await connection.execute(text("SELECT to_regclass('alembic_version')"))).scalar_one()
            if exists is None:
                return "ok", "missing: run kpayd migrate"
            version = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none()
    except UNAVAILABLE as exc:
        return f"unreachable: {type(exc).__name__}", "unknown"
    return "ok", parts.schema.judge(version)
