"""Be the workers of a database: real supervisors with real child processes, in this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.db.session import transaction
from app.jobs.models import Job
from app.jobs.nudge import Broker
from app.settings import Settings
from app.specs.jobs import JobState, Queue
from workers.job.supervisor import Supervisor
from workers.tasks.registry import task_of

Factory = sessionmaker[Session]
PAUSE_SECONDS = 0.1


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
    """Carry out jobs until none waits; every job must have succeeded."""
    supervisors = _supervisors(factory, settings)
    while any(supervisor.run_next() for supervisor in supervisors):
        pass
    with transaction(factory) as session:
        bad = [
            (j.title, j.state, j.error, j.error_message)
            for j in session.scalars(select(Job))
            if j.state != JobState.SUCCEEDED
        ]
    assert not bad


@contextmanager
def working(factory: Factory, settings: Settings) -> Iterator[None]:
    """Carry out jobs in a thread while the body asks for them."""
    stop = threading.Event()

    def work() -> None:
        supervisors = _supervisors(factory, settings)
        while not stop.is_set():
            if not any(supervisor.run_next() for supervisor in supervisors):
                stop.wait(PAUSE_SECONDS)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
