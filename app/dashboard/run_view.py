"""What the pages of runs show beside the rows: phases in words, attempts, curves, results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.dashboard import knobs
from app.dashboard.schemas import AttemptOut, RunDetail, SnapshotOut
from app.datasets.models import Dataset, DatasetVersion
from app.evaluations import queries as evaluations
from app.evaluations.models import Evaluation
from app.events.queries import last_event_id, latest
from app.jobs import queries as jobs
from app.jobs.models import JobAttempt, JobSnapshot
from app.jobs.queries import JobLine
from app.jobs.snapshots import KEPT, left_by
from app.metrics.comparison import Cell, cell_of
from app.metrics.formatting import duration, metric_value, number, tokens
from app.metrics.registry import METRICS
from app.projects.models import Project
from app.runs import queries
from app.runs.models import Run
from app.runs.queries import RunPhase, RunView
from app.runs.schemas import Phase, RunOut
from app.specs.jobs import JobState
from app.specs.training import RunSpec

LOG_LINES = 200
PHASE_NAMES = {"precompute": "Teacher cache", "train": "Train", "evaluate": "Evaluate"}
ROLE_WORDS = {
    "distilled": "distilled",
    "sequence_level": "sequence-level",
    "labels_only": "labels only",
    "fine_tune": "fine-tuned",
}
JUDGES = ("validation/agreement", "validation/exact_match", "validation/field_f1")
"""Measured only where one of them says which weights are the best."""
CHARTS: tuple[tuple[str, str, str, int, tuple[str, ...]], ...] = (
    ("loss", "Loss", "nats per target token", 4, ("train/loss", "validation/loss")),
    ("kl", "KL to the teacher", "nats per token", 4, ("train/kd_loss", "validation/kl")),
    ("ce", "Cross-entropy", "nats per labelled token", 4, ("train/ce_loss",)),
    ("right", "Right on validation data", "share", 3, JUDGES),
    ("rate", "Learning rate", "", 7, ("optim/learning_rate",)),
    ("norm", "Gradient norm", "before clipping", 3, ("optim/grad_norm",)),
    ("speed", "Training speed", "tokens/s", 0, ("perf/tokens_per_second",)),
)
"""One quantity a chart: unlike ones never share an axis."""
TEACHER_CHARTS = frozenset({"kl"})
STATS = (
    "train/loss",
    "train/kd_loss",
    "train/ce_loss",
    "validation/loss",
    "validation/kl",
    *JUDGES,
    "perf/tokens_per_second",
    "data/tokens",
    "optim/grad_norm",
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claim of one of the run's jobs, and why it ended."""

    role: Phase
    phase: str
    row: JobAttempt
    state: str
    words: str
    why: str


@dataclass(frozen=True, slots=True)
class Named:
    """The rows a run's spec names, as far as they still exist."""

    teacher: Checkpoint | None
    student: Checkpoint | None
    made: Checkpoint | None
    version: DatasetVersion | None
    dataset: str | None

    @property
    def data_words(self) -> str:
        return f"{self.dataset} v{self.version.number}" if self.version else "removed data"

    @property
    def pair_words(self) -> str:
        student = self.student.name if self.student else "removed checkpoint"
        return f"{self.teacher.name} → {student}" if self.teacher else student


def named_of(session: Session, run: Run) -> Named:
    """Return what a run's spec names, in two queries."""
    ids = {run.teacher_id, run.student_id, run.checkpoint_id} - {None}
    found = {
        row.id: row for row in session.scalars(select(Checkpoint).where(Checkpoint.id.in_(ids)))
    }
    row = session.execute(
        select(DatasetVersion, Dataset.name)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(DatasetVersion.id == run.dataset_version_id)
    ).one_or_none()
    return Named(
        found.get(run.teacher_id or 0),
        found.get(run.student_id or 0),
        found.get(run.checkpoint_id or 0),
        row[0] if row else None,
        row[1] if row else None,
    )


def objective_words(spec: RunSpec) -> str:
    """Return `forward KL, T 1, α 0.7`, or what text is learned."""
    objective = spec.training.objective
    if objective.needs_teacher:
        words = knobs.divergence_words(objective)
        return f"{words}, T {objective.temperature:g}, α {objective.alpha:g}"
    text = "references" if objective.ce_target == "reference" else "logged answers"
    return f"cross-entropy on {text}"


