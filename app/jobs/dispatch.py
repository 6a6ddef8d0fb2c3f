"""The one dispatcher: takes back lost jobs, nudges idle workers, tidies up. Safe to run twice."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.db.hooks import take_signals
from app.db.session import transaction
from app.jobs.models import Job, Worker
from app.jobs.nudge import Broker
from app.jobs.service import NOW, reap
from app.settings import Settings
from app.specs.jobs import JobState, Queue

LEADER_LOCK = 0x5717_0001
WORKER_SEEN_SECONDS = 30
SWEEP_SECONDS = 60.0

log = structlog.get_logger()


def is_led(connection: Connection) -> bool:
    """Return whether some dispatcher leads on this database just now."""
    found = connection.scalar(
        text(
            "select count(*) from pg_locks where locktype = 'advisory' and granted "
            "and classid = 0 and objid = :lock and objsubid = 1 "
            "and database = (select oid from pg_database where datname = current_database())"
        ),
        {"lock": LEADER_LOCK},
    )
    return bool(found)


@dataclass
class Dispatcher:
    """Leader by advisory lock; a second dispatcher waits for the first to go."""

    engine: Engine
    factory: sessionmaker[Session]
    broker: Broker
    settings: Settings
    sweeps: Sequence[Callable[[Session, Settings], None]] = ()
    """What tidies up, each in a transaction of its own, once a minute."""
    _quiet_until: float = 0.0
    _swept_at: float = -SWEEP_SECONDS

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Work until asked to stop; an outage of the database only delays."""
        while not should_stop():
            try:
                with self.engine.connect() as connection:
                    self._lead(connection, should_stop)
            except OperationalError as error:
                log.warning("dispatcher_database_lost", error=str(error.orig))
                time.sleep(1)

    def _lead(self, connection: Connection, should_stop: Callable[[], bool]) -> None:
        taken = text(f"select pg_try_advisory_lock({LEADER_LOCK})")
        while not connection.scalar(taken):
            connection.rollback()
            if should_stop():
                return
            time.sleep(1)
        connection.commit()
        self._grant_grace()
        last = time.monotonic()
        while not should_stop():
            connection.execute(text("select 1"))  # the lock lives as long as this connection
            connection.commit()
            if time.monotonic() - last > self.settings.lease_seconds:
                self._grant_grace()  # our own gap: workers could not be heard either
            last = time.monotonic()
            self.tick()
            self.tidy()
            time.sleep(min(1.0, self.settings.reap_seconds))

    def _grant_grace(self) -> None:
        """Reap nothing for one lease: an outage must not kill healthy runs."""
        self._quiet_until = time.monotonic() + self.settings.lease_seconds

    def tick(self) -> None:
        """Do one round: reap when grace is over, then nudge each queue that has due jobs."""
        with transaction(self.factory) as session:
            if time.monotonic() >= self._quiet_until:
                reap(
                    session,
                    max_attempts=self.settings.max_attempts,
                    backoff=self.settings.backoff_seconds,
                )
            due = self._due(session)
            idle = self._idle(session)
        self.broker.send(take_signals(session))
        for queue, jobs in due.items():
            wanted = min(jobs, max(idle.get(queue, 0), 1))
            for _ in range(max(0, wanted - self.broker.waiting(queue))):
                self.broker.send([("nudge", queue.value)])

    def tidy(self) -> None:
        """Run every sweep when it is time; what one cannot remove waits for the next round."""
        if time.monotonic() - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = time.monotonic()
        for sweep in self.sweeps:
            try:
                with transaction(self.factory) as session:
                    sweep(session, self.settings)
            except OSError as error:
                log.warning("sweep_failed", sweep=sweep.__module__, error=str(error))

    def _due(self, session: Session) -> dict[Queue, int]:
        rows = session.execute(
            select(Job.queue, func.count())
            .where(
                Job.state == JobState.QUEUED,
                (Job.not_before.is_(None)) | (Job.not_before <= NOW),
            )
            .group_by(Job.queue)
        )
        return {Queue(queue): count for queue, count in rows}

    def _idle(self, session: Session) -> dict[Queue, int]:
        recent = NOW - text(f"interval '{WORKER_SEEN_SECONDS} seconds'")
        rows = session.execute(
            select(Worker.queue, func.count())
            .where(Worker.job_id.is_(None), Worker.seen_at > recent)
            .group_by(Worker.queue)
        )
        return {Queue(queue): count for queue, count in rows}
