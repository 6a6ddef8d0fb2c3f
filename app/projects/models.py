"""A project: a goal, its teacher and student candidates, and what decides."""

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, HasCreated, HasId, HasVersion


class Project(HasId, HasCreated, HasVersion, Base):
    __tablename__ = "projects"

    slug: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    goal: Mapped[str]
    """task_specialisation · style_transfer · cost_cut."""
    description: Mapped[str]
    deciding_metric: Mapped[str]
    tolerance: Mapped[float]
    """In the metric's own unit; a share for percentages (0.02 = 2 points)."""
    teacher_id: Mapped[int | None] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="SET NULL", use_alter=True)
    )
    student_id: Mapped[int | None] = mapped_column(
        ForeignKey("checkpoints.id", ondelete="SET NULL", use_alter=True)
    )
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    last_run_number: Mapped[int] = mapped_column(default=0, server_default="0")

    __table_args__ = (
        CheckConstraint(
            "goal in ('task_specialisation', 'style_transfer', 'cost_cut')", name="goal"
        ),
        CheckConstraint("tolerance >= 0", name="tolerance"),
    )
