"""A project with everything a run needs, seen through pages and API."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.evaluations import service as evaluations
from app.jobs.models import Job
from app.projects.models import Project
from app.runs import service as runs
from app.runs.models import Run
from app.runs.schemas import RunRequest
from app.specs.jobs import JobState
from app.web.deps import Services
from tests.support import made_rows


@dataclass
class Workshop:
    """Starts runs and moves their jobs as workers would."""

    parts: Services
    project_id: int
    roles: dict[int, dict[str, int]] = field(default_factory=dict)

    def start(self, name: str = "kd", *, parent: int | None = None, **wanted: Any) -> int:
        """Start a run and return its number; `jobs(number)` are its jobs by role."""
        with self.parts.sessions.begin() as session:
            project = session.get_one(Project, self.project_id)
            spec = runs.resolve(session, project, RunRequest(name=name, **wanted))
            parent_id = None
            if parent is not None:
                parent_id = runs.get(session, project, parent).run.id
            run = evaluations.start_run(session, project, spec, owner="ada", parent_id=parent_id)
            return run.number

    def job(self, number: int, role: str) -> int:
        with self.parts.sessions.begin() as session:
            view = runs.get(session, session.get_one(Project, self.project_id), number)
            return next(phase.job.id for phase in view.phases if phase.role == role)

    def bring(self, number: int, role: str, state: JobState, **fields: Any) -> int:
        job_id = self.job(number, role)
        with self.parts.sessions.begin() as session:
            made_rows.bring_to(session, job_id, state, **fields)
        return job_id

    def succeed(self, number: int) -> None:
        for role in ("precompute", "train", "evaluate"):
            if self.state_of(number, role) not in (None, JobState.SUCCEEDED):
                self.bring(number, role, JobState.SUCCEEDED)

    def state_of(self, number: int, role: str) -> str | None:
        with self.parts.sessions.begin() as session:
            view = runs.get(session, session.get_one(Project, self.project_id), number)
            return next((p.job.state for p in view.phases if p.role == role), None)

    def run(self, session: Session, number: int) -> Run:
        return runs.get(session, session.get_one(Project, self.project_id), number).run

    def spec_of(self, job_id: int) -> dict[str, Any]:
        with self.parts.sessions.begin() as session:
            return session.get_one(Job, job_id).spec


@pytest.fixture
def workshop(parts: Services) -> Iterator[Workshop]:
    with parts.sessions.begin() as session:
        project = made_rows.project(session)
        made_rows.teacher_and_student(session, project)
        made_rows.version(session, project, parts.settings)
    return Workshop(parts, project.id)


@pytest.fixture
def pages(signed_in: TestClient, workshop: Workshop) -> TestClient:
    """A signed-in browser beside the workshop."""
    del workshop
    return signed_in
