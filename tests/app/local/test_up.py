"""`stillhouse up` as a process: serves, refuses a second one, ends cleanly on Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import text

from app.db.session import make_engine, make_session_factory, transaction
from app.jobs import service
from app.local.programs import ROOT
from app.local.urls import settings_with_servers
from app.local.valkey import free_port
from app.settings import Settings
from app.specs.jobs import FreezeJob, JobKind

CLI = [sys.executable, "-m", "app.cli"]
COMMAND = [*CLI, "up", "--home"]
PATIENCE = 60
PORT = free_port()


def environment() -> dict[str, str]:
    dropped = ("DATABASE_URL", "REDIS_URL", "STILLHOUSE_DATABASE_URL", "STILLHOUSE_REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}  # noqa: TID251
    return {**kept, "STILLHOUSE_HEARTBEAT_SECONDS": "1", "STILLHOUSE_PORT": str(PORT)}


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h")


@pytest.fixture
def launcher(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*COMMAND, str(home)], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    )
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator] # a plain callable
            return
        time.sleep(0.2)
    pytest.fail(f"never: {what}")


def finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    without_port = {k: v for k, v in environment().items() if k != "STILLHOUSE_PORT"}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=without_port,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def is_ready() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_up_serves_jobs_refuses_a_second_and_stops_everything(
    launcher: subprocess.Popen[bytes], home: Path
) -> None:
    wait_for(is_ready, "the dashboard")
    wait_for((home / "servers.json").exists, "servers.json")
    settings = settings_with_servers(Settings(home=home, database_url=None, redis_url=None))
    engine = make_engine(settings.require_database_url())
    factory = make_session_factory(engine)

    def workers() -> int:
        with transaction(factory) as session:
            ready = session.scalar(text("select to_regclass('jobs')"))
            return 0 if ready is None else 1

    wait_for(workers, "the schema")
    second = finished([*COMMAND, str(home)])
    assert second.returncode == 3
    assert "is being served already" in second.stderr.replace("\n", " ")

    # Other commands find the dashboard by the home alone, whatever port it has.
    made = finished([*CLI, "projects", "create", "Tickets", "--json", "--home", str(home)])
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["slug"] == "tickets"

    # A job without a subject ends as failed: it was claimed by a worker that the dispatcher woke.
    with transaction(factory) as session:
        job_id = service.enqueue(
            session,
            service.JobRequest(
                kind=JobKind.FREEZE,
                spec=FreezeJob(dataset_version_id=404),
                stream="version:404",
                title="Freeze nothing",
            ),
        ).id

    def attempted() -> bool:
        with transaction(factory) as session:
            found = session.scalar(text(f"select attempt from jobs where id = {job_id}"))  # noqa: S608
            return bool(found)

    wait_for(attempted, "a worker claims the job")
    log = (home / "logs" / "worker-cpu-1.log").read_text()
    assert "job_claimed" in log, "what the pool process logs reaches the file"
    engine.dispose()

    children = psutil.Process(launcher.pid).children(recursive=True)
    assert len(children) >= 4
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(PATIENCE) == 0
    gone, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, [process.cmdline() for process in alive]
    assert gone
