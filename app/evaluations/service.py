"""Ask for evaluations, keep what they measured, compare those of one set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.models import DatasetVersion
from app.errors import Conflict, NotFound
from app.evaluations.models import Evaluation, EvaluationMetric
from app.jobs.endings import when_unfinished
from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue
from app.metrics.comparison import Comparison, EvaluationRole, EvaluationRow, compare
from app.metrics.statistics import ClusterSums
from app.projects.models import Project
from app.projects.service import shown_tolerance
from app.runs import service as runs
from app.runs.models import Run
from app.runs.queries import RunView
from app.settings import Settings
from app.specs.evaluation import EvaluationReport, MetricSums
from app.specs.fingerprint import fingerprint
from app.specs.jobs import EvaluateJob, JobKind, JobState
from app.specs.training import RenderSpec, RunSpec
from app.storage.blobs import LocalBlobs


def start_run(
    session: Session,
    project: Project,
    spec: RunSpec,
    *,
    owner: str,
    owner_id: int | None = None,
    parent_id: int | None = None,
) -> Run:
    """Start a run and what a table needs beside it: teacher and undistilled student, once a set."""
    run, training = runs.start(
        session, project, spec, owner=owner, owner_id=owner_id, parent_id=parent_id
    )
    own = _Asked(run.role, run.name, None, training)
    made = _ask(session, run, spec, own, owner=owner)
    runs.link(session, run, made, "evaluate")
    for role, checkpoint_id in (("teacher", spec.teacher_id), ("undistilled", spec.student_id)):
        if checkpoint_id is not None and spec.role != "fine_tune":
            _ask(session, run, spec, _Asked(role, role, checkpoint_id, None), owner=owner)
    return run


def retry_run(session: Session, view: RunView, *, owner: str) -> None:
    """Try again what a run's failed or cancelled jobs left undone; its evaluation waits anew."""
    for job in runs.retry(session, view, owner=owner):
        if job.kind == JobKind.EVALUATE:
            row = session.get_one(Evaluation, job.spec["evaluation_id"])
            row.state, row.job_id = "pending", job.id
    session.flush()


def set_key(session: Session, spec: RunSpec) -> str:
    """Return what an evaluation's set is: only rows with equal keys are compared."""
    version = session.get(DatasetVersion, spec.dataset_version_id)
    if version is None or version.content_sha256 is None:
        raise Conflict("The dataset version is not frozen: freeze it before it is evaluated on.")
    render = _render(spec).model_dump(mode="json")
    evaluation = spec.evaluation.model_dump(mode="json")
    return fingerprint([version.content_sha256, evaluation, render, spec.teacher_id])


def _render(spec: RunSpec) -> RenderSpec:
    """Every row of a table is measured on the logged answers, whatever a run trained on."""
    return spec.training.render.model_copy(update={"answer": "logged"})


@dataclass(frozen=True, slots=True)
class _Asked:
    """One row of the table to be; without a checkpoint it is the run's own, after its training."""

    role: str
    name: str
    checkpoint_id: int | None
    after: Job | None


def _ask(session: Session, run: Run, spec: RunSpec, asked: _Asked, *, owner: str) -> Job:
    role, name, checkpoint_id, after = asked.role, asked.name, asked.checkpoint_id, asked.after
    key = set_key(session, spec)
    if checkpoint_id is not None:
        known = _known_job(session, run.project_id, checkpoint_id, key)
        if known is not None:
            return known
    row = Evaluation(
        project_id=run.project_id,
        checkpoint_id=checkpoint_id,
        run_id=run.id if checkpoint_id is None else None,
        role=role,
        name=name,
        teacher_id=spec.teacher_id,
        dataset_version_id=spec.dataset_version_id,
        spec=spec.evaluation.model_dump(mode="json"),
        spec_hash=fingerprint(spec.evaluation),
        set_key=key,
        state="pending",
    )
    session.add(row)
    session.flush()
    job = enqueue(
        session,
        JobRequest(
            kind=JobKind.EVALUATE,
            spec=EvaluateJob(
                evaluation_id=row.id,
                checkpoint_id=checkpoint_id,
                run_id=row.run_id,
                teacher_id=spec.teacher_id,
                dataset_version_id=spec.dataset_version_id,
                render=_render(spec),
                evaluation=spec.evaluation,
            ),
            # Teacher and undistilled student belong to every run of the set: not to one's page.
            stream=runs.stream_of(run.id) if row.run_id else f"evaluation:{row.id}",
            title=f"Evaluate {name}",
            project_id=run.project_id,
            owner=owner,
            depends_on=[after.id] if after is not None else [],
        ),
    )
    row.job_id = job.id
    session.flush()
    return job


