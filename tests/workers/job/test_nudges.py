"""Several workers and more nudges than jobs, over the real broker: each job is done once."""

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.app.base import Celery
from sqlalchemy import text

from app.db.session import make_engine, make_session_factory, transaction
from app.jobs.nudge import Broker, make_celery
from app.settings import Settings
from app.specs.jobs import JobState, Queue
from tests.support.probe_tasks import ProbeTask
from tests.workers.job.test_supervisor import Factory, enqueue, job_of, supervisor

WORKERS, JOBS, NUDGES_EACH = 4, 6, 5
TIMEOUT_SECONDS = 40


@pytest.fixture
def own_broker(settings: Settings) -> Settings:
    """A database of the broker that no other test nudges through."""
    url = settings.require_redis_url().removesuffix("/0") + "/7"
    return settings.model_copy(update={"redis_url": url})


@pytest.fixture
def celery(own_broker: Settings) -> Iterator[Celery]:
    app = make_celery(own_broker.require_redis_url())
    yield app
    app.close()


class Worker(threading.Thread):
    """Takes nudges off the broker, acked before the work as Celery does; then looks for jobs."""

    def __init__(
        self, url: str, settings: Settings, celery: Celery, ready: threading.Barrier
    ) -> None:
        super().__init__()
        self.engine = make_engine(url)
        self.hands = supervisor(make_session_factory(self.engine), settings, ProbeTask())
        self.hands.worker = self.name
        self.celery, self.ready = celery, ready
        self.nudges = self.done = 0

    def run(self) -> None:
        with self.celery.connection() as connection, connection.SimpleQueue("gpu") as nudges:
            self.ready.wait(TIMEOUT_SECONDS)
            while True:
                try:
                    message = nudges.get(timeout=1)
                except queue.Empty:
                    break
                message.ack()
                self.nudges += 1
                while self.hands.run_next():
                    self.done += 1
        self.engine.dispose()


def test_each_job_has_one_attempt_however_often_workers_are_nudged(
    own_database: str, own_broker: Settings, celery: Celery, tmp_path: Path
) -> None:
    engine = make_engine(own_database)
    factory: Factory = make_session_factory(engine)
    broker = Broker(own_broker.require_redis_url())
    ready = threading.Barrier(WORKERS)
    workers = [Worker(own_database, own_broker, celery, ready) for _ in range(WORKERS)]
    ids = [enqueue(factory, steps=2, marker=str(tmp_path / f"{n}")) for n in range(JOBS)]
    for _ in range(JOBS * NUDGES_EACH):
        broker.nudge(Queue.GPU)
    assert broker.waiting(Queue.GPU) == JOBS * NUDGES_EACH
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT_SECONDS)
        assert not worker.is_alive()

    assert [job_of(factory, job_id).state for job_id in ids] == [JobState.SUCCEEDED] * JOBS
    with transaction(factory) as session:
        attempts = Counter(session.scalars(text("select job_id from job_attempts")))
    assert attempts == dict.fromkeys(ids, 1)
    starts = [len((tmp_path / f"{n}").read_text().split()) for n in range(JOBS)]
    assert starts == [1] * JOBS, "a child process was started twice for one job"
    assert broker.waiting(Queue.GPU) == 0
    # Running jobs wakes nobody anew (only what is queued nudges), so every nudge was one of ours.
    assert sum(worker.nudges for worker in workers) == JOBS * NUDGES_EACH
    assert sum(worker.done for worker in workers) == JOBS
    assert sum(worker.done > 0 for worker in workers) > 1, "one worker did it all: no contest"
    broker.close()
    engine.dispose()
