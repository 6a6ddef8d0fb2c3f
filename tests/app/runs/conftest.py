"""A project to look at before a run starts, and what its installation did before."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.clock import now
from app.datasets.models import DatasetVersion
from app.jobs.service import JobRequest, end, enqueue
from app.projects.models import Project
from app.runs import service
from app.runs.schemas import EstimateOut
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard
from app.specs.jobs import JobKind, JobState, PrecomputeJob
from app.specs.teacher import CacheReport, CaptureProfile
from app.specs.training import RenderSpec, RunSpec, TrainingSpec
from app.teacher_cache import service as filling
from tests.support import made_rows

RENDER = RenderSpec()


class Bench:
    """A project with teacher (8,000,000 a token), student (1,000,000) and a frozen version."""

    def __init__(self, session: Session, settings: Settings, **version: Any) -> None:
        self.session, self.settings = session, settings
        self.project: Project = made_rows.project(session)
        self.teacher, self.student = made_rows.teacher_and_student(session, self.project)
        referenced = version.pop("referenced", None)
        self.version: DatasetVersion = made_rows.version(session, self.project, settings, **version)
        self.version.funnel = {**(self.version.funnel or {}), "referenced": referenced}

    def spec(self, *, student: Checkpoint | None = None, **training: Any) -> RunSpec:
        return RunSpec(
            name="kd",
            teacher_id=self.teacher.id,
            student_id=(student or self.student).id,
            dataset_version_id=self.version.id,
            training=TrainingSpec.model_validate(training),
        )

    def look(self, spec: RunSpec) -> EstimateOut:
        return service.estimate(self.session, self.project, spec, self.settings)

    def space(self) -> str:
        card = CheckpointCard.model_validate(self.teacher.card)
        return filling.space_of(card, CaptureProfile()).address

    def captured(self, *, profile: CaptureProfile | None = None, **report: Any) -> None:
        """Record a capture of the version: 70 conversations, 30 tokens each, unless changed."""
        card = CheckpointCard.model_validate(self.teacher.card)
        space = filling.space_of(card, profile or CaptureProfile())
        filling.open_space(self.session, space, teacher_id=self.teacher.id)
        job = PrecomputeJob(
            teacher_id=self.teacher.id, dataset_version_id=self.version.id, render=RENDER
        )
        values = {
            "entries": 70, "rows": 70 * 29, "new_entries": 70, "new_rows": 70 * 29,
            "bytes": 1, "seconds": 1.0, **report,
        }  # fmt: skip
        filling.captured(self.session, space.address, job, CacheReport.model_validate(values))

    def past(
        self, kind: JobKind, spec: dict[str, Any], result: dict[str, Any], *, took: float = 0
    ) -> None:
        """Record a job that succeeded, from its claim to its end in `took` seconds."""
        asked = PrecomputeJob(
            teacher_id=self.teacher.id, dataset_version_id=self.version.id, render=RENDER
        )
        job = enqueue(self.session, JobRequest(kind=kind, spec=asked, stream="x", title="past"))
        job.spec, job.result = spec, result
        job.started_at = now() - timedelta(seconds=took)
        made_rows.bring_to(self.session, job.id, JobState.RUNNING)
        end(self.session, job, JobState.SUCCEEDED)


@pytest.fixture
def bench(session: Session, settings: Settings) -> Bench:
    return Bench(session, settings)
