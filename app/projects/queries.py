"""Read projects."""

from collections.abc import Sequence

from sqlalchemy import select
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
