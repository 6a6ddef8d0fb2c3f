"""The web program: `create_app(settings)`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response
from starlette.routing import NoMatchFound
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.accounts import api as accounts_api
from app.accounts import routes as accounts_routes
from app.accounts import service as accounts
from app.checkpoints import api as checkpoints_api
from app.checkpoints import routes as checkpoints_routes
from app.dashboard import api as dashboard_api
from app.dashboard import (
    cache_pages,
    checkpoint_pages,
    compare_pages,
    evaluation_pages,
    new_run_pages,
    project_pages,
    queue_pages,
    run_pages,
    runs_api,
)
from app.dashboard import (
    projects_api as overview_api,
)
from app.datasets import api as datasets_api
from app.datasets import routes as datasets_routes
from app.evaluations import api as evaluations_api
from app.jobs.nudge import Broker
from app.projects import api as projects_api
from app.security.permissions import Permission, Principal
from app.settings import Settings
from app.web import error_pages, health, openapi
from app.web.deps import Authenticate, Sender, Services, open_to_all, require
from app.web.middleware import RequestEdge
from app.web.templating import STATIC

VERSION = "0.1.0"
ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    accounts_routes.router,
    accounts_api.router,
    projects_api.router,
    checkpoints_routes.router,
    checkpoints_api.router,
    datasets_routes.router,
    datasets_api.router,
    evaluations_api.router,
    project_pages.router,
    checkpoint_pages.router,
    cache_pages.router,
    queue_pages.router,
    dashboard_api.router,
    overview_api.router,
    runs_api.router,
    compare_pages.router,
    evaluation_pages.router,
    new_run_pages.router,  # before the pages whose number would take “new”
    run_pages.router,
)


class InsecureBind(RuntimeError):
    """Sessions would travel in the clear."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"{host} is reachable from other machines without TLS: put a TLS proxy in front and "
            "set STILLHOUSE_BEHIND_TLS=true, or accept the risk with STILLHOUSE_INSECURE_HTTP=true"
        )


class VersionedStatic(StaticFiles):
    """Files addressed with ?v=HASH never change; others are asked for again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        versioned = b"v=" in scope.get("query_string", b"")
        response.headers["Cache-Control"] = (
            "public, max-age=31536000, immutable" if versioned else "no-cache"
        )
        return response


def make_authenticate(settings: Settings) -> Authenticate:
    limits = accounts.SessionLimits(
        timedelta(hours=settings.session_idle_hours),
        timedelta(hours=settings.session_absolute_hours),
    )

    def authenticate(
        session: Session, *, cookie: str | None, bearer: str | None
    ) -> Principal | None:
        if bearer is not None:
            return accounts.principal_of_token(session, bearer)
        return accounts.principal_of_cookie(session, cookie, limits) if cookie else None

    return authenticate


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def check_bind(settings: Settings) -> None:
    """Raise when the address is open to others and nothing protects the cookie."""
    if not (is_loopback(settings.host) or settings.behind_tls or settings.insecure_http):
        raise InsecureBind(settings.host)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    parts: Services = app.state.services
    if parts.follower is not None:
        await parts.follower.start()
    yield
    if parts.follower is not None:
        await parts.follower.stop()
    if isinstance(parts.broker, Broker):
        parts.broker.close()
    parts.engine.dispose()


def _home(request: Request) -> Response:
    """Go to the projects, or to the account while there is no such page."""
    try:
        target = str(request.app.url_path_for("projects.index"))
    except NoMatchFound:
        target = accounts_routes.ACCOUNT
    return RedirectResponse(target, status_code=303)


def create_app(
    settings: Settings, *, broker: Sender | None = None, engine: Engine | None = None
) -> FastAPI:
    """Build the app. `broker` and `engine` are given by tests; else they come from the settings."""
    check_bind(settings)
    app = FastAPI(
        title="Stillhouse",
        version=VERSION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    if broker is None and settings.redis_url:
        broker = Broker(settings.redis_url)
    app.state.services = Services.build(
        settings, make_authenticate(settings), broker=broker, engine=engine
    )
    error_pages.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route(
        "/", _home, include_in_schema=False, dependencies=[require(Permission.READ)], name="home"
    )
    app.add_api_route(
        "/api/v1/openapi.json",
        partial(openapi.described, app),
        include_in_schema=False,
        dependencies=[open_to_all()],
        response_model=None,
    )
    app.mount("/static", VersionedStatic(directory=Path(STATIC)), name="static")
    app.add_middleware(RequestEdge, settings=settings, show_error=error_pages.show_error)
    return app
