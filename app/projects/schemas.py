"""What comes in and goes out about projects."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.metrics.registry import DECIDING
from app.specs.names import Name

Goal = Literal["task_specialisation", "style_transfer", "cost_cut"]
Role = Literal["teacher", "student"]
GOALS: tuple[tuple[Goal, str, str], ...] = (
    ("task_specialisation", "Task specialisation", "One task of yours, as good as the teacher."),
    ("style_transfer", "Format or style transfer", "Its way to answer, in a smaller checkpoint."),
    ("cost_cut", "Cost cut", "A checkpoint you serve today, cheaper and faster."),
)


class ProjectBasics(BaseModel):
    """What a project is about. Tolerance is in shown units: points for percentages."""

    goal: Goal = "task_specialisation"
    description: str = Field(default="", max_length=2000)
    deciding_metric: str = "exact_match"
    tolerance: float = Field(default=2.0, ge=0, le=100, allow_inf_nan=False)

    @field_validator("deciding_metric")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in DECIDING:
            raise ValueError(f"must be one of {', '.join(DECIDING)}")
        return name


class ProjectCreate(ProjectBasics):
    """A new project; its teacher and student come later, since checkpoints belong to a project."""

    name: Name


class ProjectEdit(ProjectBasics):
    """What may change later. The address stays when the name changes; None keeps the name."""

    name: Name | None = None
    teacher_id: int | None = None
    student_id: int | None = None
    version: int | None = None
    """The version that was read; an edit of an older one is refused. None asks for no check."""


class ProjectOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    slug: str
    name: str
    goal: str
    description: str
    deciding_metric: str
    tolerance: float
    teacher_id: int | None
    student_id: int | None
    version: int
