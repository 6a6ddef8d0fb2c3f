"""The Celery worker: `celery -A workers.tasks.worker worker -Q gpu -c 1`."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import threading
from functools import cache
from typing import Any

import structlog
from celery.signals import (
    celeryd_after_setup,
    worker_process_init,
    worker_process_shutdown,
    worker_shutting_down,
)
from sqlalchemy.exc import OperationalError

from app.db.session import make_engine, make_session_factory, transaction
from app.jobs import lease
from app.jobs.nudge import RUN_NEXT, Broker
from app.local.urls import settings_with_servers
from app.logs import configure_logs
from app.specs.jobs import Queue
from workers.celery_app import build
from workers.job.child import PR_SET_PDEATHSIG
from workers.job.gpu import visible_gpus
from workers.job.supervisor import Supervisor
from workers.tasks.registry import import_tasks, task_of

settings = settings_with_servers()
app = build(settings.require_redis_url())
log = structlog.get_logger()
_drain = multiprocessing.get_context("fork").Event()  # shared with the pool process it forks
_queues: list[Queue] = []
_ended = threading.Event()
IDLE_BEAT_SECONDS = 10.0
"""A third of what the dispatcher lets pass before it takes a worker for gone."""


@celeryd_after_setup.connect  # type: ignore[untyped-decorator] # celery has no types
def _note_queues(instance: Any, **_: Any) -> None:
    _queues.extend(Queue(name) for name in instance.app.amqp.queues.consume_from)


@worker_shutting_down.connect  # type: ignore[untyped-decorator] # celery has no types
def _start_drain(**_: Any) -> None:
    _drain.set()


@worker_process_init.connect  # type: ignore[untyped-decorator] # celery has no types
def _prepare(**_: Any) -> None:
    # The pool process goes with its parent; its lease then runs out and the job is taken back.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    configure_logs(settings.log_format)
    for queue in _queues:
        threading.Thread(target=_be_seen, args=(_supervisor(queue),), daemon=True).start()


def _be_seen(supervisor: Supervisor) -> None:
    """Beat while idle too, so that people and the dispatcher see who waits for work."""
    while True:
        try:
            with transaction(supervisor.factory) as session:
                lease.still_here(session, supervisor.worker, supervisor.queue, host=supervisor.host)
        except OperationalError as error:
            log.warning("database_away", error=str(error.orig))
        if _ended.wait(IDLE_BEAT_SECONDS):
            return


@worker_process_shutdown.connect  # type: ignore[untyped-decorator] # celery has no types
def _sign_off(**_: Any) -> None:
    _ended.set()
    for queue in _queues:
        supervisor = _supervisor(queue)
        with contextlib.suppress(OperationalError), transaction(supervisor.factory) as session:
            lease.gone(session, supervisor.worker)


@cache
def _supervisor(queue: Queue) -> Supervisor:
    return Supervisor(
        task_of=task_of,
        factory=make_session_factory(make_engine(settings.require_database_url())),
        broker=Broker(settings.require_redis_url()),
        settings=settings,
        queue=queue,
        worker=f"{queue}@{socket.gethostname()}:{os.getpid()}",
        should_drain=_drain.is_set,
        gpus=visible_gpus(settings) if queue == Queue.GPU else (),
    )


@app.task(name=RUN_NEXT)  # type: ignore[untyped-decorator] # celery has no types
def run_next(queue: str) -> None:
    """Carry out jobs of a queue until none is left: the message itself names none."""
    if queue == Queue.GPU:  # all its tasks load torch, which may outlast a lease on a busy machine
        import_tasks(Queue.GPU)
    supervisor = _supervisor(Queue(queue))
    while not _drain.is_set() and supervisor.run_next():
        pass
