"""Read runs; what state a run is in follows from its jobs, here and nowhere else."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, Subquery, case, func, literal, or_, select
from sqlalchemy.dialects.postgresql import aggregate_order_by, distinct_on
from sqlalchemy.orm import InstrumentedAttribute, Session, defer

from app.accounts.models import User
from app.events.models import RunEvent
from app.events.queries import log_lines, series
from app.jobs.models import Job, JobAttempt
from app.runs.models import Run, RunJob
from app.runs.schemas import PHASES, LogLine, Phase, PhaseOut, RunOut
from app.specs.jobs import TERMINAL_STATES, JobState
from app.specs.training import RunSpec

MAX_POINTS = 2000
_TERMINAL = sorted(TERMINAL_STATES)


@dataclass(frozen=True, slots=True)
class RunPhase:
    """The jobs of one role, oldest first; the newest counts.

    The others were tried before it, or filled shares of the cache that it completes.
    """

    role: Phase
    jobs: tuple[Job, ...]

    @property
    def job(self) -> Job:
        return self.jobs[-1]


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with what its jobs say of it."""

    run: Run
    state: str
    owner: str | None
    phases: tuple[RunPhase, ...]

    @property
    def alive(self) -> bool:
        return not JobState(self.state).terminal

    @property
    def current(self) -> RunPhase | None:
        """The phase in hand, or the next one to be; None when the run has ended."""
        if not self.alive:
            return None
        open_phases = (p for p in self.phases if not JobState(p.job.state).terminal)
        return next(open_phases, None)

    @property
    def failure(self) -> Job | None:
        """The job that failed first, not those that only waited for it."""
        phases = [p for p in self.phases if p.job.state == JobState.FAILED]
        if self.state != JobState.FAILED or not phases:
            return None
        # A part of a shared capture is an older job of the phase that failed with it.
        failed = [j for p in phases for j in reversed(p.jobs) if j.state == JobState.FAILED]
        return next((job for job in failed if job.error != "upstream_failed"), failed[0])

    @property
    def started_at(self) -> datetime | None:
        times = [p.job.started_at for p in self.phases if p.job.started_at is not None]
        return min(times, default=None)

    @property
    def ended_at(self) -> datetime | None:
        times = [p.job.ended_at for p in self.phases if p.job.ended_at is not None]
        return None if self.alive else max(times, default=None)

    @property
    def seconds(self) -> float | None:
        """From the first start to the end; None while it runs or when nothing ran."""
        started, ended = self.started_at, self.ended_at
        return None if started is None or ended is None else (ended - started).total_seconds()

    def phase(self, role: Phase) -> RunPhase | None:
        return next((p for p in self.phases if p.role == role), None)


def states(scope: Select[int]) -> Subquery:
    """Return (run_id, state) of the runs in `scope`: the one rule.

    Of each role the newest job counts. While training or evaluation is open, the run is in the
    state of its first open job, or cancelling when any of them is; else it failed, was cancelled,
    or succeeded, in this order.
    """
    newest = (
        select(RunJob.run_id, RunJob.role, Job.state, _place(RunJob.role).label("place"))
        .join(Job, Job.id == RunJob.job_id)
        .where(RunJob.run_id.in_(scope))
        .ext(distinct_on(RunJob.run_id, RunJob.role))
        .order_by(RunJob.run_id, RunJob.role, Job.id.desc())
        .subquery()
    )
    is_open = newest.c.state.not_in(_TERMINAL)
    first_open = func.array_agg(aggregate_order_by(newest.c.state, newest.c.place)).filter(is_open)
    alive = func.bool_or(is_open & (newest.c.role != "precompute"))

    def any_is(state: JobState) -> ColumnElement[bool]:
        return func.bool_or(newest.c.state == state)

    state = case(
        (alive & any_is(JobState.CANCELLING), JobState.CANCELLING.value),
        (alive, first_open[1]),
        (any_is(JobState.FAILED), JobState.FAILED.value),
        (any_is(JobState.CANCELLED), JobState.CANCELLED.value),
        else_=JobState.SUCCEEDED.value,
    )
    return (
        select(newest.c.run_id, state.label("state"))
        .group_by(newest.c.run_id)
        .subquery("run_states")
    )


def _place(role: InstrumentedAttribute[str]) -> ColumnElement[int]:
    return case({name: literal(place) for place, name in enumerate(PHASES)}, value=role, else_=9)


def state_of(found: Subquery) -> ColumnElement[str]:
    """Return a run's state of `states`; one whose jobs were all removed ended without a result."""
    return func.coalesce(found.c.state, JobState.CANCELLED.value)


def view_statement(scope: Select[int]) -> Select[Run, Any, str]:
    """Return (run, state, owner's name) of the runs in `scope`."""
    found = states(scope)
    return (
        select(Run, state_of(found), User.name)
        .outerjoin(found, found.c.run_id == Run.id)
        .outerjoin(User, User.id == Run.owner_id)
        .where(Run.id.in_(scope))
    )


