"""The Celery worker: `celery -A workers.tasks.worker worker -Q gpu -c 1`."""

import ctypes
import multiprocessing
import os
import signal
import socket
import threading
from functools import cache
from typing import Any

import structlog
from celery.signals import worker_process_init, worker_shutting_down
from sqlalchemy.exc import OperationalError

from app.db.session import make_engine, make_session_factory, transaction
from app.jobs import lease
from app.jobs.nudge import RUN_NEXT, Broker
from app.local.urls import settings_with_servers
from app.logs import configure_logs
from app.specs.jobs import Queue
from workers.celery_app import build
from workers.job.child import PR_SET_PDEATHSIG
from workers.job.supervisor import Supervisor
from workers.tasks.registry import task_of

ALIVE_SECONDS = 10.0
"""How often an idle worker is noted; the queue page takes it for gone after three of these."""

log = structlog.get_logger()
settings = settings_with_servers()
app = build(settings.require_redis_url())
_drain = multiprocessing.get_context("fork").Event()  # shared with the pool process it forks


@worker_shutting_down.connect  # type: ignore[untyped-decorator] # celery has no types
def _start_drain(**_: Any) -> None:
    _drain.set()


@worker_process_init.connect  # type: ignore[untyped-decorator] # celery has no types
def _prepare(**_: Any) -> None:
    # The pool process goes with its parent; its lease then runs out and the job is taken back.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    configure_logs(settings.log_format)
    threading.Thread(target=_say_alive, daemon=True).start()


def _say_alive() -> None:
    """Note every few seconds that this worker waits, so that the queue page knows it is there."""
    queues = [Queue(name) for name in app.amqp.queues.consume_from]
    waiting = True
    while waiting:
        for queue in queues:
            supervisor = _supervisor(queue)
            try:
                with transaction(supervisor.factory) as session:
                    lease.alive(session, supervisor.worker, queue, host=supervisor.host)
            except OperationalError as error:
                log.warning("worker_not_noted", error=str(error.orig))
        waiting = not _drain.wait(ALIVE_SECONDS)


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
    )


@app.task(name=RUN_NEXT)  # type: ignore[untyped-decorator] # celery has no types
def run_next(queue: str) -> None:
    """Carry out jobs of a queue until none is left: the message itself names none."""
    supervisor = _supervisor(Queue(queue))
    while not _drain.is_set() and supervisor.run_next():
        pass
