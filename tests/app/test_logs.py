"""Logs carry tracebacks without local variables, and the ids by which a request leads to its job."""

import json
from typing import Any

import pytest
import structlog
from starlette.testclient import TestClient

from app.checkpoints import service as checkpoints
from app.checkpoints.schemas import CheckpointAdd
from app.logs import configure_logs
from app.projects import service as projects
from app.projects.schemas import ProjectCreate
from app.specs.checkpoint import HubSource
from app.web.deps import Services


def _fail(password: str) -> None:
    raise ValueError(f"a password of {len(password)} characters")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_traceback_without_locals(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(log_format)  # type: ignore[arg-type] # parametrised over the two words
    try:
        _fail("hunter2hunter2")
    except ValueError:
        structlog.get_logger("probe").exception("unhandled", request_id="r1")
    text = capsys.readouterr().err
    assert "a password of 14 characters" in text
    assert "_fail" in text
    assert "hunter2hunter2" not in text.replace('_fail("hunter2hunter2")', "").replace(
        '_fail(\\"hunter2hunter2\\")', ""
    )
    if log_format == "json":
        assert json.loads(text)["request_id"] == "r1"


def json_records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_request_that_enqueues_a_job_names_both(
    api_client: TestClient, parts: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    with parts.sessions.begin() as session:
        project = projects.create(session, ProjectCreate(name="Routing"), owner_id=None)
        data = CheckpointAdd(name="big", source=HubSource(repo_id="owner/big"))
        added = checkpoints.register(session, project, data, settings=parts.settings, owner="ada")
        job_id = added.job_id
    api_client.post(f"/api/v1/jobs/{job_id}/cancel")
    configure_logs("json")
    structlog.configure(cache_logger_on_first_use=False)
    capsys.readouterr()
    answer = api_client.post(f"/api/v1/jobs/{job_id}/retry", headers={"X-Request-ID": "r" * 16})
    assert answer.status_code == 201, answer.text
    records = {record["event"]: record for record in json_records(capsys)}
    enqueued, request = records["job_enqueued"], records["request"]
    assert (enqueued["request_id"], enqueued["job_id"]) == ("r" * 16, answer.json()["id"])
    assert (enqueued["parent_id"], enqueued["level"]) == (job_id, "info")
    assert (request["request_id"], request["status"]) == ("r" * 16, 201)
