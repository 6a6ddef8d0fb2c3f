"""Whether a checkpoint may go: everything that uses it, in words, and its removal."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from app.checkpoints import service as checkpoints
from app.checkpoints.models import Checkpoint
from app.dashboard import queries
from app.errors import Conflict
from app.evaluations.models import Evaluation
from app.jobs.models import Job
from app.projects import service as projects
from app.projects.models import Project
from app.settings import Settings
from app.specs.jobs import TERMINAL_STATES
from app.teacher_cache.models import CacheShard, CacheSpaceRow

NAMED = 3
"""How many runs, evaluations or jobs a sentence names; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Uses:
    """What uses a checkpoint, each as a part of a sentence."""

    roles: tuple[str, ...]
    jobs: tuple[str, ...]
    """Open jobs that make it or read its files."""
    results: tuple[str, ...]
    """Runs and evaluations, which stay."""
    cached: tuple[str, ...]
    """Its rows in the teacher cache."""

    @property
    def all(self) -> list[str]:
        return [*self.roles, *self.jobs, *self.results, *self.cached]

    @property
    def sentence(self) -> str:
        """Why it stays and what to do; empty where it may be removed."""
        if not self.all:
            return ""
        mends = (
            (self.roles, "Give that role to another checkpoint first."),
            (self.jobs, "Wait for its jobs, or cancel them."),
            (self.results, "What was made with it can be made again only while it is there."),
            (self.cached, "Remove its teacher cache first."),
        )
        said = " ".join(mend for found, mend in mends if found)
        return f"It is used by {'; '.join(self.all)}. {said}"


def uses_of(session: Session, project: Project, row: Checkpoint) -> Uses:
    """Return what forbids to remove a checkpoint.

    One that failed has no weights, so a role holds it no more.
    """
    roles = {"teacher": project.teacher_id, "student": project.student_id}
    held = [f"the project, as its {role}" for role, number in roles.items() if number == row.id]
    runs = [
        f"run #{use.number} “{use.name}” ({use.part})" for use in queries.uses_of(session, row.id)
    ]
    return Uses(
        roles=tuple(held) if row.state != "failed" else (),
        jobs=_named(_open_jobs(session, row.id), "jobs"),
        results=(
            *_named(runs, "runs"),
            *_named(_evaluations(session, row.id), "evaluations"),
        ),
        cached=_cached(session, row.id),
    )


def _named(words: Sequence[str], many: str) -> tuple[str, ...]:
    rest = len(words) - NAMED
    return (*words[:NAMED], f"{rest:,} more {many}") if rest > 1 else tuple(words)


def _open_jobs(session: Session, checkpoint_id: int) -> list[str]:
    keys = ("checkpoint_id", "teacher_id")
    titles = session.scalars(
        select(Job.title)
        .where(
            Job.state.not_in(TERMINAL_STATES),
            or_(*(Job.spec[key].as_integer() == checkpoint_id for key in keys)),
        )
        .order_by(Job.id)
    )
    return [f"the job “{title}”" for title in titles]


def _evaluations(session: Session, checkpoint_id: int) -> list[str]:
    """Return the evaluations of it, or against it as the teacher, that belong to no run."""
    rows = session.execute(
        select(Evaluation.id, Evaluation.name)
        .where(
            or_(Evaluation.checkpoint_id == checkpoint_id, Evaluation.teacher_id == checkpoint_id),
            Evaluation.run_id.is_(None),
        )
        .order_by(Evaluation.id.desc())
    )
    return [f"evaluation {number} (“{name}”)" for number, name in rows]


def _cached(session: Session, checkpoint_id: int) -> tuple[str, ...]:
    rows = session.scalar(
        select(func.sum(CacheShard.rows))
        .join(CacheSpaceRow, CacheSpaceRow.address == CacheShard.space)
        .where(CacheSpaceRow.teacher_id == checkpoint_id)
    )
    return (f"{rows:,} rows of the teacher cache",) if rows else ()


def remove_checkpoint(
    session: Session, project: Project, checkpoint_id: int, settings: Settings
) -> str | None:
    """Remove a checkpoint that nothing uses, with its jobs; return the key of its files.

    The caller commits, then lets `checkpoints.drop_files` remove them: a rollback in between
    would bring the row back without them. Errors: NotFound, Conflict naming what uses it.
    """
    row = checkpoints.locked(session, project.id, checkpoint_id)
    if sentence := uses_of(session, project, row).sentence:
        raise Conflict(f"“{row.name}” cannot be removed. {sentence}")
    projects.take_roles(session, project, row.id)
    return checkpoints.remove(session, row, settings)
