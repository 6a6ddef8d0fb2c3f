"""Read what pages and API show across domains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.checkpoints import queries as checkpoint_queries
from app.checkpoints.queries import CheckpointLine
from app.checkpoints.schemas import PruneForm
from app.dashboard.schemas import JobOut
from app.datasets import queries as datasets
from app.jobs.queries import JobLine
from app.projects.models import Project
from app.runs.models import Run
from app.specs.checkpoint import CheckpointCard, Compression, compression
from app.specs.pruning import PRUNABLE, Shape, pruned_card, shape_problems

USES = 50


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
        depth = max(1, first.card.depth // 5) if first.card else 1
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
class ProjectName:
    id: int
    slug: str
    name: str


def prune_choices(session: Session, project: Project) -> PruneChoices:
    lines = checkpoint_queries.lines(session, project)
    fit = [x for x in lines if x.card is not None and x.card.architecture in PRUNABLE]
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
