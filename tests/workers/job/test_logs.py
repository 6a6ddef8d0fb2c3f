"""A worker's records carry the id of the job they are about."""

import json

import pytest
import structlog
from sqlalchemy.orm import Session, sessionmaker

from app.logs import configure_logs
from app.settings import Settings
from tests.support.probe_tasks import ProbeTask
from tests.workers.job.test_supervisor import enqueue, supervisor


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