def with_phases(session: Session, rows: Sequence[Any]) -> list[RunView]:
    """Return rows of `view_statement` as views: one more query, however many rows."""
    phases = phases_of(session, [run.id for run, _, _ in rows])
    return [RunView(run, state, owner, phases[run.id]) for run, state, owner in rows]


def phases_of(session: Session, run_ids: Sequence[int]) -> dict[int, tuple[RunPhase, ...]]:
    """Return each run's phases in order, in one query."""
    rows = session.execute(
        select(RunJob.run_id, RunJob.role, Job)
        .join(Job, Job.id == RunJob.job_id)
        .where(RunJob.run_id.in_(run_ids))
        # An evaluation's result holds its sums by cluster: far more than a page shows.
        .options(defer(Job.result), defer(Job.spec))
        .order_by(RunJob.run_id, _place(RunJob.role), Job.id)
    )
    jobs: dict[int, dict[Phase, list[Job]]] = {run_id: {} for run_id in run_ids}
    for run_id, role, job in rows:
        jobs[run_id].setdefault(cast("Phase", role), []).append(job)
    return {
        run_id: tuple(RunPhase(role, tuple(found)) for role, found in roles.items())
        for run_id, roles in jobs.items()
    }


def newest(session: Session, project_id: int, *, limit: int) -> list[RunView]:
    """Return a project's last runs, newest first."""
    scope = select(Run.id).where(Run.project_id == project_id)
    scope = scope.order_by(Run.number.desc()).limit(limit)
    rows = session.execute(view_statement(scope).order_by(Run.number.desc())).all()
    return with_phases(session, rows)


def last_spec(session: Session, project_id: int) -> RunSpec | None:
    """Return the spec of a project's newest run that is not a fine-tuning."""
    newest = (
        select(Run.spec)
        .where(Run.project_id == project_id, Run.role != "fine_tune")
        .order_by(Run.number.desc())
        .limit(1)
    )
    found = session.scalar(newest)
    return None if found is None else RunSpec.model_validate(found)


def by_number(session: Session, project_id: int, number: int) -> RunView | None:
    scope = select(Run.id).where(Run.project_id == project_id, Run.number == number)
    rows = session.execute(view_statement(scope)).all()
    return with_phases(session, rows)[0] if rows else None


def number_of(session: Session, run_id: int | None) -> int | None:
    return None if run_id is None else session.scalar(select(Run.number).where(Run.id == run_id))


def numbers_of(session: Session, run_ids: Sequence[int]) -> dict[int, int]:
    """Return run id → number, in one query."""
    rows = session.execute(select(Run.id, Run.number).where(Run.id.in_(run_ids)))
    return {row.id: row.number for row in rows}


def students_of(session: Session, run_ids: Collection[int]) -> dict[int, int | None]:
    """Return run id → its student's id: a trained checkpoint computes as much as its student."""
    rows = session.execute(select(Run.id, Run.student_id).where(Run.id.in_(run_ids)))
    return {row.id: row.student_id for row in rows}


def groups(session: Session, project_id: int) -> list[str]:
    """Return the project's groups, the newest run's first."""
    rows = session.execute(
        select(Run.group)
        .where(Run.project_id == project_id, Run.group.is_not(None))
        .group_by(Run.group)
        .order_by(func.max(Run.number).desc())
    )
    return [group for (group,) in rows if group is not None]


def name_in_group(session: Session, project_id: int, name: str, group: str | None) -> Run | None:
    """Return a run of the group with this name: its rows could not be told apart."""
    same_group = Run.group.is_(None) if group is None else Run.group == group
    return session.scalar(
        select(Run)
        .where(Run.project_id == project_id, Run.name == name, same_group)
        .order_by(Run.number.desc())
        .limit(1)
    )


def free_name(session: Session, project_id: int, stem: str, group: str | None) -> str:
    """Return the stem, or with the first number that the group has no run of yet."""
    name, number = stem, 1
    while name_in_group(session, project_id, name, group) is not None:
        number += 1
        name = f"{stem}-{number}"
    return name


def others_waiting_for(session: Session, job_id: int, run_id: int) -> bool:
    """Return whether another run that has not ended needs this job."""
    sharing = select(RunJob.run_id).where(RunJob.job_id == job_id, RunJob.run_id != run_id)
    found = states(sharing)
    return (
        session.scalar(select(found.c.run_id).where(found.c.state.not_in(_TERMINAL)).limit(1))
        is not None
    )


def attempts_of(session: Session, job_ids: Sequence[int]) -> Sequence[JobAttempt]:
    """Return the attempts of some jobs, newest first."""
    return session.scalars(
        select(JobAttempt).where(JobAttempt.job_id.in_(job_ids)).order_by(JobAttempt.fence.desc())
    ).all()


AMOUNTS: dict[Phase, tuple[str, ...]] = {
    "precompute": ("report", "new_rows"),
    "train": ("tokens",),
    "evaluate": ("report", "conversations"),
}
"""Where a job's result says how much it did."""
LASTED: dict[Phase, tuple[str, ...]] = {
    "precompute": ("report", "seconds"),
    "train": ("lasted",),
    "evaluate": ("report", "seconds"),
}
"""Where it says how long that took, all in all."""


