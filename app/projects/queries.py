"""Read projects."""

from collections.abc import Collection, Sequence

from sqlalchemy import column, select, table
from sqlalchemy.orm import Session

from app.projects.models import Project


def by_slug(session: Session, slug: str) -> Project | None:
    return session.scalar(select(Project).where(Project.slug == slug))


def all_projects(session: Session, *, search: str = "") -> Sequence[Project]:
    """Return projects by name; `search` matches part of it."""
    statement = select(Project).order_by(Project.created_at.desc(), Project.id.desc())
    if search:
        statement = statement.where(Project.name.icontains(search, autoescape=True))
    return session.scalars(statement).all()


def taken_slugs(session: Session, stem: str) -> set[str]:
    found = session.scalars(select(Project.slug).where(Project.slug.startswith(stem)))
    return set(found)


def checkpoints_among(session: Session, project_id: int, ids: Collection[int]) -> set[int]:
    """Return which of these ids are checkpoints of the project.

    Checkpoints know projects, not the reverse: their table is only named here, as in the keys.
    """
    checkpoints = table("checkpoints", column("id"), column("project_id"))
    found = session.scalars(
        select(checkpoints.c.id).where(
            checkpoints.c.project_id == project_id, checkpoints.c.id.in_(ids)
        )
    )
    return set(found)
