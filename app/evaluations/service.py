"""Ask for evaluations, keep what they measured, compare those of one set."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.models import DatasetVersion
from app.errors import Conflict, InvalidInput, NotFound
from app.evaluations import queries
from app.evaluations.examples import BY_EXAMPLE, read_examples
from app.evaluations.models import Evaluation, EvaluationMetric
from app.evaluations.schemas import Choice, ExampleFilter, ExamplesOut
from app.jobs.endings import when_unfinished
from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue
from app.metrics.comparison import Comparison, EvaluationRole, EvaluationRow, compare
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

_LONGEST_NUMBER = 10


def start_run(
    session: Session,
    project: Project,
    spec: RunSpec,
    *,
    owner: str,
    owner_id: int | None = None,
    parent_id: int | None = None,
    key: str | None = None,
) -> Run:
    """Start a run and what a table needs beside it: teacher and undistilled student, once a set.

    A second request with the same key returns the first one's run.
    """
    if key is not None and (known := runs.started_before(session, project, key)) is not None:
        return known
    run, training = runs.start(
        session, project, spec, owner=owner, owner_id=owner_id, parent_id=parent_id, key=key
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


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A chosen row: measured, still to come, or left out of the comparison."""

    name: str
    role: str
    run: Run | None
    state: str
    """Of the run; of the evaluation where there is no run."""
    evaluation: Evaluation | None
    """Where one is done."""

    @property
    def key(self) -> str:
        """Return what addresses call the row: a run's number, or `e` and an evaluation's id."""
        if self.run is not None:
            return str(self.run.number)
        return f"e{self.evaluation.id}" if self.evaluation else self.name


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison and the rows that were asked for, also those that are not in it."""

    comparison: Comparison
    rows: tuple[ComparedRow, ...]
    """The set's teacher and undistilled students first, then runs as chosen."""
    set_name: str | None

    def row(self, name: str) -> ComparedRow | None:
        return next((r for r in self.rows if r.name == name), None)


def compare_chosen(session: Session, project: Project, choice: Choice) -> Comparison:
    """Return the comparison of what is chosen. NotFound where nothing of it has been evaluated."""
    compared = compare_rows(session, project, choice)
    if not compared.comparison.rows:
        raise NotFound(
            "There is nothing to compare yet: no group of runs has ended with an evaluation. "
            "Name runs to compare those that are evaluated."
            if choice.is_empty
            else "Nothing of this has been evaluated yet. A run is evaluated once it is trained."
        )
    return compared.comparison


def compare_rows(
    session: Session, project: Project, choice: Choice, *, unfinished: bool = False
) -> Compared:
    """Choose rows, take for each the evaluation on the common set, and compare.

    Their set's teacher and the runs' undistilled students come along. NotFound for a name or
    number that the project does not have. `unfinished`: without a choice and a finished group the
    newest one is taken as it stands.
    """
    chosen_runs = _chosen_runs(session, project.id, choice, unfinished=unfinished)
    asked = _chosen_evaluations(session, project.id, choice)
    made = queries.evaluations_of(session, [run.id for run in chosen_runs])
    finished = [e for e in made if e.state == "done"]
    key = _common_set([*asked, *_newest_of_each_run(finished)])
    owners = queries.runs_by_id(session, {e.run_id for e in asked if e.run_id is not None})
    students = {run.student_id for run in (*chosen_runs, *owners.values())}
    anchors = _anchors(session, project.id, key, students)
    known = {e.id for e in anchors}
    rows = [
        ComparedRow(
            e.name,
            e.role,
            owners.get(e.run_id or 0),
            e.state,
            e if e.state == "done" else None,
        )
        for e in (*anchors, *(e for e in asked if e.id not in known))
    ]
    states = queries.states_of(session, [run.id for run in chosen_runs])
    for run in chosen_runs:
        own = [e for e in finished if e.run_id == run.id]
        best = next((e for e in own if e.set_key == key), own[0] if own else None)
        state = states.get(run.id, JobState.CANCELLED.value)
        rows.append(ComparedRow(run.name, run.role, run, state, best))
    rows = _told_apart(session, rows)
    return _compared(session, project, rows, choice.baseline, key)


def _compared(
    session: Session,
    project: Project,
    rows: list[ComparedRow],
    baseline: str | None,
    key: str | None,
) -> Compared:
    measured = [row for row in rows if row.evaluation is not None]
    # The common set leads: what is not on it is left out, whichever row comes first.
    measured.sort(key=lambda row: row.evaluation is not None and row.evaluation.set_key != key)
    names = queries.set_names(
        session, {r.evaluation.dataset_version_id for r in measured if r.evaluation}
    )
    try:
        comparison = compare(
            _evaluation_rows(session, measured, names),
            deciding_metric=project.deciding_metric,
            tolerance=shown_tolerance(project),
            baseline=_named(rows, baseline) if baseline else None,
        )
    except ValueError as error:
        raise NotFound(f"{error}.") from error
    first = next((r.evaluation for r in measured if r.evaluation), None)
    set_name = names.get(first.dataset_version_id) if first else None
    return Compared(comparison, tuple(rows), set_name)


