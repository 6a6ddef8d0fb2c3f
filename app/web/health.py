"""Liveness and readiness for supervisors; nothing about the installation is told."""

import time

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.web.deps import open_to_all, services

log = structlog.get_logger()
router = APIRouter(tags=["health"], include_in_schema=False)


class _Cached:
    """Readiness is asked often by anyone; the servers behind are asked once a second."""

    def __init__(self) -> None:
        self.until = 0.0
        self.found: dict[str, bool] = {}


@router.get("/healthz", dependencies=[open_to_all()])
def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", dependencies=[open_to_all()])
def readyz(request: Request) -> JSONResponse:
    """200 when the database answers and, where one is set, the broker does; else 503."""
    parts = services(request)
    cached: _Cached = parts.extra.setdefault("ready", _Cached())
    if time.monotonic() >= cached.until:
        cached.found = {"database": _database(request), "broker": _broker(request)}
        cached.until = time.monotonic() + 1.0
    ready = all(cached.found.values())
    body = {"status": "ready" if ready else "not ready", **cached.found}
    return JSONResponse(body, status_code=200 if ready else 503)


def _database(request: Request) -> bool:
    try:
        with services(request).engine.connect() as connection:
            connection.execute(text("select 1"))
    except SQLAlchemyError as error:
        log.warning("database_unreachable", error=type(error).__name__)
        return False
    return True


def _broker(request: Request) -> bool:
    broker = services(request).broker
    return broker is not None and broker.ping()
