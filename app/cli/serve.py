"""Serve a home: `up`, its programs `web` and `dispatch`, `migrate`, and `doctor`."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated

import typer
import uvicorn
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app import metadata  # noqa: F401 - a job row refers to tables of every domain
from app.accounts import service as accounts
from app.checkpoints import service as checkpoints
from app.cli.connect import keep_local_token
from app.cli.options import Home, settings_for
from app.cli.output import Exit, Json, console, print_json, reporting
from app.datasets import service as datasets
from app.db.migrate import upgrade
from app.db.session import make_engine, make_session_factory, transaction
from app.jobs import leftovers
from app.jobs.dispatch import Dispatcher, is_led
from app.jobs.nudge import Broker
from app.local.home import HomeLock, Servers
from app.local.postgres import LocalServerError
from app.local.programs import Program, programs_of, stop_all
from app.local.urls import settings_with_servers, write_address
from app.logs import configure_logs
from app.main import check_bind, create_app
from app.settings import Settings
from app.teacher_cache import service as teacher_cache

Port = Annotated[
    int | None,
    typer.Option(
        "--port", min=1, max=65535, help="Port of the dashboard; else STILLHOUSE_PORT, 8321."
    ),
]
SWEEPS = (
    leftovers.sweep,
    checkpoints.drop_stale_tokens,
    datasets.drop_given_up,
    teacher_cache.sweep,
)
"""What the dispatcher tidies once a minute."""


def stop_event() -> threading.Event:
    """Return an event that Ctrl-C and SIGTERM set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def up(home: Home = None, port: Port = None) -> None:
    """Serve a home: embedded servers, migrations, dispatcher and workers, until Ctrl-C."""
    settings = settings_for(home, port=port)
    configure_logs("console")
    stop = stop_event()
    with reporting(), HomeLock(settings.home), running(settings) as (settings, programs):
        greet(settings)
        watch(programs, stop)
        console.print("Stopping.")


@contextmanager
def running(settings: Settings) -> Iterator[tuple[Settings, list[Program]]]:
    """Start everything of a locked home; end it in reverse order."""
    check_bind(settings)
    check_port(settings)
    servers = Servers(settings)
    programs: list[Program] = []
    try:
        settings = servers.start()
        upgrade(settings.require_database_url())
        keep_local_token(settings)
        write_address(settings)
        programs = programs_of(settings)
        for program in programs:
            program.start()
        yield settings, programs
    finally:
        stop_all(programs)
        servers.stop()


def check_port(settings: Settings) -> None:
    """Raise when another program holds the port, which would only show in a log file."""
    if not is_port_free(settings):
        raise LocalServerError(
            f"Port {settings.port} of {settings.host} cannot be opened: another program may hold "
            "it. Choose another with --port."
        )


def is_port_free(settings: Settings) -> bool:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError:
            return False
    return True


def greet(settings: Settings, out: Console = console) -> None:
    """Say where the dashboard is and, while there is no account, how to make the first."""
    address = settings.own_address
    out.print(f"Stillhouse serves {address}, home {settings.home}. Ctrl-C stops.", soft_wrap=True)
    offer_setup(settings, address, out)


def offer_setup(settings: Settings, address: str = "", out: Console = console) -> None:
    """Print a new one-time link, or only its path, while there is no account."""
    engine = make_engine(settings.require_database_url())
    with transaction(make_session_factory(engine)) as session:
        secret = accounts.ensure_setup_link(session)
    engine.dispose()
    if secret is not None:
        out.print("No account yet. This link makes the first, once:", soft_wrap=True)
        out.print(f"{address}/setup/{secret}", soft_wrap=True, highlight=False)


def watch(programs: list[Program], stop: threading.Event) -> None:
    """Restart what dies, until `stop`."""
    while not stop.wait(1.0):
        for program in programs:
            program.keep_running()


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


def migrate(home: Home = None) -> None:
    """Bring the database to this version's schema; with no account yet, print the set-up link."""
    settings = settings_with_servers(settings_for(home))
    configure_logs(settings.log_format)
    with reporting():
        upgrade(settings.require_database_url())
    offer_setup(settings)


def dispatch(home: Home = None) -> None:
    """Take back lost jobs and nudge workers; one leads, further ones wait."""
    settings = settings_with_servers(settings_for(home))
    configure_logs(settings.log_format)
    engine = make_engine(settings.require_database_url())
    broker = Broker(settings.require_redis_url())
    try:
        factory = make_session_factory(engine)
        Dispatcher(engine, factory, broker, settings, SWEEPS).run(stop_event().is_set)
    finally:
        broker.close()
        engine.dispose()


@dataclass(frozen=True, slots=True)
class Finding:
    """What `doctor` found out about one part."""

    part: str
    works: bool
    text: str


def doctor(home: Home = None, *, as_json: Json = False) -> None:
    """Say what of this installation works: database, schema, broker, workers."""
    own = settings_for(home)
    settings = settings_with_servers(own)
    if own.database_url is None and HomeLock.held_for(own.home) is None:
        # What a home that is not served wrote down of its servers no longer answers.
        settings = settings.model_copy(update={"database_url": None, "redis_url": None})
    started = time.monotonic()
    working = nullcontext() if as_json else Console(stderr=True).status("Looking")
    with working:
        found = [*look_at_database(settings), look_at_broker(settings)]
    if as_json:
        print_json([{"part": f.part, "works": f.works, "text": f.text} for f in found])
    else:
        for finding in found:
            mark = "✓" if finding.works else "✕"
            console.print(f"{mark} {finding.part}: {finding.text}", markup=False, soft_wrap=True)
        console.print(f"{time.monotonic() - started:.1f} s")
    raise typer.Exit(Exit.OK if all(f.works for f in found) else Exit.FAILED)


def look_at_database(settings: Settings) -> list[Finding]:
    """Return whether the database answers, its schema, and the workers heard of lately."""
    url = settings.database_url
    if url is None:
        return [Finding("database", False, f"not running on {settings.home}: `stillhouse up`")]
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            revision = connection.scalar(text("select version_num from alembic_version"))
            led = is_led(connection)
            seen = connection.execute(
                text(
                    "select name, queue from workers "
                    "where seen_at > clock_timestamp() - interval '1 minute' order by name"
                )
            ).all()
    except SQLAlchemyError as error:
        return [Finding("database", False, f"does not answer: {str(error).splitlines()[0]}")]
    finally:
        engine.dispose()
    schema = Finding("database", True, f"schema {revision}")
    leads = Finding("dispatcher", led, "leads" if led else "none runs: `stillhouse up`")
    return [
        schema,
        leads,
        *(Finding("worker", True, f"{name} on queue {queue}") for name, queue in seen),
    ]


def look_at_broker(settings: Settings) -> Finding:
    if settings.redis_url is None:
        return Finding("broker", False, f"not running on {settings.home}: `stillhouse up`")
    broker = Broker(settings.redis_url)
    try:
        alive = broker.ping()
    finally:
        broker.close()
    return Finding("broker", alive, "answers" if alive else "does not answer")


COMMANDS: tuple[Callable[..., None], ...] = (up, web, dispatch, migrate, doctor)
