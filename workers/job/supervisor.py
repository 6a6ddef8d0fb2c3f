"""Hold a job: heartbeat, write what the child reports, stop it when asked, finish."""

import contextlib
import queue
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app import metadata  # noqa: F401 - a job row refers to tables of every domain
from app.db.hooks import take_signals
from app.db.session import transaction
from app.errors import AppError
from app.jobs import lease
from app.jobs.lease import Claim, Fenced
from app.jobs.nudge import Broker
from app.jobs.service import lose
from app.jobs.snapshots import left_by
from app.settings import Settings
from app.specs.base import Spec
from app.specs.events import ErrorEvent, ResultEvent
from app.specs.jobs import Queue
from workers.job.gpu import GpuLock, take_gpu
from workers.job.process import Child
from workers.job.task import Inputs, Task
from workers.sinks import EventRows

ROOT = Path(__file__).resolve().parents[2]
BATCH_SECONDS = 0.5
DATABASE_PATIENCE_SECONDS = 600
STOP_SECONDS = 10

log = structlog.get_logger()


@dataclass
class Supervisor:
    """One worker's hands. `should_drain` tells that it was asked to go.

    Where `gpus` names cards, a job is claimed only with one of them locked.
    """

    task_of: Callable[[str], Task]
    factory: sessionmaker[Session]
    broker: Broker
    settings: Settings
    queue: Queue
    worker: str
    should_drain: Callable[[], bool] = lambda: False
    child_module: str = "workers.tasks"
    host: str = field(default_factory=socket.gethostname)
    gpus: tuple[str, ...] = ()

    def run_next(self) -> bool:
        """Claim and carry out one job; False when there was none, or no free graphics card."""
        if not self.gpus:
            return self._run_next(None)
        lock = take_gpu(self.gpus, self.settings.lock_dir)
        if lock is None:
            log.info("no_free_gpu", gpus=len(self.gpus))
            return False
        with lock:
            return self._run_next(lock)

    def _run_next(self, gpu: GpuLock | None) -> bool:
        with transaction(self.factory) as session:
            held = lease.claim(
                session,
                self.queue,
                worker=self.worker,
                host=self.host,
                lease_seconds=self.settings.lease_seconds,
            )
            lease.seen(
                session,
                self.worker,
                self.queue,
                host=self.host,
                job_id=held.job_id if held else None,
            )
        self.broker.send(take_signals(session))
        if held is None:
            return False
        with structlog.contextvars.bound_contextvars(job_id=held.job_id, fence=held.fence):
            log.info("job_claimed", kind=held.kind, attempt=held.attempt)
            try:
                JobHand(self, held, gpu).carry_out()
            except Fenced as error:
                log.warning("job_fenced", error=str(error))
        with transaction(self.factory) as session:
            lease.seen(session, self.worker, self.queue, host=self.host, job_id=None)
        return True


