"""Make and change projects."""

import re
import unicodedata

from sqlalchemy.orm import Session

from app.errors import InvalidInput, NotFound
from app.metrics.registry import METRICS
from app.projects import queries
from app.projects.models import Project
from app.projects.schemas import ProjectCreate, ProjectEdit

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
    project = Project(slug=slug, name=data.name.strip(), owner_id=owner_id, last_run_number=0)
    if not project.name:
        raise InvalidInput("A project needs a name.", fields={"name": "Is needed."})
    _fill(project, data)
    session.add(project)
    session.flush()
    return project


def edit(session: Session, project: Project, data: ProjectEdit) -> Project:
    """Change goal, roles, deciding metric and tolerance."""
    _fill(project, data)
    session.flush()
    return project


def _fill(project: Project, data: ProjectEdit) -> None:
    if data.teacher_id is not None and data.teacher_id == data.student_id:
        sentence = "Must be another checkpoint than the teacher."
        raise InvalidInput("Teacher and student are one.", fields={"student_id": sentence})
    project.goal = data.goal
    project.description = data.description
    project.deciding_metric = data.deciding_metric
    project.tolerance = stored_tolerance(data.deciding_metric, data.tolerance)
    project.teacher_id = data.teacher_id
    project.student_id = data.student_id
