"""The `stillhouse` command."""

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app import metadata  # noqa: F401 - a job row refers to tables of every domain
from app.accounts import service as accounts
from app.db.migrate import upgrade
from app.db.session import make_engine, make_session_factory, transaction
from app.jobs.dispatch import Dispatcher, is_led
from app.jobs.nudge import Broker
from app.local.home import HomeInUseError, HomeLock, Servers
from app.local.postgres import LocalServerError
from app.local.programs import Program, programs_of, stop_all
from app.local.urls import settings_with_servers
from app.logs import configure_logs
from app.main import create_app
from app.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="LLM distillation, end to end.")
console = Console()
errors = Console(stderr=True)

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Home folder; else STILLHOUSE_HOME, else ./.stillhouse."),
]
EXIT_REFUSED = 3


def settings_for(home: Path | None) -> Settings:
    """Return the settings of a home folder (absolute, so that children agree)."""
    settings = Settings() if home is None else Settings(home=home)
    return settings.model_copy(update={"home": settings.home.absolute()})


def stop_event() -> threading.Event:
    """Return an event that Ctrl-C and SIGTERM set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


@app.command()
def up(home: Home = None) -> None:
    """Serve a home: embedded servers, migrations, dispatcher and workers, until Ctrl-C."""
    settings = settings_for(home)
    configure_logs("console")
    stop = stop_event()
    try:
        with HomeLock(settings.home):
            serve(settings, stop)
    except (HomeInUseError, LocalServerError) as error:
        errors.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(EXIT_REFUSED) from error


def serve(settings: Settings, stop: threading.Event) -> None:
    """Start everything, keep it running until `stop`, end it in reverse order."""
    servers = Servers(settings)
    programs: list[Program] = []
    try:
        settings = servers.start()
        upgrade(settings.require_database_url())
        programs = programs_of(settings)
        for program in programs:
            program.start()
        greet(settings)
        watch(settings, programs, stop)
        console.print("Stopping.")
    finally:
        stop_all(programs)
        servers.stop()


def greet(settings: Settings) -> None:
    """Say where the dashboard is and, while there is no account, how to make the first."""
    address = f"http://{settings.host}:{settings.port}"
    console.print(
        f"Stillhouse serves {address}, home {settings.home}. Ctrl-C stops.", soft_wrap=True
    )
    offer_setup(settings, address)


def offer_setup(settings: Settings, address: str = "") -> None:
    """Print a new one-time link, or only its path, while there is no account."""
    engine = make_engine(settings.require_database_url())
    with transaction(make_session_factory(engine)) as session:
        secret = accounts.ensure_setup_link(session)
    engine.dispose()
    if secret is not None:
        console.print("No account yet. This link makes the first, once:", soft_wrap=True)
        console.print(f"{address}/setup/{secret}", soft_wrap=True, highlight=False)


def watch(settings: Settings, programs: list[Program], stop: threading.Event) -> None:
    """Restart what dies; write the local API token as soon as there is an account."""
    engine = make_engine(settings.require_database_url())
    factory = make_session_factory(engine)
    has_token = False
    while not stop.wait(1.0):
        for program in programs:
            program.keep_running()
        if not has_token:
            with contextlib.suppress(OperationalError), transaction(factory) as session:
                has_token = accounts.ensure_local_token(session, settings.token_file)
    engine.dispose()


@app.command()
def web(home: Home = None) -> None:
    """Serve the dashboard and the API; `up` runs this beside the rest."""
    settings = settings_with_servers(settings_for(home))
    configure_logs(settings.log_format)
    stop_event()  # uvicorn raises the signal again once it has shut down: then it ends nothing
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=3,
        server_header=False,
    )


@app.command()
def dispatch(home: Home = None) -> None:
    """Take back lost jobs and nudge workers; one leads, further ones wait."""
    settings = settings_with_servers(settings_for(home))
    configure_logs(settings.log_format)
    engine = make_engine(settings.require_database_url())
    broker = Broker(settings.require_redis_url())
    try:
        Dispatcher(engine, make_session_factory(engine), broker, settings).run(stop_event().is_set)
    finally:
        broker.close()
        engine.dispose()


@app.command()
def migrate(home: Home = None) -> None:
    """Bring the database to this version's schema; with no account yet, print the set-up link."""
    settings = settings_with_servers(settings_for(home))
    configure_logs(settings.log_format)
    upgrade(settings.require_database_url())
    offer_setup(settings)


@app.command()
def doctor(home: Home = None) -> None:
    """Say what of this installation works: database, schema, broker, workers."""
    settings = settings_with_servers(settings_for(home))
    started = time.monotonic()
    failed = False
    for name, check in (("database", settings.database_url), ("broker", settings.redis_url)):
        if check is None:
            console.print(f"✕ {name}: not running on {settings.home}; start `stillhouse up`")
            failed = True
    if settings.database_url is not None:
        engine = make_engine(settings.database_url)
        with engine.connect() as connection:
            revision = connection.scalar(text("select version_num from alembic_version"))
            console.print(f"✓ database: schema {revision}")
            led = is_led(connection)
            console.print("✓ dispatcher" if led else "✕ dispatcher: none runs")
            failed = failed or not led
            seen = text(
                "select name, queue from workers "
                "where seen_at > clock_timestamp() - interval '1 minute'"
            )
            for worker, queue in connection.execute(seen):
                console.print(f"✓ worker {worker} on queue {queue}")
        engine.dispose()
    if settings.redis_url is not None:
        alive = Broker(settings.redis_url).ping()
        console.print(("✓" if alive else "✕") + " broker")
        failed = failed or not alive
    console.print(f"{time.monotonic() - started:.1f} s")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    app()
