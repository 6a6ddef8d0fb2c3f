"""Checkpoints: weights, tokenizer and config in one folder of the blob store."""

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, HasCreated, HasId


class Checkpoint(HasId, HasCreated, Base):
    """`origin` tells how it came to be: registered, pruned from, trained by a run."""

    __tablename__ = "checkpoints"

    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str]
    state: Mapped[str]
    """registering · ready · failed."""
    origin: Mapped[dict[str, Any]]
    """{"kind": "folder" | "hub" | "pruned" | "run", …} with the source's ids or path.

    One of a hub has also the `commit` that its revision was when it was fetched.
    """
    blob: Mapped[str | None]
    """Folder key in the blob store, `checkpoints/<weights fingerprint>`."""
    card: Mapped[dict[str, Any] | None]
    weights_fingerprint: Mapped[str | None] = mapped_column(index=True)
    tokenizer_fingerprint: Mapped[str | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    error: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("state in ('registering', 'ready', 'failed')", name="state"),
        UniqueConstraint("project_id", "name"),
    )
