"""`python -m workers.tasks.ready QUEUE`: exits 0 while a worker of this host and queue is seen."""

import socket
import sys

from sqlalchemy import text

from app.db.session import make_engine
from app.local.urls import settings_with_servers
from app.specs.jobs import Queue

SEEN = text(
    "select count(*) from workers where host = :host and queue = :queue "
    "and seen_at > clock_timestamp() - interval '45 seconds'"
)


def is_ready(url: str, queue: Queue) -> bool:
    """Return whether a worker of this host beat within the last 45 seconds."""
    engine = make_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            seen = connection.scalar(SEEN, {"host": socket.gethostname(), "queue": queue})
            return bool(seen)
    finally:
        engine.dispose()


if __name__ == "__main__":
    url = settings_with_servers().require_database_url()
    sys.exit(0 if is_ready(url, Queue(sys.argv[1])) else 1)
