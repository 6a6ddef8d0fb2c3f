"""Every service of docker-compose.yml, started here with only its own image's packages."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from app.db.session import make_engine
from app.jobs.dispatch import is_led
from app.local.programs import ROOT
from app.local.valkey import free_port
from app.settings import Settings
from tests.support.compose import OURS, started_as
from workers.tasks.registry import MODULES

PATIENCE = 60


def extras() -> dict[str, set[str]]:
    """Return the distribution names of each extra of pyproject.toml; "" is what both need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {re.split(r"[\[<>=~! ]", line)[0].lower() for line in lines}
        for extra, lines in wanted.items()
    }


def not_in(image: str) -> str:
    """Return the top-level modules of the other image's packages, comma separated."""
    other = {"web": "worker", "worker": "web"}[image]
    absent = (extras()[other] | extras()["local"]) - extras()[""] - extras()[image]
    if image == "worker":
        absent |= {"starlette"}
    blocked = {
        module
        for module, distributions in packages_distributions().items()
        if {d.lower() for d in distributions} & absent
    }
    assert len(blocked) >= len(absent), (absent, blocked)
    return ",".join(sorted(blocked))


def environment(image: str, database: str, settings: Settings, home: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - children inherit PATH and friends
        if not name.startswith("STILLHOUSE_") and name not in ("DATABASE_URL", "REDIS_URL")
    }
    return {
        **kept,
        "PYTHONPATH": f"{ROOT / 'tests/support/blocked'}:{ROOT}",
        "BLOCKED_IMPORTS": not_in(image),
        "STILLHOUSE_HOME": str(home),
        "STILLHOUSE_LOCK_DIR": str(home / "locks"),
        "STILLHOUSE_DATABASE_URL": database,
        "STILLHOUSE_REDIS_URL": settings.require_redis_url(),
    }


def here(command: Sequence[str]) -> list[str]:
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


class Running:
    """A started service, its output in a file."""

    def __init__(self, command: Sequence[str], variables: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                here(command), cwd=ROOT, env=variables, stdout=out, stderr=out
            )

    def until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not ready():
            gone = self.process.poll() is not None
            if gone or time.monotonic() > deadline:
                pytest.fail(f"never {what}: {self.log.read_text()[-1500:]}")
            time.sleep(0.1)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def empty_database(own_database: str) -> str:
    """A database as compose makes it: without a schema."""
    engine = make_engine(own_database)
    with engine.begin() as connection:
        connection.execute(text("drop schema public cascade"))
        connection.execute(text("create schema public"))
    engine.dispose()
    return own_database


@pytest.fixture
def start(
    empty_database: str, settings: Settings, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def run(name: str, **changed: str) -> Running:
        service = OURS[name]
        image = service["build"]["target"]
        variables = environment(image, empty_database, settings, tmp_path / "home") | changed
        one = Running(started_as(service), variables, tmp_path / f"{name}.log")
        started.append(one)
        return one

    yield run
    for one in started:
        one.kill()


def healthy(name: str, variables: dict[str, str], port: int | None = None) -> bool:
    """Run the service's own health check."""
    _, *command = OURS[name]["healthcheck"]["test"]
    if port is not None:
        command = [part.replace(":8321/", f":{port}/") for part in command]
    done = subprocess.run(
        here(command), cwd=ROOT, env=variables, capture_output=True, check=False, timeout=PATIENCE
    )
    return done.returncode == 0


@pytest.mark.slow
def test_every_service_becomes_ready_with_only_its_own_packages_and_stops_when_asked(
    start: Callable[..., Running], empty_database: str, settings: Settings, tmp_path: Path
) -> None:
    migrate = start("migrate")
    assert migrate.process.wait(PATIENCE) == 0, migrate.log.read_text()
    assert re.search(r"^/setup/\S{20,}$", migrate.log.read_text(), re.MULTILINE)

    port = free_port()
    web = start("web", STILLHOUSE_PORT=str(port))
    dispatcher = start("dispatcher")
    workers = {name: start(name) for name in ("worker-cpu", "worker-gpu")}
    variables = {
        image: environment(image, empty_database, settings, tmp_path / "home")
        for image in ("web", "worker")
    }
    engine = make_engine(empty_database)

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def leads() -> bool:
        with engine.connect() as connection:
            return is_led(connection)

    def seen(queue: str) -> bool:
        with engine.connect() as connection:
            found = text("select count(*) from workers where queue = :queue")
            return connection.scalar(found, {"queue": queue}) == 1

    web.until(answers, "ready")
    dispatcher.until(leads, "leading")
    workers["worker-cpu"].until(lambda: seen("cpu"), "seen")
    workers["worker-gpu"].until(lambda: seen("gpu"), "seen")

    assert healthy("web", variables["web"], port)
    assert healthy("dispatcher", variables["web"])
    assert healthy("worker-gpu", variables["worker"])

    for one in (web, dispatcher, *workers.values()):
        assert one.stop() == 0, one.log.read_text()[-1500:]
        assert "Traceback" not in one.log.read_text()
    assert not leads()
    assert not seen("cpu")
    assert not seen("gpu")
    engine.dispose()


def test_every_job_body_imports_in_the_worker_image(
    settings: Settings, own_database: str, tmp_path: Path
) -> None:
    modules = sorted({f"workers.tasks.{name}" for name in MODULES.values()})
    code = f"import {', '.join(modules)}, workers.job.child, sys; print('fastapi' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env=environment("worker", own_database, settings, tmp_path / "home"),
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr[-1500:]
