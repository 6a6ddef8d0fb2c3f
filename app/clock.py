"""The one source of wall-clock time in the web program; decisions use the database's clock."""

from datetime import UTC, datetime


def now() -> datetime:
    return datetime.now(UTC)
