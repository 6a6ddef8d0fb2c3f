"""A worker's records carry the id of the job they are about."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from sqlalchemy.orm import Session, sessionmaker

from app.db.session import make_engine, make_session_factory
from app.logs import configure_logs
from app.settings import Settings
from tests.support.probe_tasks import ProbeTask
from tests.workers.job.test_supervisor import enqueue, supervisor


@pytest.fixture
def factory(own_database: str) -> Iterator[sessionmaker[Session]]:
    engine = make_engine(own_database)
    yield make_session_factory(engine)
    engine.dispose()


@pytest.fixture
def _restored_logs() -> Iterator[None]:
    config, handlers, level = (
        structlog.get_config(),
        logging.root.handlers[:],
        logging.root.level,
    )
    yield
    structlog.configure(**config)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.usefixtures("_restored_logs")
def test_every_record_about_a_job_names_it(
    factory: sessionmaker[Session], settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("json")
    structlog.configure(cache_logger_on_first_use=False)
    job_id = enqueue(factory, mode="kill_self")
    assert supervisor(factory, settings, ProbeTask()).run_next()
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    found = {record["event"]: record for record in records}
    claimed, lost = found["job_claimed"], found["child_lost"]
    assert (claimed["job_id"], claimed["kind"], claimed["attempt"]) == (job_id, "train", 1)
    assert (lost["job_id"], lost["level"]) == (job_id, "warning")
    assert claimed["fence"] == lost["fence"]
