"""`stillhouse demo`: the main job on a made task, from a base checkpoint to the comparison."""

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any, Self

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from app.cli.comparison import print_comparison
from app.cli.connect import open_api
from app.cli.options import Home, settings_for
from app.cli.output import CommandFailed, Json, console, errors, print_json, reporting
from app.cli.progress import DoneColumn, EtaColumn, show
from app.cli.serve import Port, greet, is_port_free, running, watch
from app.client.rest import Api, Unreachable
from app.demo.base import NoBaseCheckpoint
from app.demo.setting import QUICK, REAL
from app.demo.steps import Demo, StepFailed
from app.local.home import SERVED, HomeLock
from app.local.urls import address_of
from app.local.valkey import free_port
from app.logs import configure_logs
from app.metrics.formatting import duration
from app.settings import Settings

READY_SECONDS = 90
READY_PAUSE = 0.2


def demo(
    home: Home = None,
    port: Port = None,
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny checkpoints: checks the path in minutes.")
    ] = False,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep serving after the comparison, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take a made task all the way to a comparison; run again, it goes on where it is."""
    settings = settings_for(home, port=port)
    setting = QUICK if quick else REAL
    configure_logs("console", level=logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        reporting(),
        _served(settings, errors if as_json else console) as api,
        Steps(quiet=as_json) as steps,
    ):
        address = address_of(settings)
        folder = settings.home / "demo" / setting.name
        work = Demo(api, setting, folder, steps)
        try:
            found = work.carry_out()
        except (StepFailed, NoBaseCheckpoint) as error:
            raise CommandFailed(f"{error}\n{_where_to_look(settings, work.project)}") from error
        steps.close()
        page = f"{address}/projects/{work.project}"
        if as_json:
            print_json({"project": page, "seconds": steps.seconds, "comparison": found})
        else:
            print_comparison(found)
            console.print(_closing(setting.name == "quick", steps, page), markup=False)
        if stay:
            errors.print(f"{address} stays up. Ctrl-C stops.", markup=False)
            with stopped_by_hand():
                threading.Event().wait()


def _closing(is_quick: bool, steps: "Steps", page: str) -> str:  # noqa: FBT001 - which demo it was
    lines = [f"All steps succeeded in {duration(sum(steps.seconds.values()))}: {page}"]
    if is_quick:
        lines.append(
            "This was the quick demo, on tiny checkpoints: it checks the path. "
            "`make demo` takes SmolLM2 through it."
        )
    return "\n".join(lines)


def _where_to_look(settings: Settings, project: str) -> str:
    logs = settings.home / "logs"
    place = f"Look at {address_of(settings)}/projects/{project}" if project else "Look"
    return f"{place} while `stillhouse up` serves the home, and into {logs}. Then run it again."


@contextmanager
def stopped_by_hand() -> Iterator[None]:
    """End quietly on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("Stopping.")


@contextmanager
def _served(settings: Settings, out: Console) -> Iterator[Api]:
    """Yield the API of a home: of what serves it already, else of servers started for now."""
    if HomeLock.held_for(settings.home) == SERVED:
        with open_api(settings) as api:
            out.print(f"{address_of(settings)} serves this home already.", markup=False)
            yield api
        return
    if not is_port_free(settings):
        settings = settings.model_copy(update={"port": free_port()})
    stop = threading.Event()
    with HomeLock(settings.home), running(settings) as (served, programs):
        keeper = threading.Thread(target=watch, args=(programs, stop), daemon=True)
        keeper.start()
        try:
            greet(served, out)
            _wait_until_ready(settings)
            with open_api(settings) as api:
                yield api
        finally:
            stop.set()
            keeper.join()


def _wait_until_ready(settings: Settings) -> None:
    """Wait for the web program. Raises Unreachable with its log's place."""
    address = address_of(settings)
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/readyz", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(READY_PAUSE)
    raise Unreachable(
        f"{address} did not answer within {READY_SECONDS} s: see {settings.home / 'logs'}/web.log."
    )


class Steps:
    """The steps on stderr: a bar for the one in hand, a line for each that ended."""

    def __init__(self, *, quiet: bool) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            DoneColumn(),
            EtaColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(
            *columns, console=errors, disable=quiet or not errors.is_terminal, transient=True
        )
        self._quiet = quiet
        self._task: TaskID | None = None
        self._title = ""
        self._head = ""
        self._began = 0.0
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._progress.stop()

    def begin(self, place: int, count: int, title: str) -> None:
        self._title, self._head = title, f"{place:>2}/{count} {title}"
        self._began = time.monotonic()
        self._task = self._progress.add_task(self._head, total=None)
        if not errors.is_terminal:
            self._say(f"  {self._head} …")

    def moved(self, found: Mapping[str, Any]) -> None:
        if self._task is not None:
            show(self._progress, self._task, found, self._head)

    def ended(self, note: str) -> None:
        seconds = time.monotonic() - self._began
        self.seconds[self._title] = round(seconds, 1)
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._say(f"✓ {self._head}: {note}, {duration(seconds)}")

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
