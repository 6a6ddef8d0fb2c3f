"""Evaluations: a checkpoint, a pack and an evaluation-set version; what a table compares."""

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, HasCreated, HasId


class Evaluation(HasId, HasCreated, Base):
    __tablename__ = "evaluations"

    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), index=True
    )
    checkpoint_id: Mapped[int | None] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="CASCADE"), index=True
    )
    run_id: Mapped[int | None] = mapped_column(
        ForeignKey("runs.id", ondelete="CASCADE"), index=True
    )
    """The run whose checkpoint this is; None for the teacher and the undistilled student."""
    role: Mapped[str]
    """teacher · undistilled · distilled · labels_only · sequence_level · fine_tune."""
    name: Mapped[str]
    teacher_id: Mapped[int | None] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="SET NULL")
    )
    dataset_version_id: Mapped[int] = mapped_column(
        ForeignKey("dataset_versions.id", ondelete="CASCADE")
    )
    spec: Mapped[dict[str, Any]]
    spec_hash: Mapped[str]
    set_key: Mapped[str]
    """Fingerprint of dataset content, split, truth and pack: only equal keys are compared."""
    state: Mapped[str]
    """pending · done · failed."""
    conversations: Mapped[int | None]
    clusters_sha256: Mapped[str | None]
    examples_blob: Mapped[str | None]
    seconds: Mapped[float | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))

    __table_args__ = (CheckConstraint("state in ('pending', 'done', 'failed')", name="state"),)


class EvaluationMetric(Base):
    """A metric's cluster sums and counts (float64 bytes, in the set's cluster order)."""

    __tablename__ = "evaluation_metrics"

    evaluation_id: Mapped[int] = mapped_column(
        ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True
    )
    metric: Mapped[str] = mapped_column(primary_key=True)
    slice: Mapped[str] = mapped_column(primary_key=True, server_default="all")
    value: Mapped[float]
    n: Mapped[int]
    excluded: Mapped[int]
    paired: Mapped[bool]
    sums: Mapped[bytes] = mapped_column(LargeBinary)
    counts: Mapped[bytes] = mapped_column(LargeBinary)
