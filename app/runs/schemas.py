"""What comes in and goes out about runs."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.specs.evaluation import EvaluationSpec
from app.specs.jobs import CancelMode
from app.specs.names import Name, NameOrEmpty
from app.specs.preview import RenderPreview
from app.specs.teacher import CaptureProfile
from app.specs.training import RunRole, TrainingSpec

Phase = Literal["precompute", "train", "evaluate"]
PHASES: tuple[Phase, ...] = ("precompute", "train", "evaluate")


class RunRequest(BaseModel):
    """A RunSpec as people write it: checkpoints by name or id, the dataset as `name[@number]`.

    Without a teacher or student the project's are taken; `teacher: null` asks for none.
    """

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    name: Name
    teacher: str | int | None = None
    student: str | int | None = None
    dataset: str | int | None = None
    teacher_id: int | None = None
    student_id: int | None = None
    dataset_version_id: int | None = None
    training: TrainingSpec = TrainingSpec()
    capture: CaptureProfile = CaptureProfile()
    evaluation: EvaluationSpec = EvaluationSpec()
    group: NameOrEmpty | None = None
    role: RunRole | None = None

    @model_validator(mode="after")
    def _named_once(self) -> "RunRequest":
        pairs = (
            ("teacher", "teacher_id"),
            ("student", "student_id"),
            ("dataset", "dataset_version_id"),
        )
        for one, other in pairs:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"give {one} or {other}, not both")
        return self

    def gives(self, one: str, other: str) -> bool:
        """Return whether either field was sent at all (null counts)."""
        return bool({one, other} & self.model_fields_set)


class CancelRequest(BaseModel):
    """`keep`: the step in hand ends and what was learned becomes a checkpoint."""

    mode: CancelMode = "keep"


class PreviewOut(BaseModel):
    """What a run would learn; `preview` is null until its job has succeeded."""

    job_id: int
    state: str
    message: str | None
    preview: RenderPreview | None


class PhaseOut(BaseModel):
    """One job of a run, the newest of its role."""

    role: Phase
    job_id: int
    kind: str
    state: str
    title: str
    attempt: int
    phase: str | None
    progress: dict[str, Any] | None
    error: str | None
    message: str | None
    started_at: datetime | None
    ended_at: datetime | None


class RunOut(BaseModel):
    """A run. `state` follows from its jobs; `progress` is that of the job in hand."""

    number: int
    name: str
    role: str
    group: str | None
    state: str
    phase: Phase | None
    progress: dict[str, Any] | None
    error: str | None
    message: str | None
    teacher_id: int | None
    student_id: int | None
    dataset_version_id: int | None
    checkpoint_id: int | None
    parent: int | None
    owner: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    seconds: float | None
    spec: dict[str, Any]
    jobs: list[PhaseOut]


class LogLine(BaseModel):
    id: int
    at: datetime
    job_id: int | None
    level: str
    text: str


class RunLog(BaseModel):
    lines: list[LogLine]


class CacheOut(BaseModel):
    """What the teacher cache covers of the version; `cached` None: never measured."""

    conversations: int
    cached: int | None
    missing_tokens: int
    basis: str
    """Where the numbers come from, in a sentence."""
    rows_from: str | None = None
    """Where a server's rows come from and what that limits, in a sentence."""
    captured_mass: dict[str, float] = Field(default_factory=dict)
    """Temperature → mean share of the teacher's mass that rows keep one by one."""
    faithfulness: str | None = None
    """What re-scoring a sample live found, in a sentence."""


class Seconds(BaseModel):
    """A time as a range."""

    low: float
    middle: float
    high: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(
            low=self.low + other.low, middle=self.middle + other.middle, high=self.high + other.high
        )


class PartOut(BaseModel):
    """Time of one phase; `seconds` None with the reason in `basis`."""

    phase: Phase
    seconds: Seconds | None
    basis: str
    of: list[str] = Field(default_factory=list)
    """Roles of the table that this evaluates beside the run; empty: the run's own part."""


class Mend(BaseModel):
    """A change of the form that takes a reason away: field → value."""

    label: str
    values: dict[str, str]


class Reason(BaseModel):
    """Why a run cannot start, and what would mend it."""

    sentence: str
    field: str | None = None
    """The setting it is about, by its name in the spec; None: something else."""
    mends: list[Mend] = Field(default_factory=list)


class EstimateOut(BaseModel):
    """What is known before a run starts; `blocked` says why it cannot: all reasons in a text."""

    blocked: str | None
    reasons: list[Reason]
    warnings: list[str]
    tokens: int
    """Tokens the training reads, padding left out."""
    tokens_basis: str
    epochs: float
    cache: CacheOut | None
    disk_bytes: int
    """What stays when the run has ended."""
    disk_peak_bytes: int = 0
    """With the snapshots there are while it trains; compared with what is free."""
    disk: dict[str, int]
    """cache · checkpoint · snapshots (which go when the run ends)."""
    disk_others: int = 0
    """Runs that wait, work or start before it, whose training has not ended."""
    disk_others_bytes: int = 0
    """What they will still write beyond this run's own peak; it counts against what is free."""
    seconds: Seconds | None
    parts: list[PartOut]
