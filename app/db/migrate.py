"""Bring a database to the newest schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from psycopg.errors import LockNotAvailable
from sqlalchemy.exc import OperationalError

from app.errors import Unavailable

ROOT = Path(__file__).resolve().parents[2]
LOCK_SECONDS = 5.0
"""A migration that waits for a lock makes everybody after it wait too, so it gives up early."""


class TableLocked(Unavailable):
    title = "The database is in use"


def alembic_config(url: str, *, lock_seconds: float = LOCK_SECONDS) -> Config:
    config = Config(str(ROOT / "alembic.ini"))
    config.attributes["url"] = url
    config.attributes["lock_seconds"] = lock_seconds
    return config


def upgrade(url: str, revision: str = "head", *, lock_seconds: float = LOCK_SECONDS) -> None:
    """Migrate to a revision. Errors: TableLocked where another program holds a table."""
    try:
        command.upgrade(alembic_config(url, lock_seconds=lock_seconds), revision)
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        raise TableLocked(
            f"A table of the database stayed locked for {lock_seconds:g} s, so the migration was "
            "given up and nothing changed. Stop what uses the database, then migrate again."
        ) from error


def check(url: str) -> None:
    """Raise when models and migrations disagree."""
    command.check(alembic_config(url))