def _evaluation_rows(
    session: Session, rows: Sequence[ComparedRow], names: Mapping[int, str]
) -> list[EvaluationRow]:
    done_ones = [(row, row.evaluation) for row in rows if row.evaluation is not None]
    sums = queries.sums_of(session, [e.id for _, e in done_ones])
    return [
        EvaluationRow(
            row.name,
            cast("EvaluationRole", row.role),
            sums[e.id],
            e.dataset_version_id,
            f"{e.set_key}:{e.clusters_sha256}",
            names.get(e.dataset_version_id, ""),
        )
        for row, e in done_ones
    ]


def _chosen_runs(
    session: Session, project_id: int, choice: Choice, *, unfinished: bool
) -> Sequence[Run]:
    """Return the chosen runs in the order asked for; without any choice the last group's."""
    if choice.runs:
        numbers = {n: _number(n) for n in choice.runs}
        wanted = {n for n in numbers.values() if n is not None}
        found = queries.runs_called(session, project_id, set(choice.runs), wanted)
        chosen = [_called(found, name, numbers[name]) for name in choice.runs]
        return list(dict.fromkeys(chosen))
    if choice.evaluations:
        return ()
    if choice.group is not None:
        return queries.runs_of_group(session, project_id, choice.group)
    last = queries.last_group(session, project_id, finished=True)
    if last is None and unfinished:
        last = queries.last_group(session, project_id, finished=False)
    return queries.runs_of_group(session, project_id, last[0]) if last else ()


def _number(name: str) -> int | None:
    text = name.removeprefix("#")
    return int(text) if text.isdecimal() and len(text) < _LONGEST_NUMBER else None


def _called(found: Sequence[Run], name: str, number: int | None) -> Run:
    """Return the newest run of that name, else the run of that number."""
    by_name = next((run for run in found if run.name == name), None)
    run = by_name or next((run for run in found if run.number == number), None)
    if run is None:
        raise NotFound(f"There is no run “{name}” in this project.")
    return run


def _chosen_evaluations(session: Session, project_id: int, choice: Choice) -> list[Evaluation]:
    found = {
        e.id: e for e in queries.evaluations_by_id(session, project_id, set(choice.evaluations))
    }
    missing = [i for i in choice.evaluations if i not in found]
    if missing:
        raise NotFound(f"There is no evaluation {missing[0]} in this project.")
    return [found[i] for i in dict.fromkeys(choice.evaluations)]


def _newest_of_each_run(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    return list({e.run_id: e for e in reversed(evaluations)}.values())


def _anchors(
    session: Session, project_id: int, key: str | None, students: set[int | None]
) -> list[Evaluation]:
    """Return the set's teacher, and its undistilled students from which a chosen run started."""
    if key is None:
        return []
    found = queries.of_set(session, project_id, key)
    return [
        e
        for e in found
        if e.run_id is None and (e.role == "teacher" or e.checkpoint_id in students)
    ]


def _common_set(evaluations: Sequence[Evaluation]) -> str | None:
    """Return the set most of the rows are measured on; of equal ones the newest."""
    newest: dict[str, int] = {}
    for e in evaluations:
        newest[e.set_key] = max(newest.get(e.set_key, 0), e.id)
    counts = Counter(e.set_key for e in evaluations)
    return max(counts, key=lambda key: (counts[key], newest[key]), default=None)


def _told_apart(session: Session, rows: Sequence[ComparedRow]) -> list[ComparedRow]:
    """Give rows of one name a number or their checkpoint's name beside it."""
    counts = Counter(row.name for row in rows)
    doubled = [row for row in rows if counts[row.name] > 1]
    ids = {r.evaluation.checkpoint_id for r in doubled if r.evaluation and r.run is None}
    made = queries.checkpoints_of(session, ids) if ids else {}
    told = []
    for row in rows:
        if counts[row.name] > 1 and row.run is not None:
            row = replace(row, name=f"{row.name} #{row.run.number}")  # noqa: PLW2901
        elif counts[row.name] > 1 and row.evaluation is not None:
            checkpoint = made.get(row.evaluation.checkpoint_id or 0)
            words = checkpoint.name if checkpoint else f"evaluation {row.evaluation.id}"
            row = replace(row, name=f"{row.name} ({words})")  # noqa: PLW2901
        told.append(row)
    return told


def _named(rows: Sequence[ComparedRow], wanted: str) -> str:
    """Return the name of the row that `wanted` names or whose key it is."""
    for row in rows:
        if wanted == row.name:
            return row.name
    key = wanted.removeprefix("#")
    return next((row.name for row in rows if row.key == key), wanted)


def retried(session: Session, again: Job) -> None:
    """Let a retried job fill its evaluation, which is pending again."""
    row = session.get(Evaluation, again.spec["evaluation_id"])
    if row is None:
        raise NotFound("The evaluation was removed; start a run that needs it.")
    row.state, row.job_id = "pending", again.id
    session.flush()
