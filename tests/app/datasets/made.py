"""Made uploads and versions, with the ingest jobs carried out in process."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.datasets import service
from app.datasets.models import DatasetVersion, Upload
from app.datasets.schemas import ImportRequest
from app.jobs.lease import Claim
from app.jobs.models import Job
from app.jobs.service import end
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import ProjectCreate
from app.settings import Settings
from app.specs.jobs import JobKind, JobState
from app.storage.uploads import Appender
from app.web.deps import Services
from workers.job.task import BodyContext
from workers.sinks import PipeCallbacks
from workers.tasks import ingest


def line(n: int, answer: str = "answer {n}") -> bytes:
    user = {"role": "user", "content": f"question {n}"}
    told = {"role": "assistant", "content": answer.format(n=n)}
    return json.dumps({"messages": [user, told]}).encode() + b"\n"


BODY = b"".join(line(n) for n in range(120)) + b"not json\n"


def stored(
    session: Session,
    project: Project,
    settings: Settings,
    body: bytes = BODY,
    name: str = "log.jsonl",
) -> Upload:
    """Store an upload; it waits for its look."""
    upload = service.start_upload(
        session, project, filename=name, size=len(body), settings=settings
    )
    appender = Appender(service.upload_path(settings, upload.key), 0, len(body))
    appender.write(body)
    appender.close()
    sha = service.hash_upload(settings, upload.key)
    return service.finish_upload(session, upload.id, sha256=sha, owner="admin")


def work(session: Session, job_id: int | None, settings: Settings, tmp_path: Path) -> None:
    """Carry out a job as the supervisor does, with a pipe that goes nowhere."""
    job = session.get(Job, job_id)
    assert job is not None
    held = Claim(job.id, 7, job.kind, job.spec, job.stream, 1, ())
    task = ingest.TASKS[JobKind(job.kind)]
    inputs = task.load(session, job.spec, settings)
    workdir = tmp_path / f"work-{job.id}"
    workdir.mkdir()
    context = BodyContext(workdir, settings.blobs, (), PipeCallbacks(io.BytesIO()))
    task.apply(session, held, task.run(inputs, context), settings)
    finish(session, job, JobState.SUCCEEDED)


def finish(session: Session, job: Job, state: JobState, message: str | None = None) -> None:
    """End a waiting job as a worker would."""
    for step in (JobState.STARTING, JobState.RUNNING):
        job.state = step
        session.flush()
    end(session, job, state, error="lost" if message else None, message=message)


def inspected(
    session: Session,
    project: Project,
    settings: Settings,
    tmp_path: Path,
    body: bytes = BODY,
    name: str = "log.jsonl",
) -> Upload:
    upload = stored(session, project, settings, body, name)
    work(session, upload.job_id, settings, tmp_path)
    return upload


def imported(
    session: Session,
    project: Project,
    settings: Settings,
    tmp_path: Path,
    body: bytes = BODY,
    **request: object,
) -> DatasetVersion:
    """Import a body into the next version of `traffic`: a draft."""
    upload = inspected(session, project, settings, tmp_path, body)
    wanted = {"dataset": "traffic", "upload_ids": [upload.id], **request}
    version = service.start_import(
        session, project, ImportRequest.model_validate(wanted), owner="admin"
    )
    work(session, version.job_id, settings, tmp_path)
    return version


class Made:
    """A project of the app's own database, and its rows in short transactions."""

    def __init__(self, parts: Services, tmp_path: Path) -> None:
        self.parts, self.tmp_path = parts, tmp_path
        with parts.sessions.begin() as session:
            projects.create(session, ProjectCreate(name="Routing"), owner_id=None)

    @property
    def settings(self) -> Settings:
        return self.parts.settings

    @contextmanager
    def session(self) -> Iterator[tuple[Session, Project]]:
        with self.parts.sessions.begin() as session:
            yield session, session.query(Project).one()

    def upload(self, body: bytes = BODY, name: str = "log.jsonl") -> int:
        with self.session() as (session, project):
            return inspected(session, project, self.settings, self.tmp_path, body, name).id

    def version(self, body: bytes = BODY, **request: Any) -> int:
        with self.session() as (session, project):
            return imported(session, project, self.settings, self.tmp_path, body, **request).id

    def importing(self) -> int:
        """Ask for an import that no worker takes."""
        upload_id = self.upload()
        with self.session() as (session, project):
            wanted = ImportRequest(dataset="traffic", upload_ids=[upload_id])
            return service.start_import(session, project, wanted, owner="ada").id

    def job_of(self, version_id: int) -> int:
        with self.session() as (session, _):
            found = session.get_one(DatasetVersion, version_id).job_id
        assert found is not None
        return found
