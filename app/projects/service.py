"""Make and change projects."""

import re
import unicodedata

from sqlalchemy.orm import Session

from app.errors import Conflict, InvalidInput, NotFound
from app.metrics.registry import METRICS
from app.projects import queries
from app.projects.models import Project
from app.projects.schemas import ProjectBasics, ProjectCreate, ProjectEdit, Role

RESERVED = frozenset({"new", "api"})


def slug_of(name: str) -> str:
    """Return the address form of a name: lower-case letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60] or "project"


def get(session: Session, slug: str) -> Project:
    found = queries.by_slug(session, slug)
    if found is None:
        raise NotFound(f"There is no project “{slug}”.")
    return found


def stored_tolerance(metric: str, shown: float) -> float:
    """Turn shown points into the metric's own unit."""
    return shown / METRICS[metric].scale


def shown_tolerance(project: Project) -> float:
    return project.tolerance * METRICS[project.deciding_metric].scale


def create(session: Session, data: ProjectCreate, *, owner_id: int | None) -> Project:
    """Add a project. Its slug comes of the name and is made unique by a number."""
    stem = slug_of(data.name)
    taken = queries.taken_slugs(session, stem) | RESERVED
    slug, number = stem, 1
    while slug in taken:
        number += 1
        slug = f"{stem}-{number}"
    project = Project(slug=slug, owner_id=owner_id, last_run_number=0)
    project.name = data.name
    _fill(project, data)
    session.add(project)
    session.flush()
    return project


def edit(session: Session, project: Project, data: ProjectEdit) -> Project:
    """Change name, goal, teacher and student, deciding metric and tolerance."""
    if data.version is not None and data.version != project.version:
        raise Conflict(
            "Somebody changed the project since this form was opened. Reload it to see what is "
            "there now, then make your change again."
        )
    _check_roles(session, project, data)
    if data.name is not None:
        project.name = data.name
    _fill(project, data)
    project.teacher_id, project.student_id = data.teacher_id, data.student_id
    session.flush()
    return project


def use_as(session: Session, project: Project, role: Role, checkpoint_id: int) -> None:
    """Give a checkpoint of the project a role; it leaves the other one if it had that."""
    if not queries.checkpoints_among(session, project.id, [checkpoint_id]):
        raise NotFound(f"This project has no checkpoint {checkpoint_id}.")
    roles = {"teacher": project.teacher_id, "student": project.student_id}
    kept = {name: held for name, held in roles.items() if held != checkpoint_id}
    kept[role] = checkpoint_id
    project.teacher_id, project.student_id = kept.get("teacher"), kept.get("student")
    session.flush()


def take_roles(session: Session, project: Project, checkpoint_id: int) -> None:
    """Leave the project without a checkpoint that is about to go."""
    if project.teacher_id == checkpoint_id:
        project.teacher_id = None
    if project.student_id == checkpoint_id:
        project.student_id = None
    session.flush()


def _check_roles(session: Session, project: Project, data: ProjectEdit) -> None:
    """Raise InvalidInput when teacher and student are one, or of another project."""
    if data.teacher_id is not None and data.teacher_id == data.student_id:
        sentence = "Must be another checkpoint than the teacher."
        raise InvalidInput("Teacher and student are one.", fields={"student_id": sentence})
    given = {"teacher_id": data.teacher_id, "student_id": data.student_id}
    ids = [number for number in given.values() if number is not None]
    here = queries.checkpoints_among(session, project.id, ids)
    strange = {
        name: f"This project has no checkpoint {number}."
        for name, number in given.items()
        if number is not None and number not in here
    }
    if strange:
        raise InvalidInput("Choose checkpoints of this project.", fields=strange)


def _fill(project: Project, data: ProjectBasics) -> None:
    project.goal = data.goal
    project.description = data.description
    project.deciding_metric = data.deciding_metric
    project.tolerance = stored_tolerance(data.deciding_metric, data.tolerance)