class JobHand:
    """One attempt of one job, from claim to finish."""

    def __init__(self, supervisor: Supervisor, held: Claim, gpu: GpuLock | None) -> None:
        self.sup = supervisor
        self.held = held
        self.gpu = gpu
        self.task = supervisor.task_of(held.kind)
        self.rows = EventRows(held, self._publish)
        self.workdir = supervisor.settings.work.absolute() / str(held.fence)
        self.outcome: ResultEvent | ErrorEvent | None = None
        self.cancel_mode: str | None = None
        self.stop_deadline: float | None = None
        self.spool: list[Spec] = []
        self.started = False
        self.database_lost_at: float | None = None

    def _publish(self, session: Session, held: Claim, payload: dict[str, Any]) -> None:
        self.task.publish(session, held, payload, self.sup.settings)

    def carry_out(self) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        try:
            with transaction(self.sup.factory) as session:
                inputs = self.task.load(session, self.held.spec, self.sup.settings)
        except AppError as error:
            self._fail(ErrorEvent(error=type(error).__name__, message=error.message))
            return
        with contextlib.ExitStack() as further:
            self._carry_out(inputs, self._cards(inputs.cards, further))

    def _cards(self, wanted: int, further: contextlib.ExitStack) -> list[GpuLock]:
        """Return the locks of the attempt: its own, and of the free cards as many as it can use."""
        cards = [self.gpu] if self.gpu is not None else []
        while cards and len(cards) < wanted:
            held = {card.uuid for card in cards}
            left = [u for u in self.sup.gpus if u not in held and u.startswith("GPU-")]
            more = take_gpu(left, self.sup.settings.lock_dir)
            if more is None:
                break
            cards.append(further.enter_context(more))
        return cards

    def _carry_out(self, inputs: Inputs, cards: Sequence[GpuLock]) -> None:
        command = [sys.executable, "-m", self.sup.child_module, self.held.kind]
        try:
            child = Child(command, self._request(inputs), root=ROOT, gpus=cards)
        except (TypeError, OSError) as error:
            words = f"The job's process could not be started: {error}. The worker's log says more."
            log.exception("child_not_started")
            self._fail(ErrorEvent(error="not_started", message=words))
            return
        try:
            self._watch(child)
            code = child.process.wait()
        finally:
            child.close()
        self._finish(child, code)

    def _request(self, inputs: Spec) -> dict[str, Any]:
        return {
            "inputs": inputs.model_dump(mode="json"),
            "workdir": str(self.workdir),
            "blobs": str(self.sup.settings.blobs.absolute()),
            "snapshots": [list(snapshot) for snapshot in self.held.snapshots],
        }

    def _watch(self, child: Child) -> None:
        """Pump events into rows and beat until the child closes its pipe or must go."""
        last_beat = 0.0
        while True:
            ended = self._collect(child)
            beat_due = time.monotonic() - last_beat >= self.sup.settings.heartbeat_seconds
            if self.spool or beat_due:
                last_beat = time.monotonic()
                self._write(child)
            if self.sup.should_drain() and self.stop_deadline is None:
                self._ask_to_stop(child, self.sup.settings.keep_seconds)
            if ended:
                return
            if self.stop_deadline is not None and time.monotonic() > self.stop_deadline:
                child.kill()

    def _collect(self, child: Child) -> bool:
        deadline = time.monotonic() + BATCH_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = child.events.get(timeout=left)
            except queue.Empty:
                break
            if event is None:
                return True
            if isinstance(event, ResultEvent | ErrorEvent):
                self.outcome = event
            else:
                self.spool.append(event)
        return False

    def _write(self, child: Child) -> None:
        """Write the spool under the fence; a database that is away only makes it wait."""
        try:
            with transaction(self.sup.factory) as session:
                mode = lease.heartbeat(session, self.held, self.sup.settings.lease_seconds)
                if self.spool and not self.started:
                    lease.running(session, self.held)
                self.rows.write(session, self.spool)
                lease.seen(
                    session,
                    self.sup.worker,
                    self.sup.queue,
                    host=self.sup.host,
                    job_id=self.held.job_id,
                )
        except Fenced:
            self._stop_now(child)
            raise
        except OperationalError as error:
            self._database_away(child, error)
            return
        self.started = self.started or bool(self.spool)
        self.spool.clear()
        self.database_lost_at = None
        self.sup.broker.send(take_signals(session))
        if mode is not None and self.cancel_mode is None:
            self.cancel_mode = mode
            settings = self.sup.settings
            keep = mode == "keep"
            self._ask_to_stop(child, settings.keep_seconds if keep else settings.discard_seconds)

    def _ask_to_stop(self, child: Child, seconds: float) -> None:
        child.ask_to_stop()
        self.stop_deadline = time.monotonic() + seconds

    def _stop_now(self, child: Child) -> None:
        child.ask_to_stop()
        deadline = time.monotonic() + STOP_SECONDS
        while child.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        child.kill()

    def _database_away(self, child: Child, error: OperationalError) -> None:
        now = time.monotonic()
        self.database_lost_at = self.database_lost_at or now
        log.warning("database_away", seconds=round(now - self.database_lost_at), error=str(error))
        if now - self.database_lost_at > DATABASE_PATIENCE_SECONDS:
            self._stop_now(child)
            raise Fenced("the database was away too long") from error

    def _finish(self, child: Child, code: int) -> None:
        if isinstance(self.outcome, ResultEvent) and self.cancel_mode != "discard":
            if self.sup.should_drain() and self.cancel_mode is None and code != 0:
                self._drained()
                return
            self._succeed(self.outcome.payload)
        elif isinstance(self.outcome, ErrorEvent):
            self._fail(self.outcome, exit_code=code)
        elif self.cancel_mode is not None:
            self._fail(ErrorEvent(error="cancelled", message="Cancelled."), exit_code=code)
        elif self.sup.should_drain():
            self._drained()
        else:
            self._lost(child, code)

    def _succeed(self, result: dict[str, Any]) -> None:
        with transaction(self.sup.factory) as session:
            lease.guard(session, self.held, self.sup.settings.lease_seconds)
            self.rows.write(session, self.spool)
            self.task.apply(session, self.held, result, self.sup.settings)
            lease.succeed(session, self.held, result)
        self._done(session)

    def _fail(self, error: ErrorEvent, *, exit_code: int | None = None) -> None:
        with transaction(self.sup.factory) as session:
            lease.guard(session, self.held, self.sup.settings.lease_seconds)
            self.rows.write(session, self.spool)
            lease.fail(session, self.held, error, exit_code=exit_code)
            left = [Path(row.folder) for row in left_by(session, self.held.job_id)]
        self._done(session, keep=left)

    def _drained(self) -> None:
        with transaction(self.sup.factory) as session:
            lease.guard(session, self.held, self.sup.settings.lease_seconds)
            self.rows.write(session, self.spool)
            lease.release(session, self.held)
        self._done(session, keep=(self.workdir,))

    def _lost(self, child: Child, code: int) -> None:
        """Handle a child that died without a word: killed from outside, or crashed."""
        for line in list(child.stderr)[-5:]:
            log.error("child_stderr", line=line)
        with transaction(self.sup.factory) as session:
            lease.guard(session, self.held, self.sup.settings.lease_seconds)
            self.rows.write(session, self.spool)
            lose(
                session,
                lease.locked(session, self.held),
                max_attempts=self.sup.settings.max_attempts,
                backoff=self.sup.settings.backoff_seconds,
                code=code,
            )
        log.warning("child_lost", code=code)
        self._done(session, keep=(self.workdir,))

    def _done(self, session: Session, *, keep: Sequence[Path] = ()) -> None:
        """Tell what was committed, and remove the attempt's files but those to keep."""
        self.sup.broker.send(take_signals(session))
        _remove_but(self.workdir, keep)


def _remove_but(path: Path, keep: Sequence[Path]) -> None:
    """Remove a file or folder, except what lies at or below the paths to keep."""
    if path in keep:
        return
    if any(kept.is_relative_to(path) for kept in keep):
        for part in path.iterdir():
            _remove_but(part, keep)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