def steps_of(view: RunView, lines: dict[int, JobLine]) -> list[dict[str, Any]]:
    """Return the run's phases for `ui.pipeline`."""
    return [_step(phase, lines.get(phase.job.id), view.current) for phase in view.phases]


def _step(phase: RunPhase, line: JobLine | None, current: RunPhase | None) -> dict[str, Any]:
    job = phase.job
    state = JobState(job.state)
    here = current is not None and current.role == phase.role
    looks = {JobState.SUCCEEDED: "done", JobState.FAILED: "hold"}
    if job.error == "upstream_failed":
        state = JobState.CANCELLED  # it was never tried: only the job before it failed
    step: dict[str, Any] = {
        "state": "now" if here else looks.get(state, ""),
        "status": line.shown_state if line and state == job.state else str(state),
        "name": PHASE_NAMES[phase.role],
        "href": None,
        "progress": None,
        "title": _phase_title(phase, line),
        "text": line.reason if line and not state.terminal else "",
    }
    if here and line is not None:
        step["progress"] = line.done_share
    return step


def _phase_title(phase: RunPhase, line: JobLine | None) -> str:
    job = phase.job
    state = JobState(job.state)
    if state == JobState.SUCCEEDED and line is not None and line.ran_seconds is not None:
        return duration(line.ran_seconds)
    if state == JobState.FAILED:
        return "Not reached" if job.error == "upstream_failed" else "Failed"
    if state == JobState.CANCELLED:
        return "Stopped" if job.started_at else "Not reached"
    if job.progress and job.progress.get("total"):
        share = 100 * job.progress["done"] / job.progress["total"]
        return f"{number(share)}\u202f%"
    words = {"queued": "Next", "blocked": "To come", "starting": "Starting"}
    return words.get(job.state, "Stopping" if state == JobState.CANCELLING else "At work")


def left_words(view: RunView) -> str:
    """Return when the phase in hand ends, in words; empty where nothing is known."""
    current = view.current
    progress = current.job.progress if current else None
    seconds = progress.get("eta_seconds") if progress else None
    if current is None or seconds is None:
        return ""
    name = PHASE_NAMES[current.role]
    return f"{name}: about {duration(seconds)} left"


def stats_of(session: Session, view: RunView) -> list[tuple[str, str, str]]:
    """Return the newest value of each figure worth watching."""
    training = view.phase("train")
    found = latest(session, [training.job.id]) if training else {}
    shown: list[tuple[str, str, str]] = []
    for name in STATS:
        if name not in found:
            continue
        step, value = found[name]
        metric = METRICS[name]
        text = tokens(value) if name == "data/tokens" else metric_value(name, value)
        text += f" {metric.unit}" if metric.percent else ""
        words = f"step {step:,}" if name.startswith("validation/") else ""
        shown.append((metric.label, text, words))
    return shown


def charts_of(session: Session, view: RunView, spec: RunSpec) -> list[dict[str, Any]]:
    """Return the charts of a run with their points so far; those of no use to it left out."""
    points = queries.series_of(session, view)
    teacher = spec.training.objective.needs_teacher
    made = []
    for key, title, unit, digits, names in CHARTS:
        if key in TEACHER_CHARTS and not teacher:
            continue
        judge = f"validation/{spec.training.schedule.select_by}"
        shown = [name for name in names if name not in JUDGES or name == judge]
        if not shown:
            continue
        series = [
            {"name": name, "label": METRICS[name].label, "points": points.get(name, [])}
            for name in shown
        ]
        made.append({"id": key, "title": title, "y": unit, "digits": digits, "series": series})
    return made


def attempts_of(session: Session, view: RunView) -> list[Attempt]:
    """Return every attempt of every job of the run, the newest first."""
    roles = {job.id: phase.role for phase in view.phases for job in phase.jobs}
    rows = queries.attempts_of(session, list(roles))
    return [_attempt(row, roles[row.job_id]) for row in rows]


def _attempt(row: JobAttempt, role: Phase) -> Attempt:
    looks = {
        "succeeded": ("succeeded", "succeeded"),
        "failed": ("failed", "failed"),
        "cancelled": ("cancelled", "cancelled"),
        "lost": ("failed", "worker lost"),
        "released": ("queued", "given back"),
    }
    state, words = looks.get(row.outcome or "", ("running", "working"))
    if row.outcome == "lost" and (row.signal or row.exit_code is not None):
        words = "process lost"
    return Attempt(role, PHASE_NAMES[role], row, state, words, _why(row))


