"""The programs `up` keeps running: web, dispatcher, workers; each restarted when it dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 70
RESTART_SECONDS = 2.0

log = structlog.get_logger()


@dataclass
class Program:
    """One child of the launcher; its output goes to a file of the home."""

    name: str
    command: Sequence[str]
    log_file: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    started_at: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        command = ["setpriv", "--pdeathsig", "TERM", "--", *self.command]
        with self.log_file.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                cwd=ROOT,
                env=self.environment,
                start_new_session=True,
            )
        self.started_at = time.monotonic()

    def keep_running(self) -> None:
        """Start it again when it died, after a pause."""
        if self.process is None or self.process.poll() is None:
            return
        if time.monotonic() - self.started_at < RESTART_SECONDS:
            return
        self.restarts += 1
        log.warning("program_died", program=self.name, code=self.process.returncode)
        self.start()

    def ask_to_stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment_of(settings: Settings) -> dict[str, str]:
    """Return what a child needs to see the same home and servers, and few OpenMP threads."""
    own = {
        "STILLHOUSE_HOME": str(settings.home.absolute()),
        "STILLHOUSE_DATABASE_URL": settings.require_database_url(),
        "STILLHOUSE_REDIS_URL": settings.require_redis_url(),
        "STILLHOUSE_HOST": settings.host,
        "STILLHOUSE_PORT": str(settings.port),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "REMAP_SIGTERM": "SIGQUIT",  # celery: a plain SIGTERM would wait without limit
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **own}  # noqa: TID251 - children inherit PATH and friends


def worker_command(queue: str) -> list[str]:
    """Return the command of a worker; docker-compose names the same one."""
    celery = [sys.executable, "-m", "celery", "-A", "workers.tasks.worker", "worker"]
    return [*celery, "-Q", queue, "-c", "1", "-n", f"{queue}@%h", "--loglevel", "INFO"]


def programs_of(settings: Settings) -> list[Program]:
    """Return web, dispatcher and workers of a home, in the order they start."""
    environment = environment_of(settings)
    logs = settings.home / "logs"
    made = [
        Program(name, [sys.executable, "-m", "app.cli", name], logs / f"{name}.log", environment)
        for name in ("web", "dispatch")
    ]
    for queue, count in (("cpu", settings.cpu_workers), ("gpu", settings.gpu_workers)):
        for n in range(count):
            name = f"worker-{queue}-{n + 1}"
            made.append(Program(name, worker_command(queue), logs / f"{name}.log", environment))
    return made


def stop_all(programs: Sequence[Program]) -> None:
    """Ask every program to stop, wait for all, kill what is left."""
    for program in programs:
        program.ask_to_stop()
    deadline = time.monotonic() + STOP_SECONDS
    for program in programs:
        program.wait(deadline)
