"""Read what pages and API show across domains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from app.checkpoints import queries as checkpoint_queries
from app.checkpoints.queries import CheckpointLine
from app.checkpoints.schemas import PruneForm
from app.dashboard.schemas import JobOut
from app.datasets import queries as datasets
from app.jobs import queries as jobs
from app.jobs.queries import JobLine, WorkerLine
from app.projects.models import Project
from app.runs.models import Run, RunJob
from app.specs.checkpoint import CheckpointCard, Compression, compression
from app.specs.jobs import ACTIVE_STATES, JobState
from app.specs.pruning import PRUNABLE, Shape, pruned_card, shape_problems

USES = 50
ENDED = 20


@dataclass(frozen=True, slots=True)
class PruneChoices:
    """What a student can be cut from, and the data that may rank its channels."""

    teachers: tuple[CheckpointLine, ...]
    """Ready and of a family that can be cut; the project's teacher first."""
    versions: tuple[tuple[int, str], ...]
    """(id, words) of versions with conversations, newest first."""
    why_none: str
    """Why nothing can be cut yet, and what to do; empty when something can."""

    def defaults(self, project: Project) -> dict[str, Any]:
        """Return the form's first values: a fifth of the layers, the low edge of the band."""
        if not self.teachers:
            return {}
        first = self.teachers[0]
        depth = max(1, first.card.depth // 5) if first.card and first.card.depth else 1
        newest = self.versions[0][0] if self.versions else ""
        student = "true" if project.student_id is None else ""
        return {
            "teacher_id": first.row.id,
            "depth": depth,
            "dataset_version_id": newest,
            "calibration_conversations": 64,
            "student": student,
        }


@dataclass(frozen=True, slots=True)
class CutEstimate:
    """A student before it is made: its card and how much smaller it is, or why it cannot be."""

    teacher: CheckpointCard | None = None
    card: CheckpointCard | None = None
    compression: Compression | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RunUse:
    """A run that a checkpoint has a part in."""

    number: int
    name: str
    part: str
    """teacher · student · made it."""


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A job in the queue, its project, and where its subject is shown."""

    line: JobLine
    project: "ProjectName | None"
    href: str | None
    run: int | None
    """Number of the run it belongs to."""


@dataclass(frozen=True, slots=True)
class QueueView:
    """What the queue page shows, read in a fixed number of queries."""

    open: tuple[QueueRow, ...]
    ended: tuple[QueueRow, ...]
    workers: tuple[WorkerLine, ...]

    def count(self, *states: JobState) -> int:
        return sum(row.line.job.state in states for row in self.open)

    @property
    def summary(self) -> tuple[str, ...]:
        """Such as `2 running, 1 queued, 1 blocked`."""
        if not self.open:
            return ("Nothing runs and nothing waits",)
        found = (
            (self.count(*ACTIVE_STATES), "running"),
            (self.count(JobState.QUEUED), "queued"),
            (self.count(JobState.BLOCKED), "blocked"),
        )
        return (", ".join(f"{count:,} {word}" for count, word in found if count),)

    @property
    def unheard(self) -> tuple[str, ...]:
        """Queues that jobs wait on and no living worker takes."""
        waits = {r.line.job.queue for r in self.open if r.line.job.state == JobState.QUEUED}
        return tuple(sorted(waits - {w.queue for w in self.workers if w.alive}))


@dataclass(frozen=True, slots=True)
class ProjectName:
    id: int
    slug: str
    name: str


def prune_choices(session: Session, project: Project) -> PruneChoices:
    lines = checkpoint_queries.lines(session, project)
    fit = [x for x in lines if x.card is not None and x.card.server is None]
    fit = [x for x in fit if x.card is not None and x.card.architecture in PRUNABLE]
    fit.sort(key=lambda x: x.role != "teacher")
    versions = tuple(
        (v.id, f"{v.dataset.name} v{v.number}, {v.state}")
        for v in datasets.versions_of(session, project.id)
        if v.state in ("draft", "frozen")
    )
    return PruneChoices(tuple(fit), versions, _why_none(lines, fit))


def _why_none(lines: Sequence[CheckpointLine], fit: Sequence[CheckpointLine]) -> str:
    if fit:
        return ""
    if any(line.state == "ready" for line in lines):
        return (
            "No ready checkpoint of this project can be cut: llama, mistral and qwen2 can. "
            "Register such a teacher, or a smaller checkpoint as the student."
        )
    return "A student is cut out of a ready checkpoint: register the teacher first."


def cut_estimate(choices: PruneChoices, data: PruneForm | None) -> CutEstimate:
    """Return what the sizes in a form would give: arithmetic, no weights are read."""
    if data is None:
        return CutEstimate(problem="Fill in whole numbers to see the student's size.")
    teacher = next((x.card for x in choices.teachers if x.row.id == data.teacher_id), None)
    if teacher is None:
        return CutEstimate(problem="Choose the checkpoint to cut from.")
    spec = data.prune()
    problems = shape_problems(Shape.of(teacher), spec)
    if problems:
        text = " ".join(problems.values())
        return CutEstimate(teacher, problem=text[:1].upper() + text[1:])
    card = pruned_card(teacher, spec)
    if card is None:
        return CutEstimate(teacher, problem="Its counts do not add up as a llama type's do.")
    return CutEstimate(teacher, card, compression(teacher, card))


def uses_of(session: Session, checkpoint_id: int) -> list[RunUse]:
    """Return the runs a checkpoint is teacher or student of, or was made by; newest first."""
    parts = {"made it": Run.checkpoint_id, "teacher": Run.teacher_id, "student": Run.student_id}
    rows = session.execute(
        select(Run.number, Run.name, Run.checkpoint_id, Run.teacher_id, Run.student_id)
        .where(or_(*(column == checkpoint_id for column in parts.values())))
        .order_by(Run.number.desc())
        .limit(USES)
    )
    return [
        RunUse(number, name, part)
        for number, name, *ids in rows
        for part, used in zip(parts, ids, strict=True)
        if used == checkpoint_id
    ]


def queue_view(session: Session, project: Project | None) -> QueueView:
    """Return open jobs, the last ended ones and the workers; of one project or of all."""
    project_id = project.id if project else None
    waiting = jobs.open_jobs(session, project_id=project_id)
    ended = jobs.ended_jobs(session, project_id=project_id, limit=ENDED)
    rows = queue_rows(session, [*waiting, *ended])
    workers = tuple(jobs.workers(session))
    return QueueView(tuple(rows[: len(waiting)]), tuple(rows[len(waiting) :]), workers)


def queue_rows(session: Session, lines: Sequence[JobLine]) -> list[QueueRow]:
    """Return jobs with their project and the address of what they work on: three queries."""
    names = project_names(session, [line.job.project_id for line in lines])
    streams = [_subject(line) for line in lines]
    wanted = {number for kind, number in streams if kind == "run"}
    found = session.execute(select(Run.id, Run.number).where(Run.id.in_(wanted)))
    numbers = {row.id: row.number for row in found}
    shared = _newest_runs_of(session, [line.job.id for line in lines])
    return [
        _queue_row(line, names.get(line.job.project_id or 0), subject, numbers, shared)
        for line, subject in zip(lines, streams, strict=True)
    ]


def _newest_runs_of(session: Session, job_ids: Sequence[int]) -> dict[int, int]:
    """Return job id → number of the newest run that has a part in it: runs share a cache job."""
    rows = session.execute(
        select(RunJob.job_id, func.max(Run.number))
        .join(Run, Run.id == RunJob.run_id)
        .where(RunJob.job_id.in_(job_ids))
        .group_by(RunJob.job_id)
    )
    return {job_id: number for job_id, number in rows}  # noqa: C416 - typed rows


def _subject(line: JobLine) -> tuple[str, int]:
    """Read a stream's name: `run:12` is (run, 12)."""
    kind, _, number = line.job.stream.partition(":")
    return kind, int(number) if number.isdecimal() else 0


def _queue_row(
    line: JobLine,
    project: "ProjectName | None",
    subject: tuple[str, int],
    runs: dict[int, int],
    shared: dict[int, int],
) -> QueueRow:
    kind, number = subject
    run = runs.get(number) if kind == "run" else None
    if project is None:
        return QueueRow(line, None, None, run)
    tails = {
        "checkpoint": f"checkpoints/{number}",
        "version": f"datasets/{number}",
        "upload": "datasets",
        "run": f"runs/{run}" if run else None,
        "evaluation": f"evaluations/{number}",
        "preview": f"runs/preview/{line.job.id}",
        "cache": f"runs/{shared[line.job.id]}" if line.job.id in shared else None,
    }
    tail = tails.get(kind)
    return QueueRow(line, project, f"/projects/{project.slug}/{tail}" if tail else None, run)


def project_names(session: Session, ids: Iterable[int | None]) -> dict[int, ProjectName]:
    """Return slug and name of the projects of these ids: one query."""
    wanted = {number for number in ids if number is not None}
    rows = session.execute(
        select(Project.id, Project.slug, Project.name).where(Project.id.in_(wanted))
    )
    return {row.id: ProjectName(row.id, row.slug, row.name) for row in rows}


def shown(session: Session, lines: Sequence[JobLine]) -> list[JobOut]:
    """Return jobs as the API gives them."""
    names = project_names(session, [line.job.project_id for line in lines])
    return [_out(line, names.get(line.job.project_id or 0)) for line in lines]


def _out(line: JobLine, project: ProjectName | None) -> JobOut:
    job = line.job
    return JobOut(
        id=job.id,
        kind=job.kind,
        queue=job.queue,
        title=job.title,
        state=job.state,
        project=project.slug if project else None,
        owner=job.owner,
        stream=job.stream,
        phase=job.phase,
        progress=job.progress,
        attempt=job.attempt,
        position=line.position,
        reason=line.reason,
        worker=line.worker,
        error=job.error,
        message=job.error_message,
        result=job.result,
        parent_id=job.parent_id,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        waited_seconds=line.waited_seconds,
        ran_seconds=line.ran_seconds,
    )