def _why(row: JobAttempt) -> str:
    parts = []
    if row.resumed_from_step:
        parts.append(f"went on from step {row.resumed_from_step:,}")
    if row.oom:
        parts.append("out of memory")
    elif row.signal:
        parts.append(f"ended by signal {row.signal}")
    elif row.outcome in ("failed", "lost") and row.exit_code:
        parts.append(f"exit code {row.exit_code}")
    if row.outcome == "released":
        parts.append("the worker was asked to stop")
    if row.last_step:
        parts.append(f"last snapshot at step {row.last_step:,}")
    return "; ".join(parts)


def snapshots_of(session: Session, view: RunView) -> Sequence[JobSnapshot]:
    training = view.phase("train")
    if training is None:
        return ()
    return session.scalars(
        select(JobSnapshot)
        .where(JobSnapshot.job_id == training.job.id)
        .order_by(JobSnapshot.step.desc())
        .limit(5)
    ).all()


@dataclass(frozen=True, slots=True)
class Left:
    """From where a run that ended goes on when it is tried again, and until when it may."""

    step: int
    until: datetime


def left_of(session: Session, view: RunView) -> Left | None:
    """Return what the training of an ended run left; None: nothing, or weights were kept."""
    training = view.phase("train")
    if view.alive or training is None or training.job.ended_at is None:
        return None
    left = left_by(session, training.job.id)
    return Left(left[0].step, training.job.ended_at + KEPT) if left else None


def kept_words(origin: Mapping[str, Any]) -> str:
    """Return of which step a trained checkpoint is, and by what: empty where nobody knows.

    `of step 120, the highest validation exact match, 91.0 % of 64 conversations`.
    """
    if not origin.get("step"):
        return ""
    words = f"of step {origin['step']:,}"
    if not origin.get("best"):
        return words
    metric = METRICS[origin.get("by", "validation/loss")]
    side = "highest" if metric.direction == "higher" else "lowest"
    words += f", the {side} {_within(metric.label)}"
    if origin.get("value") is not None:
        words += f", {metric_value(metric.name, origin['value'])} {metric.unit}"
    return f"{words} of {origin['of']:,} conversations" if origin.get("of") else words


def ended_words(origin: Mapping[str, Any], steps: int) -> str:
    """Return why a training ended before its last step; empty where it did not."""
    if not origin.get("ended"):
        return ""
    label = _within(METRICS[origin["judged_by"]].label)
    return (
        f"Training ended after step {origin['ended']:,} of {steps:,}: the {label} did not improve "
        f"over {origin['patience']:,} validations."
    )


def _within(label: str) -> str:
    return label[0].lower() + label[1:]


def lines_of(session: Session, view: RunView) -> dict[int, JobLine]:
    return jobs.of_ids(session, [phase.job.id for phase in view.phases])


def detail_of(session: Session, view: RunView, out: RunOut) -> RunDetail:
    """Return a run for the API with its attempts and snapshots, as its page shows them."""
    seen = last_event_id(session, *queries.streams_of(view))
    attempts = [_attempt_out(attempt) for attempt in attempts_of(session, view)]
    snapshots = [SnapshotOut.model_validate(row) for row in snapshots_of(session, view)]
    left = left_of(session, view)
    made = session.get(Checkpoint, view.run.checkpoint_id) if view.run.checkpoint_id else None
    origin = made.origin if made else {}
    schedule = RunSpec.model_validate(view.run.spec).training.schedule
    return RunDetail(
        **dict(out),
        kept=kept_words(origin),
        ended=ended_words(origin, schedule.steps),
        attempts=attempts,
        snapshots=snapshots,
        resumes_after=left.step if left else None,
        snapshots_until=left.until if left else None,
        last_event_id=seen,
    )


def _attempt_out(attempt: Attempt) -> AttemptOut:
    row = attempt.row
    fields = {name: getattr(row, name) for name in AttemptOut.model_fields if hasattr(row, name)}
    return AttemptOut(**fields, phase=attempt.role, why=attempt.why)


@dataclass(frozen=True, slots=True)
class Result:
    """A run's evaluation and its cells by metric; empty while it is pending."""

    evaluation: Evaluation
    cells: dict[str, Cell]


