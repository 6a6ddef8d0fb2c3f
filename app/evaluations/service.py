"""Ask for evaluations, keep what they measured, read their examples."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.datasets import service as datasets
from app.datasets.models import DatasetVersion
from app.datasets.queries import conversation_called
from app.errors import Conflict, InvalidInput, NotFound
from app.evaluations import queries
from app.evaluations.examples import BY_EXAMPLE, read_examples
from app.evaluations.models import Evaluation, EvaluationMetric
from app.evaluations.schemas import ExampleFilter, ExamplesOut, PromptOut
from app.jobs.endings import when_unfinished
from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue
from app.projects.models import Project
from app.runs import service as runs
from app.runs.models import Run
from app.runs.queries import RunView
from app.runs.schemas import EstimateOut
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
    key: str | None = None,
    settings: Settings | None = None,
) -> Run:
    """Start a run and what a table needs beside it: teacher and undistilled student, once a set.

    A second request with the same key returns the first one's run. With settings, a run that the
    disk has no room for is refused.
    """
    if key is not None and (known := runs.started_before(session, project, key)) is not None:
        return known
    if settings is not None and (blocked := estimate(session, project, spec, settings).blocked):
        raise Conflict(blocked)
    run, training = runs.start(
        session, project, spec, owner=owner, owner_id=owner_id, parent_id=parent_id, key=key
    )
    own = _Asked(run.role, run.name, None, training)
    made = _ask(session, run, spec, own, owner=owner)
    runs.link(session, run, made, "evaluate")
    for role, checkpoint_id in (("teacher", spec.teacher_id), ("undistilled", spec.student_id)):
        row = session.get(Checkpoint, checkpoint_id) if checkpoint_id is not None else None
        if checkpoint_id is not None and spec.role != "fine_tune" and _has_weights(row):
            _ask(session, run, spec, _Asked(role, role, checkpoint_id, None), owner=owner)
    return run


def estimate(session: Session, project: Project, spec: RunSpec, settings: Settings) -> EstimateOut:
    """Return what a run takes, with the evaluations of teacher and undistilled student."""
    return runs.estimate(session, project, spec, settings, anchors=_anchors(session, project, spec))


def _anchors(session: Session, project: Project, spec: RunSpec) -> dict[str, Checkpoint]:
    """Return role → checkpoint of the rows that a start would ask to evaluate."""
    version = session.get(DatasetVersion, spec.dataset_version_id)
    if version is None or version.content_sha256 is None or spec.role == "fine_tune":
        return {}
    key = set_key(session, spec)
    missing = {}
    for role, checkpoint_id in (("teacher", spec.teacher_id), ("undistilled", spec.student_id)):
        row = session.get(Checkpoint, checkpoint_id) if checkpoint_id is not None else None
        if (
            row is not None
            and _has_weights(row)
            and _known_job(session, project.id, row.id, key) is None
        ):
            missing[role] = row
    return missing


def _has_weights(row: Checkpoint | None) -> bool:
    """Whether a checkpoint can be evaluated: one behind a server cannot, for now."""
    return row is not None and (row.card or {}).get("server") is None


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
        value=sum(sums.sums) / total if total else math.nan,
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


def get(session: Session, project_id: int, evaluation_id: int) -> Evaluation:
    found = queries.one(session, project_id, evaluation_id)
    if found is None:
        raise NotFound(f"There is no evaluation {evaluation_id} in this project.")
    return found


def examples(
    session: Session,
    found: Evaluation,
    wanted: ExampleFilter,
    settings: Settings,
) -> ExamplesOut:
    """Return a page of an evaluation's examples beside another's (default: the set's teacher)."""
    if wanted.metric not in BY_EXAMPLE:
        raise InvalidInput(f"Single examples have no {wanted.metric}: {', '.join(BY_EXAMPLE)}.")
    path = examples_path(found, settings)
    other = beside(session, found, wanted.against)
    if other is not None and wanted.against is None and not has_examples(other, settings):
        other = None
    shown = read_examples(path, examples_path(other, settings) if other else None, wanted)
    return shown.model_copy(update={"against": other.id if other else None})


def prompt(
    session: Session, found: Evaluation, conversation_id: str, settings: Settings
) -> PromptOut:
    """Return the whole prompt of an example, of which its file keeps only the end."""
    version = session.get(DatasetVersion, found.dataset_version_id)
    path = datasets.conversations_path(version, settings) if version else None
    if path is None or not path.is_file():
        raise NotFound(f"The conversations that {found.name} was evaluated on are gone.")
    conversation = conversation_called(path, conversation_id)
    if conversation is None or conversation.last_target is None:
        raise NotFound(f"The set of {found.name} has no prompt of “{conversation_id}”.")
    before = conversation.messages[: conversation.last_target]
    # What was aimed at in earlier turns is no part of what the model was given.
    given = tuple(m.model_copy(update={"is_target": False, "reference": None}) for m in before)
    return PromptOut(conversation_id=conversation_id, messages=given, tools=conversation.tools)


def has_examples(found: Evaluation, settings: Settings) -> bool:
    """Whether the per-example file is there: metrics outlive it."""
    if found.state != "done" or found.examples_blob is None:
        return False
    return LocalBlobs(settings.blobs).path(found.examples_blob).is_file()


def examples_path(found: Evaluation, settings: Settings) -> Path:
    """Return the per-example file of an evaluation, or raise what a person should read."""
    if found.state != "done" or found.examples_blob is None:
        raise Conflict(f"The evaluation of {found.name} is {found.state}: it has no examples yet.")
    if not has_examples(found, settings):
        raise NotFound(f"The examples of {found.name} are no longer stored: evaluate it again.")
    return LocalBlobs(settings.blobs).path(found.examples_blob)


def beside(session: Session, found: Evaluation, against: int | None) -> Evaluation | None:
    """Return the evaluation that examples stand beside: the one asked for, else the teacher's.

    NotFound where it is of another set. None for the teacher itself.
    """
    others = queries.of_set(session, found.project_id, found.set_key)
    if against is not None:
        other = next((e for e in others if e.id == against and e.id != found.id), None)
        if other is None:
            raise NotFound(f"There is no evaluation {against} on the set of {found.name}.")
        return other
    return next((e for e in others if e.role == "teacher" and e.id != found.id), None)


def retried(session: Session, again: Job) -> None:
    """Let a retried job fill its evaluation, which is pending again."""
    row = session.get(Evaluation, again.spec["evaluation_id"])
    if row is None:
        raise NotFound("The evaluation was removed; start a run that needs it.")
    row.state, row.job_id = "pending", again.id
    session.flush()
