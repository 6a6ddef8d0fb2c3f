"""Reach the API of a home: over HTTP while it is served, else for reading in this process."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

from app.accounts import service as accounts
from app.cli.options import settings_for
from app.cli.output import errors, reporting
from app.client.rest import Api, Unreachable
from app.db.migrate import upgrade
from app.db.session import make_engine, make_session_factory, transaction
from app.local.home import SERVED, HomeLock
from app.local.postgres import Postgres
from app.local.urls import address_of
from app.logs import configure_logs
from app.main import create_app
from app.settings import Settings

PROBE_SECONDS = 3
START_PATIENCE_SECONDS = 30.0
"""`up` holds the home before Postgres, migrations and HTTP are there."""
START_PAUSE_SECONDS = 0.2
TIMEOUT_SECONDS = 60
LOCK_PATIENCE_SECONDS = 10
IN_PROCESS = "http://127.0.0.1"


@contextmanager
def connected(home: Path | None, *, reading: bool = False) -> Iterator[Api]:
    """Yield the API of a home; failures become a sentence and an exit code.

    `reading` commands also work while nothing is served.
    """
    settings = settings_for(home)
    configure_logs("console", level=logging.ERROR)
    with reporting(), open_api(settings, reading=reading) as api:
        yield api


@contextmanager
def open_api(settings: Settings, *, reading: bool = False) -> Iterator[Api]:
    """Yield the API of a home. Raises Unreachable, HomeInUseError, LocalServerError."""
    with ExitStack() as stack:
        api = _over_http(settings, stack)
        if api is None and not reading:
            raise Unreachable(
                f"Nothing serves {settings.home} (looked at {address_of(settings)}): "
                "start it with `stillhouse up`."
            )
        yield api or stack.enter_context(in_process(settings))


def _over_http(settings: Settings, stack: ExitStack) -> Api | None:
    """Return a connection to what serves the home, or None when nothing does.

    With embedded servers the home's lock decides, so that another home's server on the same port
    is never asked, nor given this home's token.
    """
    embedded = settings.url is None and settings.database_url is None
    if embedded and HomeLock.held_for(settings.home) != SERVED:
        return None
    if embedded:
        _await_start(settings)
    http = stack.enter_context(
        httpx.Client(
            base_url=address_of(settings),
            headers={"Authorization": f"Bearer {token_of(settings)}"},
            timeout=TIMEOUT_SECONDS,
        )
    )
    return Api(http) if _answers(address_of(settings)) else None


def _answers(address: str) -> bool:
    try:
        httpx.get(f"{address}/healthz", timeout=PROBE_SECONDS, trust_env=False)
    except httpx.TransportError:
        return False
    return True


def _await_start(settings: Settings) -> None:
    """Wait while a server that holds the home does not answer yet. Raises Unreachable.

    Its address and the token are written while it starts, so both are read after this.
    """
    deadline = time.monotonic() + START_PATIENCE_SECONDS
    told = False
    while not _answers(address_of(settings)):
        if HomeLock.held_for(settings.home) != SERVED:
            return
        if time.monotonic() >= deadline:
            raise Unreachable(
                f"{settings.home} is being served, but nothing answers at {address_of(settings)} "
                f"after {START_PATIENCE_SECONDS:g} seconds. Look at what `stillhouse up` says, "
                "then try again."
            )
        if not told:
            words = f"{settings.home} is starting: waiting for it."
            errors.print(words, markup=False, highlight=False, soft_wrap=True)
            told = True
        time.sleep(START_PAUSE_SECONDS)


def token_of(settings: Settings) -> str:
    """Return the command line's token: of the environment, else of the home's private file."""
    if settings.token is not None:
        return settings.token.get_secret_value()
    path = settings.token_file
    return path.read_text().strip() if path.is_file() else ""


def keep_local_token(settings: Settings) -> str:
    """Return the command line's API token of a home, written anew where it does not work."""
    engine = make_engine(settings.require_database_url())
    try:
        with transaction(make_session_factory(engine)) as session:
            return accounts.ensure_local_token(session, settings.token_file)
    finally:
        engine.dispose()


@contextmanager
def in_process(settings: Settings) -> Iterator[Api]:
    """Yield the API without a server: the same program on the home's database, started if need be.

    Nothing nudges workers here, so this is for reading.
    """
    with ExitStack() as stack:
        if settings.database_url is None:
            settings = stack.enter_context(_only_postgres(settings))
        upgrade(settings.require_database_url())
        token = keep_local_token(settings)
        own = {"redis_url": None, "host": "127.0.0.1", "allowed_hosts": ("127.0.0.1",)}
        app = create_app(settings.model_copy(update=own))
        stack.callback(app.state.services.engine.dispose)
        portal = stack.enter_context(start_blocking_portal())
        http = httpx.Client(
            transport=InProcess(app, portal),
            base_url=IN_PROCESS,
            headers={"Authorization": f"Bearer {token}"},
        )
        yield Api(stack.enter_context(http), patience=0)


@contextmanager
def _only_postgres(settings: Settings) -> Iterator[Settings]:
    """Run the embedded Postgres of a home while something is read."""
    folder = settings.home / "postgres"
    if not (folder / "data" / "PG_VERSION").exists():
        raise Unreachable(
            f"There is nothing in {settings.home} yet: start `stillhouse up`, "
            "or name another folder with --home."
        )
    with HomeLock(settings.home, doing="being read", patience=LOCK_PATIENCE_SECONDS):
        postgres = Postgres(folder)
        try:
            postgres.start()
            yield settings.model_copy(update={"database_url": postgres.url()})
        finally:
            postgres.stop()


class InProcess(httpx.BaseTransport):
    """Carries requests to an ASGI app in this process, through a portal's event loop."""

    def __init__(self, app: FastAPI, portal: BlockingPortal) -> None:
        self._inner = httpx.ASGITransport(app)
        self._portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._portal.call(self._answer, request)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(request)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)