def results_of(
    session: Session, run_ids: Sequence[int], metrics: Sequence[str] | None = None
) -> dict[int, Result]:
    """Return each run's newest evaluation with all (or some) cells, in two queries."""
    rows = evaluations.evaluations_of(session, run_ids)
    newest = {row.run_id: row for row in reversed(rows)}
    sums = evaluations.sums_of(session, [row.id for row in newest.values()], metrics)
    return {
        run_id: Result(row, {name: cell_of(name, found) for name, found in sums[row.id].items()})
        for run_id, row in newest.items()
        if run_id is not None
    }


def changes_of(session: Session, run: Run, spec: RunSpec) -> tuple[Run | None, list[knobs.Change]]:
    """Return the parent and what differs from it."""
    parent = session.get(Run, run.parent_id) if run.parent_id is not None else None
    if parent is None:
        return None, []
    return parent, changes_between(session, parent, run, spec)


def changes_between(session: Session, parent: Run, run: Run, spec: RunSpec) -> list[knobs.Change]:
    one, other = named_of(session, parent), named_of(session, run)
    before = RunSpec.model_validate(parent.spec)
    pairs = [
        ("Kind", ROLE_WORDS[before.effective_role], ROLE_WORDS[spec.effective_role]),
        ("Teacher", _name(one.teacher), _name(other.teacher)),
        ("Student", _name(one.student), _name(other.student)),
        ("Data", one.data_words, other.data_words),
    ]
    return knobs.changes(before, spec, pairs)


def _name(row: Checkpoint | None) -> str:
    return row.name if row else "none"


def as_yaml(spec: RunSpec, named: Named) -> str:
    """Return a spec as `runs start` takes it: names instead of ids where they are known."""
    values = spec.model_dump(mode="json", exclude_none=True)
    pairs: list[tuple[str, str, str | None]] = [
        ("teacher", "teacher_id", named.teacher.name if named.teacher else None),
        ("student", "student_id", named.student.name if named.student else None),
        (
            "dataset",
            "dataset_version_id",
            f"{named.dataset}@{named.version.number}" if named.version else None,
        ),
    ]
    head: dict[str, Any] = {"name": values.pop("name")}
    for name, field, found in pairs:
        given = values.pop(field, None)
        head[name if found else field] = found or given
    return yaml.safe_dump({**head, **values}, sort_keys=False, allow_unicode=True)


def live_of(session: Session, project: Project, view: RunView) -> dict[str, Any]:
    """Return the context of the part of a run's page that changes while it works."""
    run = view.run
    spec = RunSpec.model_validate(run.spec)
    parent, changed = changes_of(session, run, spec)
    # Before anything else is read: what happens from here on comes over the stream.
    seen = last_event_id(session, *queries.streams_of(view))
    result = results_of(session, [run.id]).get(run.id)
    deciding = project.deciding_metric
    order = [deciding, *(name for name in METRICS if name != deciding)]
    named = named_of(session, run)
    origin = named.made.origin if named.made else {}
    return {
        "project": project,
        "view": view,
        "run": run,
        "spec": spec,
        "named": named,
        "kept": kept_words(origin),
        "ended": ended_words(origin, spec.training.schedule.steps),
        "judge": METRICS[f"validation/{spec.training.schedule.select_by}"],
        "parent": parent,
        "changes": changed,
        "objective": objective_words(spec),
        "role_words": ROLE_WORDS[run.role],
        "steps": steps_of(view, lines_of(session, view)),
        "time_left": left_words(view),
        "stats": stats_of(session, view),
        "attempts": attempts_of(session, view),
        "snapshots": snapshots_of(session, view),
        "left": left_of(session, view),
        "last_event_id": seen,
        "result": result,
        "metrics": [name for name in order if result and name in result.cells],
    }


def rest_of(session: Session, live: dict[str, Any]) -> dict[str, Any]:
    """Return the context of the rest: curves and log so far, which the stream goes on with."""
    view, spec, seen = live["view"], live["spec"], live["last_event_id"]
    log = queries.log_of(session, view, limit=LOG_LINES)
    return {
        "charts": charts_of(session, view, spec),
        "log": [line for line in log if line.id <= seen],
        "groups": knobs.shown_of(spec),
        "yaml": as_yaml(spec, live["named"]),
    }