@dataclass(frozen=True, slots=True)
class PastJob:
    """What a finished job did: for which checkpoint (or run), how much, in how long."""

    checkpoint_id: int | None
    run_id: int | None
    amount: float
    seconds: float
    beside: float | None
    """What it took besides: to start its process, load and save. None: not known."""


def past_jobs(session: Session, kind: Phase, *, limit: int = 40) -> list[PastJob]:
    """Return the newest jobs of a kind that succeeded, what estimates rest on.

    Those that found nothing to do tell how long starting takes; they come after the others.
    """
    amount = Job.result[AMOUNTS[kind]].as_float()
    lasted = Job.result[LASTED[kind]].as_float()
    # Trainings of older installations know the seconds of their steps only.
    seconds = func.coalesce(lasted, Job.result["seconds"].as_float())
    wall = func.extract("epoch", Job.ended_at - Job.started_at)
    undisturbed = (Job.attempt == 1) & Job.parent_id.is_(None)
    teacher, checkpoint = Job.spec["teacher_id"], Job.spec["checkpoint_id"]
    used = teacher if kind == "precompute" else checkpoint
    rows = session.execute(
        select(
            used.as_integer(),
            Job.spec["run_id"].as_integer(),
            amount,
            seconds,
            case((undisturbed & (wall > lasted), wall - lasted)),
        )
        .where(Job.kind == kind, Job.state == JobState.SUCCEEDED, amount >= 0, seconds >= 0)
        .order_by((amount > 0).desc(), Job.id.desc())
        .limit(limit)
    )
    return [PastJob(*row) for row in rows]


def training_speeds(session: Session, job_ids: Sequence[int]) -> dict[int, float]:
    """Return the mean tokens per second of finished trainings."""
    tokens, seconds = Job.result["tokens"].as_float(), Job.result["seconds"].as_float()
    rows = session.execute(select(Job.id, tokens / seconds).where(Job.id.in_(job_ids), seconds > 0))
    return {job_id: float(speed) for job_id, speed in rows}


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most MAX_POINTS points: every n-th, and always the last."""
    if len(points) <= MAX_POINTS:
        return list(points)
    stride = -(-len(points) // MAX_POINTS)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept[:-1], points[-1]]


def shown(view: RunView, numbers: Mapping[int, int]) -> RunOut:
    """Return a run as the API gives it; `numbers` holds its parent's number."""
    run, current, failure = view.run, view.current, view.failure
    return RunOut(
        number=run.number,
        name=run.name,
        role=run.role,
        group=run.group,
        state=view.state,
        phase=current.role if current else None,
        progress=current.job.progress if current else None,
        error=failure.error if failure else None,
        message=failure.error_message if failure else None,
        teacher_id=run.teacher_id,
        student_id=run.student_id,
        dataset_version_id=run.dataset_version_id,
        checkpoint_id=run.checkpoint_id,
        parent=None if run.parent_id is None else numbers.get(run.parent_id),
        owner=view.owner,
        created_at=run.created_at,
        started_at=view.started_at,
        ended_at=view.ended_at,
        seconds=view.seconds,
        spec=run.spec,
        jobs=[_phase_out(phase) for phase in view.phases],
    )


def _phase_out(phase: RunPhase) -> PhaseOut:
    job = phase.job
    return PhaseOut(
        role=phase.role,
        job_id=job.id,
        kind=job.kind,
        state=job.state,
        title=job.title,
        attempt=job.attempt,
        phase=job.phase,
        progress=job.progress,
        error=job.error,
        message=job.error_message,
        started_at=job.started_at,
        ended_at=job.ended_at,
    )


def search_filter(text: str) -> ColumnElement[bool]:
    """Match part of a run's name or group, or its number with or without #."""
    wanted = [Run.name.icontains(text, autoescape=True), Run.group.icontains(text, autoescape=True)]
    number = text.removeprefix("#")
    if number.isdecimal():
        wanted.append(Run.number == int(number))
    return or_(*wanted)


def streams_of(view: RunView) -> list[str]:
    """Return the streams whose events belong to a run: its own, and that of a shared cache job."""
    own = f"run:{view.run.id}"
    return [own, *sorted({p.job.stream for p in view.phases} - {own})]


def log_of(session: Session, view: RunView, *, limit: int) -> list[LogLine]:
    """Return the newest log lines of a run's jobs, oldest first."""
    jobs = {job.id for phase in view.phases for job in phase.jobs}
    events = log_lines(session, *streams_of(view), limit=limit)
    return [log_line(event) for event in events if event.job_id in jobs]


def series_of(session: Session, view: RunView) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of a run's newest training, thinned to what a chart can show."""
    training = view.phase("train")
    if training is None:
        return {}
    found = series(session, [training.job.id])
    return {metric: thinned(points) for metric, points in found.items()}


def log_line(event: RunEvent) -> LogLine:
    """Return a log event as a line."""
    payload = event.payload
    return LogLine(
        id=event.id,
        at=event.at,
        job_id=event.job_id,
        level=payload.get("level", "info"),
        text=payload.get("text", ""),
    )
