"""The Celery application of the workers: one task, which looks for work in the database."""

from celery import Celery

from app.jobs.nudge import make_celery


def build(redis_url: str) -> Celery:
    """Return the application.

    SIGTERM is Celery's warm shutdown, which waits for the task in hand. The supervisor bounds that:
    it sees the drain flag, lets the job save within `keep_seconds`, and gives it back. (Celery's
    soft shutdown sleeps its whole timeout whenever a task was running, even when it has ended.)
    """
    celery = make_celery(redis_url)
    celery.conf.update(worker_concurrency=1, worker_pool="prefork")
    return celery
