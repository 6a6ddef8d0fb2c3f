"""Read checkpoints, with the state of the job that makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import column, select, table
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.jobs import queries as jobs
from app.jobs.queries import JobLine
from app.projects.models import Project
from app.specs.checkpoint import (
    CheckpointCard,
    Compression,
    TokenizerVerdict,
    card_verdict,
    compression,
)


@dataclass(frozen=True)
class CheckpointLine:
    """A checkpoint as lists and its page show it."""

    row: Checkpoint
    job: JobLine | None
    role: str
    """teacher · student of the project, or empty."""
    teacher: Checkpoint | None
    """The project's, when it is another checkpoint."""
    parent: str | None
    """Name of the checkpoint it was cut from."""

    @property
    def state(self) -> str:
        """`ready`, else the state of its job."""
        if self.row.state == "ready" or self.job is None:
            return self.row.state
        return self.job.shown_state

    @property
    def shown_state(self) -> str:
        """The status word that `ui.status` draws."""
        words = {"ready": "succeeded", "registering": "queued"}
        return words.get(self.state, self.state)

    @property
    def words(self) -> str:
        """What the status says: a job that works is named by what it does."""
        if self.state in ("starting", "running", "recovering"):
            return "pruning" if self.row.origin["kind"] == "pruned" else "registering"
        return self.state

    @property
    def alive(self) -> bool:
        """Whether a job still works, or will work, on it."""
        return self.row.state == "registering" and self.job is not None and not self.ended

    @property
    def ended(self) -> bool:
        return self.state in ("failed", "cancelled", "succeeded")

    @property
    def message(self) -> str:
        """Why it failed, or what its job does."""
        if self.row.error:
            return self.row.error
        return self.job.reason if self.job is not None and self.state != "ready" else ""

    @cached_property
    def card(self) -> CheckpointCard | None:
        return None if self.row.card is None else CheckpointCard.model_validate(self.row.card)

    @cached_property
    def teacher_card(self) -> CheckpointCard | None:
        if self.teacher is None or self.teacher.card is None:
            return None
        return CheckpointCard.model_validate(self.teacher.card)

    @cached_property
    def compression(self) -> Compression | None:
        """How much smaller than the project's teacher it is; None while a card is missing."""
        if self.card is None or self.teacher_card is None:
            return None
        return compression(self.teacher_card, self.card)

    @cached_property
    def verdict(self) -> TokenizerVerdict | None:
        if self.card is None or self.teacher_card is None:
            return None
        return card_verdict(self.teacher_card, self.card)

    @property
    def cut_to(self) -> str:
        """Sizes a pruned one was cut to, such as `depth 6, width 288`."""
        sizes = self.row.origin.get("prune", {})
        kept = {name: n for name, n in sizes.items() if name != "calibration_conversations"}
        return ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in kept.items())

    @property
    def origin(self) -> str:
        """Where it comes from, in a few words."""
        found = self.row.origin
        match found["kind"]:
            case "folder":
                return f"folder {found['path']}"
            case "hub":
                return f"hub {found['repo_id']} at {found['revision']}"
            case "endpoint":
                return f"server {found['base_url']}, {found['model']}"
            case "pruned":
                parent = self.parent or "a checkpoint that was removed"
                return f"pruned from {parent}: {self.cut_to}"
        return "trained by a run"


def cut_from(lines: Sequence[CheckpointLine]) -> dict[int, list[CheckpointLine]]:
    """Return checkpoint id → the lines of those cut from it."""
    found: dict[int, list[CheckpointLine]] = {}
    for line in lines:
        if (parent := line.row.origin.get("teacher_id")) is not None:
            found.setdefault(parent, []).append(line)
    return found


def of_project(session: Session, project_id: int) -> Sequence[Checkpoint]:
    return session.scalars(
        select(Checkpoint).where(Checkpoint.project_id == project_id).order_by(Checkpoint.id)
    ).all()


def lines(session: Session, project: Project) -> list[CheckpointLine]:
    """Return every checkpoint of a project with its job, in a fixed number of queries."""
    return lines_of(session, [project]).get(project.id, [])


def lines_of(session: Session, projects: Sequence[Project]) -> dict[int, list[CheckpointLine]]:
    """Return project id → its checkpoints, oldest first; as many queries as for one project."""
    by_project = {project.id: project for project in projects}
    rows = session.scalars(
        select(Checkpoint).where(Checkpoint.project_id.in_(by_project)).order_by(Checkpoint.id)
    ).all()
    waiting = [row.job_id for row in rows if row.job_id is not None and row.state != "ready"]
    jobs_found = jobs.of_ids(session, waiting)
    by_id = {row.id: row for row in rows}
    found: dict[int, list[CheckpointLine]] = {}
    for row in rows:
        line = _line(row, jobs_found.get(row.job_id or 0), by_project[row.project_id], by_id)
        found.setdefault(row.project_id, []).append(line)
    return found


def _line(
    row: Checkpoint, job: JobLine | None, project: Project, by_id: dict[int, Checkpoint]
) -> CheckpointLine:
    roles = {project.teacher_id: "teacher", project.student_id: "student"}
    parent = by_id.get(row.origin.get("teacher_id", 0))
    teacher = by_id.get(project.teacher_id or 0)
    return CheckpointLine(
        row=row,
        job=job,
        role=roles.get(row.id, ""),
        teacher=None if teacher is row else teacher,
        parent=parent.name if parent else None,
    )


def one(
    session: Session, project_id: int, checkpoint_id: int, *, lock: bool = False
) -> Checkpoint | None:
    statement = select(Checkpoint).where(
        Checkpoint.project_id == project_id, Checkpoint.id == checkpoint_id
    )
    if lock:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    return session.scalar(statement)


def has_files(session: Session, blob: str) -> bool:
    """Return whether a checkpoint of any project has these files."""
    found = select(Checkpoint.id).where(Checkpoint.blob == blob).limit(1)
    return session.scalar(found) is not None


def by_name(session: Session, project_id: int, name: str) -> Checkpoint | None:
    return session.scalar(
        select(Checkpoint).where(Checkpoint.project_id == project_id, Checkpoint.name == name)
    )


def can_calibrate(session: Session, project_id: int, version_id: int) -> bool:
    """Return whether a dataset version of the project has conversations to rank channels on.

    Datasets know checkpoints, not the reverse: their tables are only named here.
    """
    versions = table("dataset_versions", column("id"), column("dataset_id"), column("state"))
    datasets = table("datasets", column("id"), column("project_id"))
    found = session.scalar(
        select(versions.c.id)
        .join(datasets, datasets.c.id == versions.c.dataset_id)
        .where(
            versions.c.id == version_id,
            datasets.c.project_id == project_id,
            versions.c.state.in_(("draft", "frozen")),
        )
    )
    return found is not None
