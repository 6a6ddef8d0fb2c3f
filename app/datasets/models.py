"""Uploads, datasets and their versions."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.base import Base, HasCreated, HasId


class Upload(HasId, HasCreated, Base):
    """A file sent by tus (or made by a generate job); the offset is the size of its file."""

    __tablename__ = "uploads"

    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), index=True
    )
    key: Mapped[str] = mapped_column(unique=True)
    """Random name in the upload URL and the blob store."""
    filename: Mapped[str]
    size: Mapped[int | None]
    """Declared length in bytes."""
    sha256: Mapped[str | None]
    state: Mapped[str]
    """uploading · uploaded · inspected · failed."""
    report: Mapped[dict[str, Any] | None]
    """InspectReport of the first records."""
    error: Mapped[str | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    origin: Mapped[str]
    """browser · cli · generated."""

    __table_args__ = (
        CheckConstraint("state in ('uploading', 'uploaded', 'inspected', 'failed')", name="state"),
    )


class Dataset(HasId, HasCreated, Base):
    __tablename__ = "datasets"

    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str]
    versions: Mapped[list["DatasetVersion"]] = relationship(
        back_populates="dataset", lazy="raise", order_by="DatasetVersion.number"
    )

    __table_args__ = (UniqueConstraint("project_id", "name"),)


class DatasetVersion(HasId, HasCreated, Base):
    """One import; frozen by the hash of its conversations file, then never changed."""

    __tablename__ = "dataset_versions"

    dataset_id: Mapped[int] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), index=True
    )
    number: Mapped[int]
    state: Mapped[str]
    """importing · draft · frozen · failed."""
    import_spec: Mapped[dict[str, Any]]
    funnel: Mapped[dict[str, Any] | None]
    conversations_blob: Mapped[str | None]
    rejects_blob: Mapped[str | None]
    content_sha256: Mapped[str | None]
    frozen_at: Mapped[datetime | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    error: Mapped[str | None]
    notes: Mapped[str]
    dataset: Mapped[Dataset] = relationship(back_populates="versions", lazy="raise")

    @property
    def dataset_name(self) -> str:
        return self.dataset.name

    __table_args__ = (
        CheckConstraint("state in ('importing', 'draft', 'frozen', 'failed')", name="state"),
        UniqueConstraint("dataset_id", "number"),
    )
