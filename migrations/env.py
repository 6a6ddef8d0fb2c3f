"""Alembic environment: the URL comes from the caller or the settings; locks never wait long."""

from alembic import context
from sqlalchemy import create_engine, pool, text

from app.metadata import metadata
from app.settings import Settings


def run() -> None:
    attributes = context.config.attributes
    url = attributes.get("url") or Settings().require_database_url()
    seconds = float(attributes.get("lock_seconds", 5.0))
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.execute(text(f"set lock_timeout = {round(seconds * 1000)}"))
        connection.commit()
        context.configure(connection=connection, target_metadata=metadata, compare_type=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
