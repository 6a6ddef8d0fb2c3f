"""What comes in and goes out across domains: a new project with its teacher, jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from app.checkpoints.schemas import CheckpointAdd, CheckpointOut, RegisterForm
from app.dashboard.caches import CacheLine
from app.dashboard.fan_out import MOST_RUNS, fan_out
from app.errors import InvalidInput
from app.evaluations.schemas import DifferenceOut
from app.projects.schemas import ProjectCreate, ProjectOut
from app.runs.schemas import RunOut, RunRequest
from app.specs.jobs import CancelMode
from app.specs.teacher import CacheReport, CaptureProfile

SourceKind = Literal["none", "folder", "hub"]
TeacherKind = Literal["none", "folder", "hub", "endpoint"]
STUDENT = "student_"
"""Begins the names of the fields about the student; the teacher's are those of RegisterForm."""


@contextmanager
def fields_begin(prefix: str) -> Iterator[None]:
    """Name the fields of a refusal as the form of a new project names them."""
    try:
        yield
    except InvalidInput as error:
        fields = {prefix + name: text for name, text in error.fields.items()}
        raise InvalidInput(error.message, fields=fields) from error


class RunsRequest(RootModel[list[RunRequest]]):
    """Several runs: a list of them, or one whose settings list values.

    `{"name": "kd", "training": {"seed": [0, 1, 2]}}` stands for three, named after what varies.
    """

    root: list[RunRequest] = Field(min_length=1, max_length=MOST_RUNS)

    @model_validator(mode="before")
    @classmethod
    def _fan_out(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        # Each by itself: an error then names its field as that of one run.
        return [RunRequest.model_validate(one) for one in fan_out(given)]


class NewProject(ProjectCreate):
    """The form of a new project; its teacher and its student may be named at once."""

    kind: TeacherKind = "none"
    path: str = Field(default="", max_length=1000)
    repo_id: str = Field(default="", max_length=200)
    revision: str = Field(default="main", min_length=1, max_length=200)
    token: str = Field(default="", max_length=500, repr=False)
    base_url: str = Field(default="", max_length=500)
    model: str = Field(default="", max_length=300)
    tokenizer: str = Field(default="", max_length=1000)
    at_once: int = Field(default=8, ge=1, le=256)
    api_key: str = Field(default="", max_length=500, pattern=r"^[\x21-\x7e]*$", repr=False)
    student_kind: SourceKind = "none"
    """none: it is cut from the teacher later."""
    student_path: str = Field(default="", max_length=1000)
    student_repo_id: str = Field(default="", max_length=200)
    student_revision: str = Field(default="main", min_length=1, max_length=200)
    student_token: str = Field(default="", max_length=500, repr=False)

    def teacher(self) -> CheckpointAdd | None:
        """Return the teacher to register, or None. Errors: InvalidInput naming the field."""
        return self._named("")

    def student(self) -> CheckpointAdd | None:
        """Return the student to register, or None. Errors: InvalidInput naming the field.

        A source whose last part is the teacher's name too is told apart by a suffix.
        """
        teacher, found = self.teacher(), self._named(STUDENT)
        if found is None or teacher is None or found.name != teacher.name:
            return found
        if found.source == teacher.source:
            field = "path" if self.student_kind == "folder" else "repo_id"
            sentence = "Must be another checkpoint than the teacher."
            raise InvalidInput("Teacher and student are one.", fields={STUDENT + field: sentence})
        return found.model_copy(update={"name": f"{found.name[:72]}-student"})

    def _named(self, prefix: str) -> CheckpointAdd | None:
        names = ["kind", "path", "repo_id", "revision", "token"]
        if not prefix:  # only a teacher may be behind a server
            names += ["base_url", "model", "tokenizer", "at_once", "api_key"]
        given = {name: getattr(self, prefix + name) for name in names}
        if given["kind"] == "none":
            return None
        with fields_begin(prefix):
            return RegisterForm.model_validate(given).add()


class CancelRequest(BaseModel):
    """`keep`: finish the step in hand and save; `discard`: stop and keep nothing."""

    mode: CancelMode = "discard"


class JobOut(BaseModel):
    """A job with its place in the queue; times are UTC, durations seconds."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    kind: str
    queue: str
    title: str
    state: str
    project: str | None
    """The project's slug."""
    owner: str | None
    stream: str
    phase: str | None
    progress: dict[str, Any] | None
    """{"done", "total", "unit", "eta_seconds"} of the phase in hand."""
    attempt: int
    position: int | None
    reason: str
    worker: str | None
    error: str | None
    message: str | None
    result: dict[str, Any] | None
    parent_id: int | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    waited_seconds: float
    ran_seconds: float | None


class AttemptOut(BaseModel):
    """One claim of one of a run's jobs by a worker, and how it ended."""

    model_config = ConfigDict(from_attributes=True)

    job_id: int
    phase: str
    """precompute · train · evaluate."""
    n: int
    fence: int
    worker: str
    outcome: str | None
    """succeeded · failed · cancelled · lost · released; None while it works."""
    exit_code: int | None
    signal: int | None
    oom: bool
    why: str
    """The same in words; empty where nothing is to be said."""
    started_at: datetime
    ended_at: datetime | None
    resumed_from_step: int | None
    last_step: int | None


class SnapshotOut(BaseModel):
    """A training state on disk; `value` is what the spec selects by, at its step."""

    model_config = ConfigDict(from_attributes=True)

    step: int
    value: float | None
    best: bool
    created_at: datetime


class RunDetail(RunOut):
    """One run with what its page shows below the phases, the newest first."""

    attempts: list[AttemptOut]
    snapshots: list[SnapshotOut]
    """The newest of the training."""
    kept: str
    """Of which step the trained weights are and by what; empty before, and where nobody knows."""
    ended: str
    """Why the training ended before its last step; empty where it did not."""
    resumes_after: int | None
    """Step after which training goes on when the ended run is tried again; None: it starts anew."""
    snapshots_until: datetime | None
    """When the snapshots of an ended run are removed, unless it is tried again or discarded."""
    last_event_id: int
    """Where `events?after=` goes on from what is read here."""


class WorkerOut(BaseModel):
    """A worker heard within the last hour."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    queue: str
    host: str
    state: str
    """busy · idle, or lost (gone with a job in hand) · gone."""
    job_id: int | None
    job_title: str | None
    device: str | None
    seen_at: datetime
    age_seconds: float


class NextStepOut(BaseModel):
    """The one thing to do now, as the project's home names it."""

    model_config = ConfigDict(from_attributes=True)

    part: str
    """The step of the pipeline it belongs to."""
    state: str
    """A status word; `words` say it in full."""
    words: str
    title: str
    text: str
    label: str
    href: str
    """The page where it is done."""


class StepOut(BaseModel):
    """A step from teacher to evaluation; `progress` is a share, 0 to 1."""

    model_config = ConfigDict(from_attributes=True)

    key: str
    name: str
    status: str
    title: str
    text: str
    progress: float | None


class VerdictOut(BaseModel):
    """The newest evaluated distilled run against the teacher, on the deciding metric."""

    run: int
    name: str
    words: str
    """Such as `within 2 points`; `not compared` where the teacher is not evaluated on that set."""
    sentence: str
    difference: DifferenceOut | None


class OverviewOut(ProjectOut):
    """A project as the list of projects shows it."""

    owner: str | None
    created_at: datetime
    activity: datetime
    """When something was last asked for, started or ended."""
    runs: int
    teacher: str | None
    student: str | None
    compute: float | None
    """Compression: the teacher's compute per token over the student's."""
    next: NextStepOut
    verdict: VerdictOut | None


class ProjectOverview(OverviewOut):
    """One project with the steps of its home page."""

    steps: list[StepOut]


class RunUseOut(BaseModel):
    """A run that a checkpoint has a part in: teacher · student · made it."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    name: str
    part: str


class CheckpointDetail(CheckpointOut):
    """One checkpoint with the runs that use it, the newest first."""

    runs: list[RunUseOut]
    used_by: list[str]
    """Everything that forbids to remove it, in words."""


class CoveredOut(BaseModel):
    """How much of a dataset version lies in a cache, as the last capture of it found."""

    model_config = ConfigDict(from_attributes=True)

    version_id: int
    name: str
    conversations: int
    cached: int


class CacheSpaceOut(BaseModel):
    """A teacher's rows under one profile: what they take, hold, and who reads them."""

    address: str
    teacher: str
    teacher_id: int
    profile: CaptureProfile
    served: bool
    """Asked of a server: its likeliest tokens, one bucket, T = 1; entropy is a lower bound."""
    shards: int
    rows: int
    bytes: int
    report: CacheReport | None
    """Of the last capture: captured mass by temperature, entropy, faithfulness."""
    hit_rate: float | None
    """Share of the rows that captures asked for that had been scored before."""
    covered: list[CoveredOut]
    runs: list[int]
    used_at: datetime | None

    @classmethod
    def of(cls, line: CacheLine) -> "CacheSpaceOut":
        return cls(
            address=line.address,
            teacher=line.teacher,
            teacher_id=line.teacher_id,
            profile=line.space.profile,
            served=line.space.served,
            shards=line.size.shards,
            rows=line.size.rows,
            bytes=line.size.bytes,
            report=line.report,
            hit_rate=line.hit_rate,
            covered=[CoveredOut.model_validate(c) for c in line.covered],
            runs=[number for number, _ in line.runs],
            used_at=line.used_at,
        )
