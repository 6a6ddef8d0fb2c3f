"""Runs that have been trained and evaluated, by the services' own path but without weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.datasets.models import DatasetVersion
from app.evaluations import service
from app.evaluations.models import Evaluation
from app.events.append import add_points
from app.jobs.models import Job
from app.projects.models import Project
from app.runs.models import Run, RunJob
from app.settings import Settings
from app.specs.evaluation import EvaluationReport, MetricSums
from app.specs.jobs import JobKind, JobState
from app.specs.training import RunSpec, TrainingSpec
from tests.support import made_rows

N = 100
TEACHER_RIGHT = 95


@dataclass
class World:
    """A project with a teacher, a student and a frozen version."""

    session: Session
    settings: Settings
    project: Project
    teacher: Checkpoint
    student: Checkpoint
    version: DatasetVersion
    folder: Path
    answers: dict[int, str] = field(default_factory=dict)
    """Predictions that replace the made ones, by conversation."""
    ids: dict[int, str] = field(default_factory=dict)
    """Ids that replace the made ones: of conversations that the version has."""

    @classmethod
    def make(cls, session: Session, settings: Settings, folder: Path) -> "World":
        project = made_rows.project(session)
        teacher, student = made_rows.teacher_and_student(session, project)
        version = made_rows.version(session, project, settings)
        return cls(session, settings, project, teacher, student, version, folder)

    def start(
        self,
        name: str,
        alpha: float = 0.7,
        *,
        target: str = "logged",
        group: str | None = "g1",
        version: DatasetVersion | None = None,
        seed: int = 0,
        **objective: Any,
    ) -> Run:
        kind = "forward_kl" if alpha else "ce"
        training = TrainingSpec.model_validate(
            {
                "objective": {"kind": kind, "alpha": alpha, "ce_target": target, **objective},
                "render": {"answer": target},
                "seed": seed,
            }
        )
        spec = RunSpec(
            name=name,
            teacher_id=self.teacher.id,
            student_id=self.student.id,
            dataset_version_id=(version or self.version).id,
            training=training,
            group=group,
        )
        return service.start_run(self.session, self.project, spec, owner="ada")

    def evaluate(self, evaluation: Evaluation, right: int, n: int = N) -> Evaluation:
        """Let an evaluation end with the first `right` of n answers right, one a cluster."""
        report = EvaluationReport(
            conversations=n,
            clusters=tuple(f"g{i:04}" for i in range(n)),
            metrics=metrics(right, n, is_teacher=evaluation.role == "teacher"),
            seconds=12.0,
            generated_tokens=9 * n,
        )
        path = self.folder / f"{evaluation.id}.parquet"
        write_examples(path, right, n, self.answers, self.ids)
        service.done(self.session, evaluation.id, report, path, self.settings)
        if evaluation.job_id is not None:
            made_rows.bring_to(self.session, evaluation.job_id, JobState.SUCCEEDED)
        return evaluation

    def finish(self, run: Run, right: int, n: int = N) -> Evaluation:
        """Let a run's jobs succeed and its evaluation end."""
        for job in self.jobs(run):
            if job.kind != JobKind.EVALUATE and not JobState(job.state).terminal:
                made_rows.bring_to(self.session, job.id, JobState.SUCCEEDED)
        return self.evaluate(self.of_run(run), right, n)

    def anchors(self, teacher: int = TEACHER_RIGHT, undistilled: int = 0, n: int = N) -> None:
        """Let the newest set's teacher and undistilled student be evaluated."""
        for role, right in (("teacher", teacher), ("undistilled", undistilled)):
            row = self.session.scalars(
                select(Evaluation)
                .where(
                    Evaluation.project_id == self.project.id,
                    Evaluation.role == role,
                    Evaluation.state == "pending",
                )
                .order_by(Evaluation.id.desc())
            ).first()
            if row is not None:
                self.evaluate(row, right, n)

    def curve(self, run: Run, name: str, values: Sequence[float]) -> None:
        """Give a run's training a curve, from step 1 on."""
        (job,) = (j for j in self.jobs(run) if j.kind == JobKind.TRAIN)
        steps = {step: {name: value} for step, value in enumerate(values, 1)}
        add_points(self.session, job.stream, job_id=job.id, fence=1, steps=steps)

    def jobs(self, run: Run) -> Sequence[Job]:
        found = select(Job).join(RunJob, RunJob.job_id == Job.id).where(RunJob.run_id == run.id)
        return self.session.scalars(found.order_by(Job.id)).all()

    def runs(self, *names: str) -> list[Run]:
        found = self.session.scalars(select(Run).where(Run.project_id == self.project.id)).all()
        by_name = {run.name: run for run in found}
        return [by_name[name] for name in names]

    def all_evaluations(self) -> Sequence[Evaluation]:
        return self.session.scalars(
            select(Evaluation).where(Evaluation.project_id == self.project.id)
        ).all()

    def of_run(self, run: Run) -> Evaluation:
        return self.session.scalars(select(Evaluation).where(Evaluation.run_id == run.id)).one()


def metrics(right: int, n: int, *, is_teacher: bool = False) -> tuple[MetricSums, ...]:
    """Return every metric; a wrong answer has field F1 .5, KL .2 a token, 8 of 10 tokens agree."""
    hits = [1.0] * right + [0.0] * (n - right)
    ones, tens = (1.0,) * n, (10.0,) * n

    def sums(metric: str, values: Sequence[float], counts: tuple[float, ...]) -> MetricSums:
        return MetricSums(metric=metric, sums=tuple(values), counts=counts, n=n)

    return (
        sums("exact_match", hits, ones),
        sums("field_f1", [0.5 + h / 2 for h in hits], ones),
        sums("kl", [0.0 if is_teacher else 0.1 + 2 * (1 - h) for h in hits], tens),
        sums("agreement", [10.0 if is_teacher else 8 + 2 * h for h in hits], tens),
        sums("ece", [0.1 - 0.05 * h for h in hits], ones),
        MetricSums(
            metric="tokens_per_second",
            sums=(160.0, 170.0, 150.0),
            counts=(1.0, 1.0, 1.0),
            n=3,
            paired=False,
        ),
    )


def write_examples(
    path: Path, right: int, n: int, answers: dict[int, str], ids: dict[int, str]
) -> None:
    """Write what an evaluation writes, with the same columns."""
    truth = [f'{{"queue": "lost", "order": {i}}}' for i in range(n)]
    wrong = [f'{{"queue": "claim", "order": {i}}}' for i in range(n)]
    hits = [i < right and i not in answers for i in range(n)]
    predictions = [answers.get(i, truth[i] if hits[i] else wrong[i]) for i in range(n)]
    columns: dict[str, Any] = {
        "conversation_id": [ids.get(i, f"c{i:04}") for i in range(n)],
        "group": [f"g{i:04}" for i in range(n)],
        "prompt_tail": [f"Where is parcel {i}" for i in range(n)],
        "prediction": predictions,
        "truth": truth,
        "truth_kind": ["reference"] * n,
        "teacher_answer": truth,
        "exact_match": hits,
        "field_f1": [1.0 if hit else 0.5 for hit in hits],
        "kl": [0.01 if hit else 0.21 for hit in hits],
        "agreement": [1.0 if hit else 0.8 for hit in hits],
        "confidence": [0.95 if hit else 0.6 for hit in hits],
        "tokens": pa.array([9] * n, pa.int32()),
        "finish_reason": ["stop"] * n,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
