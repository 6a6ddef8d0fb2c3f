"""The Celery application of the workers: one task, which looks for work in the database."""

from celery import Celery

from app.jobs.nudge import make_celery


def build(redis_url: str) -> Celery:
    """Return the application; a stop signal lets the job in hand save and go back to the queue."""
    celery = make_celery(redis_url)
    celery.conf.update(worker_soft_shutdown_timeout=60, worker_concurrency=1, worker_pool="prefork")
    return celery