def _known_job(session: Session, project_id: int, checkpoint_id: int, key: str) -> Job | None:
    """Return the job that evaluates a checkpoint on a set already, or did."""
    return session.scalar(
        select(Job)
        .join(Evaluation, Evaluation.job_id == Job.id)
        .where(
            Evaluation.project_id == project_id,
            Evaluation.checkpoint_id == checkpoint_id,
            Evaluation.set_key == key,
            Evaluation.state != "failed",
            Job.state.not_in((JobState.FAILED, JobState.CANCELLED)),
        )
        .order_by(Job.id.desc())
        .limit(1)
    )


def done(
    session: Session,
    evaluation_id: int,
    report: EvaluationReport,
    examples: Path,
    settings: Settings,
) -> None:
    """Keep the sums per cluster and the per-example file."""
    row = session.get(Evaluation, evaluation_id)
    if row is None:
        raise NotFound("The evaluation was removed while it ran.")
    blob = f"evaluations/{evaluation_id}/examples.parquet"
    LocalBlobs(settings.blobs).put_file(examples, blob)
    row.state, row.examples_blob = "done", blob
    row.conversations, row.seconds = report.conversations, report.seconds
    row.clusters_sha256 = fingerprint(list(report.clusters))
    if row.run_id is not None:
        run = session.get(Run, row.run_id)
        row.checkpoint_id = run.checkpoint_id if run else None
    session.add_all(_metric(evaluation_id, sums) for sums in report.metrics)
    session.flush()


def _metric(evaluation_id: int, sums: MetricSums) -> EvaluationMetric:
    total = sum(sums.counts)
    return EvaluationMetric(
        evaluation_id=evaluation_id,
        metric=sums.metric,
        slice="all",
        value=sum(sums.sums) / total if total else 0.0,
        n=sums.n,
        excluded=sums.excluded,
        paired=sums.paired,
        sums=np.asarray(sums.sums, np.float64).tobytes(),
        counts=np.asarray(sums.counts, np.float64).tobytes(),
    )


@when_unfinished(JobKind.EVALUATE)
def unfinished(session: Session, spec: dict[str, Any], message: str) -> None:
    del message  # the job's own state says it
    row = session.get(Evaluation, spec["evaluation_id"])
    if row is not None and row.state != "done":
        row.state = "failed"
        session.flush()


def rows_of(session: Session, evaluations: Sequence[Evaluation]) -> list[EvaluationRow]:
    """Return evaluations as the rows that `compare` takes."""
    found = session.scalars(
        select(EvaluationMetric).where(
            EvaluationMetric.evaluation_id.in_([e.id for e in evaluations]),
            EvaluationMetric.slice == "all",
        )
    ).all()
    sums: dict[int, dict[str, ClusterSums]] = {e.id: {} for e in evaluations}
    for metric in found:
        sums[metric.evaluation_id][metric.metric] = ClusterSums(
            np.frombuffer(metric.sums, np.float64),
            np.frombuffer(metric.counts, np.float64),
            metric.n,
            metric.excluded,
            metric.paired,
        )
    return [
        EvaluationRow(
            e.name,
            cast("EvaluationRole", e.role),
            sums[e.id],
            e.dataset_version_id,
            f"{e.set_key}:{e.clusters_sha256}",
        )
        for e in evaluations
    ]


def compare_group(session: Session, project: Project, group: str | None) -> Comparison:
    """Compare a group's finished runs with their anchors (group None: the newest run's)."""
    newest = select(Run).where(Run.project_id == project.id).order_by(Run.number.desc()).limit(1)
    if group is None:
        run = session.scalar(newest)
        group = run.group if run else None
    members = session.scalars(
        select(Evaluation)
        .join(Run, Run.id == Evaluation.run_id)
        .where(Run.project_id == project.id, Run.group == group, Evaluation.state == "done")
        .order_by(Run.number)
    ).all()
    if not members:
        raise NotFound("No run of this group has been evaluated yet.")
    keys = {e.set_key for e in members}
    anchors = session.scalars(
        select(Evaluation)
        .where(
            Evaluation.project_id == project.id,
            Evaluation.run_id.is_(None),
            Evaluation.set_key.in_(keys),
            Evaluation.state == "done",
        )
        .order_by(Evaluation.role)
    ).all()
    return compare(
        rows_of(session, [*anchors, *members]),
        deciding_metric=project.deciding_metric,
        tolerance=shown_tolerance(project),
    )


def retried(session: Session, again: Job) -> None:
    """Let a retried job fill its evaluation, which is pending again."""
    row = session.get(Evaluation, again.spec["evaluation_id"])
    if row is None:
        raise NotFound("The evaluation was removed; start a run that needs it.")
    row.state, row.job_id = "pending", again.id
    session.flush()
