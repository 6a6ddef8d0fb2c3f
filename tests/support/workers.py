"""Be the workers of a database: by real supervisors and children, or quicker, in this process."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.db.session import transaction
from app.jobs import lease
from app.jobs.lease import Claim
from app.jobs.models import Job
from app.jobs.nudge import Broker
from app.settings import Settings
from app.specs.base import Spec
from app.specs.events import (
    ErrorEvent,
    LogEvent,
    MetricEvent,
    PhaseEvent,
    ProgressEvent,
    PublishEvent,
    ResumedEvent,
    SnapshotEvent,
)
from app.specs.jobs import JobState, Queue
from workers.job.supervisor import Supervisor
from workers.job.task import BodyContext
from workers.sinks import EventRows
from workers.tasks.registry import task_of

Factory = sessionmaker[Session]
PAUSE_SECONDS = 0.05


def _supervisors(factory: Factory, settings: Settings) -> list[Supervisor]:
    return [
        Supervisor(
            task_of=task_of,
            factory=factory,
            broker=Broker(settings.require_redis_url()),
            settings=settings,
            queue=queue,
            worker=f"w-{queue}",
        )
        for queue in Queue
    ]


def carry_out_all(factory: Factory, settings: Settings) -> None:
    """Carry out jobs as `up` does until none waits; every job must have succeeded."""
    carry_out(factory, settings)
    check_all_succeeded(factory)


def carry_out(factory: Factory, settings: Settings) -> None:
    """Carry out jobs as `up` does until none waits, however they end."""
    supervisors = _supervisors(factory, settings)
    while any(supervisor.run_next() for supervisor in supervisors):
        pass


def carry_out_next(factory: Factory, settings: Settings) -> None:
    """Carry out one job, as `up` does."""
    assert any(supervisor.run_next() for supervisor in _supervisors(factory, settings))


def carry_out_here(factory: Factory, settings: Settings) -> None:
    """Carry out jobs in this process until none waits; every job must have succeeded."""
    while any(_run_next(factory, settings, queue) for queue in Queue):
        pass
    check_all_succeeded(factory)


def check_all_succeeded(factory: Factory) -> None:
    with transaction(factory) as session:
        bad = [
            (j.title, j.state, j.error, j.error_message)
            for j in session.scalars(select(Job))
            if j.state != JobState.SUCCEEDED
        ]
    assert not bad


@contextmanager
def working(factory: Factory, settings: Settings) -> Iterator[None]:
    """Carry out jobs as `up` does, from a thread, while the body asks for them."""
    supervisors = _supervisors(factory, settings)
    with _at_work(lambda: any(supervisor.run_next() for supervisor in supervisors)):
        yield


@contextmanager
def working_here(factory: Factory, settings: Settings) -> Iterator[None]:
    """Carry out jobs in a thread of this process while the body asks for them."""
    with _at_work(lambda: any(_run_next(factory, settings, queue) for queue in Queue)):
        yield


@contextmanager
def _at_work(run_next: Callable[[], bool]) -> Iterator[None]:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            if not run_next():
                stop.wait(PAUSE_SECONDS)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _run_next(factory: Factory, settings: Settings, queue: Queue) -> bool:
    """Load, run and apply the next job's real task; the child and its pipe are left out."""
    with transaction(factory) as session:
        held = lease.claim(session, queue, worker="here", host="here", lease_seconds=600)
    if held is None:
        return False
    task = task_of(held.kind)
    workdir = settings.work.absolute() / str(held.fence)
    workdir.mkdir(parents=True)
    calls = Rows(factory, EventRows(held, partial(_publish, task, settings)))
    context = BodyContext(workdir, settings.blobs.absolute(), (), calls)  # type: ignore[arg-type] # the same methods
    try:
        with transaction(factory) as session:
            lease.running(session, held)
            inputs = task.load(session, held.spec, settings)
        result = task.run(task.inputs.model_validate(inputs.model_dump(mode="json")), context)
    except Exception as error:  # noqa: BLE001 - as the child: the job tells
        with transaction(factory) as session:
            lease.fail(session, held, ErrorEvent(error=type(error).__name__, message=str(error)))
        return True
    with transaction(factory) as session:
        task.apply(session, held, result, settings)
        lease.succeed(session, held, result)
    return True


def _publish(
    task: Any, settings: Settings, session: Session, held: Claim, payload: dict[str, Any]
) -> None:
    task.publish(session, held, payload, settings)


class Rows:
    """The callbacks of a body whose events become rows at once."""

    def __init__(self, factory: Factory, rows: EventRows) -> None:
        self._factory, self._rows = factory, rows

    def send(self, event: Spec) -> None:
        with transaction(self._factory) as session:
            self._rows.write(session, [event])

    def phase(self, name: str) -> None:
        self.send(PhaseEvent(name=name))

    def progress(self, done: int, total: int, unit: str) -> None:
        self.send(ProgressEvent(done=done, total=total, unit=unit))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.send(MetricEvent(step=step, values=dict(values)))

    def log(self, text: str, level: str = "info") -> None:
        self.send(LogEvent.model_validate({"level": level, "text": text}))

    def snapshot(self, step: int, folder: Path, manifest_sha256: str, **more: Any) -> None:
        self.send(
            SnapshotEvent(step=step, folder=str(folder), manifest_sha256=manifest_sha256, **more)
        )

    def resumed(self, step: int) -> None:
        self.send(ResumedEvent(step=step))

    def publish(self, payload: Mapping[str, Any]) -> None:
        self.send(PublishEvent(payload=dict(payload)))

    def should_stop(self) -> bool:
        return False
