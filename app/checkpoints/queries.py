"""Read checkpoints."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint


def of_project(session: Session, project_id: int) -> Sequence[Checkpoint]:
    return session.scalars(
        select(Checkpoint).where(Checkpoint.project_id == project_id).order_by(Checkpoint.id)
    ).all()


def one(session: Session, project_id: int, checkpoint_id: int) -> Checkpoint | None:
    return session.scalar(
        select(Checkpoint).where(
            Checkpoint.project_id == project_id, Checkpoint.id == checkpoint_id
        )
    )


def by_name(session: Session, project_id: int, name: str) -> Checkpoint | None:
    return session.scalar(
        select(Checkpoint).where(Checkpoint.project_id == project_id, Checkpoint.name == name)
    )
