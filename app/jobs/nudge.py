"""Signals over the broker: wake viewers, nudge workers. A lost one only costs a little time."""

from collections.abc import Iterable

import redis
import structlog
from celery import Celery
from kombu.entity import Queue as KombuQueue
from kombu.exceptions import OperationalError

from app.db.hooks import Signal
from app.events.follow import CHANNEL
from app.specs.jobs import Queue

log = structlog.get_logger()
RUN_NEXT = "stillhouse.run_next"
NUDGE_EXPIRES_SECONDS = 30


def make_celery(redis_url: str) -> Celery:
    """Build the one Celery configuration of both programs: acked early, no results, no beat."""
    celery = Celery("stillhouse", broker=redis_url)
    celery.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        task_queues=[KombuQueue(q.value) for q in Queue],  # type: ignore[no-untyped-call] # no types
        task_serializer="json",
        accept_content=["json"],
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,  # through its proxy our log handler writes nothing
        broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 5},
    )
    return celery


class Broker:
    """Sends what a committed transaction asked for. Rows are the truth, so errors are logged."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=5)
        self._celery = make_celery(redis_url)

    def send(self, signals: Iterable[Signal]) -> None:
        for kind, name in signals:
            try:
                if kind == "wake":
                    self._redis.publish(CHANNEL + name, b"")
                else:
                    self.nudge(Queue(name))
            except (redis.RedisError, OperationalError, OSError) as error:
                log.warning("signal_not_sent", kind=kind, name=name, error=str(error))

    def nudge(self, queue: Queue) -> None:
        """Tell one worker of the queue to look for work."""
        self._celery.send_task(
            RUN_NEXT, args=[queue.value], queue=queue.value, expires=NUDGE_EXPIRES_SECONDS
        )

    def waiting(self, queue: Queue) -> int:
        """Return how many nudges lie unread."""
        return int(self._redis.llen(queue.value))

    def ping(self) -> bool:
        try:
            return bool(self._redis.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        self._redis.close()
        self._celery.close()
