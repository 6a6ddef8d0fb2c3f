"""Services shared by the whole test run, and a transaction per test that is rolled back."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from app import metadata  # noqa: F401 - rows refer to tables of every domain
from app.db.migrate import upgrade
from app.db.session import make_engine, make_session_factory
from app.local.postgres import TEST_OPTIONS, Postgres
from app.local.valkey import Valkey
from app.settings import Settings


@pytest.fixture(scope="session")
def servers() -> Iterator[tuple[Postgres, Valkey]]:
    """One embedded Postgres and one Valkey for the run; the template database is migrated."""
    with tempfile.TemporaryDirectory(prefix="sh-") as folder:
        postgres = Postgres(Path(folder) / "pg", options=TEST_OPTIONS)
        valkey = Valkey.fresh(Path(folder) / "valkey", durable=False)
        postgres.start()
        try:
            valkey.start()
            upgrade(postgres.url())
            postgres.create_database("stillhouse_template", template="stillhouse")
            yield postgres, valkey
        finally:
            valkey.stop()
            postgres.stop()


@pytest.fixture(scope="session")
def engine(servers: tuple[Postgres, Valkey]) -> Iterator[Engine]:
    """The shared database: tests that only use `session` leave nothing in it."""
    engine = make_engine(servers[0].url())
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session inside an outer transaction: commits become savepoints, all is rolled back."""
    with engine.connect() as connection:
        outer = connection.begin()
        session = Session(
            connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
        )
        yield session
        session.close()
        outer.rollback()


@pytest.fixture
def own_database(servers: tuple[Postgres, Valkey], request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of the test's own (cloned in 0.05 s), for tests with several connections."""
    name = f"t_{abs(hash(request.node.nodeid)):x}"
    servers[0].create_database(name, template="stillhouse_template")
    yield servers[0].url(name)


@pytest.fixture
def factory(own_database: str) -> Iterator[sessionmaker[Session]]:
    """Sessions on a database of the test's own."""
    engine = make_engine(own_database)
    yield make_session_factory(engine)
    engine.dispose()


@pytest.fixture(autouse=True)
def _restored_logs() -> Iterator[None]:
    """Put back what a test changes of logging: a handler left behind writes to a closed stream."""
    config, handlers, level = (
        structlog.get_config(),
        logging.root.handlers[:],
        logging.root.level,
    )
    yield
    structlog.configure(**config)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def settings(servers: tuple[Postgres, Valkey], tmp_path: Path) -> Settings:
    """Settings of a home in a temporary folder, on the shared servers."""
    return Settings(
        home=tmp_path / "home",
        database_url=servers[0].url(),
        redis_url=servers[1].url,
        allowed_hosts=("testserver", "127.0.0.1", "localhost"),
        log_format="console",
    )
