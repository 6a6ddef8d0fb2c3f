"""Jobs over REST: what is shown, cancel, retry of each kind's subject, constant queries."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response
from starlette.testclient import TestClient

from app.checkpoints import service as checkpoints
from app.checkpoints.models import Checkpoint
from app.checkpoints.schemas import CheckpointAdd
from app.clock import now
from app.dashboard import api
from app.datasets.models import Dataset, DatasetVersion
from app.evaluations.models import Evaluation
from app.events.append import append
from app.jobs import lease
from app.jobs.models import Job, Worker
from app.jobs.service import JobRequest, enqueue
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import ProjectCreate
from app.specs.base import Spec
from app.specs.checkpoint import HubSource
from app.specs.evaluation import EvaluationSpec
from app.specs.events import ErrorEvent
from app.specs.jobs import EvaluateJob, FreezeJob, ImportJob, JobKind, JobState, Queue
from app.specs.training import RenderSpec
from app.web.deps import Services
from tests.support import seeds

JOBS = "/api/v1/jobs"
HUB = HubSource(repo_id="owner/big")


@pytest.fixture
def project(parts: Services) -> Project:
    with parts.sessions.begin() as session:
        return projects.create(session, ProjectCreate(name="Routing"), owner_id=None)


def ask(session: Session, project: Project, kind: JobKind, spec: Spec, title: str = "Do it") -> Job:
    request = JobRequest(kind, spec, f"{kind}:1", title, project_id=project.id, owner="ada")
    return enqueue(session, request)


def fail(session: Session, queue: Queue = Queue.CPU) -> None:
    held = lease.claim(session, queue, worker="w", host="h", lease_seconds=30)
    assert held is not None
    lease.fail(session, held, ErrorEvent(error="bad", message="It broke."))


def register(session: Session, project: Project, parts: Services) -> Checkpoint:
    data = CheckpointAdd(name="big", source=HUB, token="hf_canary")
    return checkpoints.register(session, project, data, settings=parts.settings, owner="ada")


def test_jobs_are_listed_filtered_and_shown(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        ask(session, project, JobKind.FREEZE, FreezeJob(dataset_version_id=1), "Freeze A")
        fail(session)
        second = ask(session, project, JobKind.FREEZE, FreezeJob(dataset_version_id=2), "Freeze B")
    found = api_client.get(JOBS).json()
    assert [job["title"] for job in found] == ["Freeze B", "Freeze A"]
    assert (found[0]["state"], found[0]["position"], found[0]["project"]) == (
        "queued",
        1,
        "routing",
    )
    assert (found[1]["error"], found[1]["message"]) == ("bad", "It broke.")
    assert [j["title"] for j in api_client.get(JOBS, params={"state": "failed"}).json()] == [
        "Freeze A"
    ]
    assert len(api_client.get(JOBS, params={"project": "routing", "limit": 1}).json()) == 1
    assert api_client.get(f"{JOBS}/{second.id}").json()["owner"] == "ada"
    assert api_client.get(JOBS, params={"project": "none"}).status_code == 404
    assert api_client.get(JOBS, params={"state": "lost"}).status_code == 422
    assert api_client.get(f"{JOBS}/999").json()["message"] == "There is no job 999."


def test_a_job_is_read_and_followed_alone(
    api_client: TestClient, parts: Services, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with parts.sessions.begin() as session:
        job = ask(session, project, JobKind.FREEZE, FreezeJob(dataset_version_id=1), "Freeze A")
        append(session, job.stream, "log", {"level": "warning", "text": "slow"}, job_id=job.id)
        append(session, job.stream, "log", {"text": "another job's"}, job_id=None)
    lines = api_client.get(f"{JOBS}/{job.id}/log").json()["lines"]
    assert [(line["level"], line["text"]) for line in lines] == [("warning", "slow")]
    assert api_client.get(f"{JOBS}/999/log").status_code == 404
    asked: list[tuple[str, int]] = []

    def stream(_request: object, name: str, *, after: int, **_rest: object) -> Response:
        asked.append((name, after))
        return Response()

    monkeypatch.setattr(api, "event_stream", stream)
    assert api_client.get(f"{JOBS}/{job.id}/events", params={"after": 7}).status_code == 200
    assert asked == [(job.stream, 7)]
    assert api_client.get(f"{JOBS}/999/events").status_code == 404


def test_workers_are_listed_as_the_queue_has_them(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        ask(session, project, JobKind.FREEZE, FreezeJob(dataset_version_id=1), "Freeze A")
        held = lease.claim(session, Queue.CPU, worker="cpu-1", host="h", lease_seconds=30)
        assert held is not None
        old = now() - timedelta(seconds=90)
        session.add(Worker(name="cpu-1", queue="cpu", host="h", job_id=held.job_id))
        session.add(Worker(name="gpu-1", queue="gpu", host="h", device="H100", seen_at=old))
    busy, gone = api_client.get("/api/v1/workers").json()
    assert (busy["name"], busy["state"], busy["job_title"]) == ("cpu-1", "busy", "Freeze A")
    assert (gone["name"], gone["state"], gone["device"]) == ("gpu-1", "gone", "H100")
    assert gone["age_seconds"] >= 90


def test_a_waiting_job_is_cancelled_at_once_and_its_secret_goes(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        row = register(session, project, parts)
    secret = checkpoints.token_file(parts.settings, row.id)
    assert secret.exists()
    answer = api_client.post(f"{JOBS}/{row.job_id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert not secret.exists()
    assert api_client.post(f"{JOBS}/{row.job_id}/cancel").status_code == 409


def test_a_working_job_is_asked_to_stop(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        job = ask(session, project, JobKind.FREEZE, FreezeJob(dataset_version_id=1))
        lease.claim(session, Queue.CPU, worker="w", host="h", lease_seconds=30)
    answer = api_client.post(f"{JOBS}/{job.id}/cancel", json={"mode": "keep"}).json()
    assert (answer["state"], answer["reason"]) == ("cancelling", "Stopping; what it has is saved.")
    assert api_client.post(f"{JOBS}/{job.id}/cancel", json={"mode": "x"}).status_code == 422


def test_a_retry_lets_the_new_job_fill_the_checkpoint(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        row = register(session, project, parts)
        fail(session)
    answer = api_client.post(f"{JOBS}/{row.job_id}/retry")
    assert answer.status_code == 201
    again = answer.json()
    assert (again["parent_id"], again["state"]) == (row.job_id, "queued")
    with parts.sessions() as session:
        found = session.get(Checkpoint, row.id)
        assert found is not None
        assert (found.state, found.error, found.job_id) == ("registering", None, again["id"])
    second = api_client.post(f"{JOBS}/{row.job_id}/retry")
    assert second.status_code == 409
    assert "already" in second.json()["message"]


def test_a_retry_of_an_import_makes_its_version_wait_again(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        data = Dataset(project_id=project.id, name="traffic")
        version = DatasetVersion(dataset=data, number=1, state="failed", import_spec={}, notes="")
        version.error = "It broke."
        session.add(version)
        session.flush()
        spec = ImportJob(dataset_version_id=version.id, upload_ids=(1,))
        job = ask(session, project, JobKind.IMPORT, spec)
        version.job_id = job.id
        fail(session)
    again = api_client.post(f"{JOBS}/{job.id}/retry").json()
    with parts.sessions() as session:
        found = session.get(DatasetVersion, version.id)
        assert found is not None
        assert (found.state, found.error, found.job_id) == ("importing", None, again["id"])


def test_a_retry_of_an_evaluation_makes_it_pending(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        data = Dataset(project_id=project.id, name="traffic")
        version = DatasetVersion(dataset=data, number=1, state="frozen", import_spec={}, notes="")
        session.add(version)
        session.flush()
        row = Evaluation(
            project_id=project.id,
            role="teacher",
            name="teacher",
            state="failed",
            dataset_version_id=version.id,
            spec={},
            spec_hash="",
            set_key="k",
        )
        session.add(row)
        session.flush()
        spec = EvaluateJob(
            evaluation_id=row.id,
            checkpoint_id=None,
            teacher_id=None,
            dataset_version_id=version.id,
            render=RenderSpec(),
            evaluation=EvaluationSpec(),
        )
        job = ask(session, project, JobKind.EVALUATE, spec)
        row.job_id = job.id
        fail(session, Queue.GPU)
    again = api_client.post(f"{JOBS}/{job.id}/retry").json()
    with parts.sessions() as session:
        found = session.get(Evaluation, row.id)
        assert found is not None
        assert (found.state, found.job_id) == ("pending", again["id"])


def test_a_job_of_a_run_starts_the_whole_run_again(
    api_client: TestClient, parts: Services, project: Project
) -> None:
    with parts.sessions.begin() as session:
        run = seeds.run(session, project, 3, state=JobState.FAILED)
        job = session.scalar(select(Job).where(Job.stream == f"run:{run.id}"))
        assert job is not None
    answer = api_client.post(f"{JOBS}/{job.id}/retry")
    assert answer.status_code == 201
    assert (answer.json()["parent_id"], answer.json()["state"]) == (job.id, "queued")
    assert api_client.get("/api/v1/projects/routing/runs/3").json()["state"] == "queued"
    assert api_client.post(f"{JOBS}/{job.id}/retry").status_code == 409


def test_the_list_takes_the_same_queries_however_long(
    api_client: TestClient,
    parts: Services,
    project: Project,
    count_queries: Callable[[Callable[[], object]], int],
) -> None:
    counts = []
    for _ in range(2):
        with parts.sessions.begin() as session:
            for number in range(10):
                first = ask(session, project, JobKind.FREEZE, FreezeJob(dataset_version_id=number))
                spec = FreezeJob(dataset_version_id=number)
                enqueue(
                    session, JobRequest(JobKind.FREEZE, spec, "v:1", "B", depends_on=[first.id])
                )
        counts.append(count_queries(lambda: api_client.get(JOBS)))
    assert counts[0] == counts[1]
    assert counts[0] <= 8
