"""Units of work: kinds, queues, states, and the spec each kind of job carries.

A job knows no run: `stream` is the name of the event stream it reports to ("run:12").
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from app.specs.base import Spec
from app.specs.checkpoint import CheckpointSource, PruneSpec
from app.specs.conversation import FormatName
from app.specs.evaluation import EvaluationSpec
from app.specs.teacher import CaptureProfile
from app.specs.training import RenderSpec, RunSpec


class JobKind(StrEnum):
    INSPECT = "inspect"
    IMPORT = "import"
    FREEZE = "freeze"
    REGISTER = "register"
    PRUNE = "prune"
    GENERATE = "generate"
    PRECOMPUTE = "precompute"
    TRAIN = "train"
    EVALUATE = "evaluate"
    PREVIEW = "preview"


class Queue(StrEnum):
    CPU = "cpu"
    GPU = "gpu"


QUEUE_OF: dict[JobKind, Queue] = {
    JobKind.INSPECT: Queue.CPU,
    JobKind.IMPORT: Queue.CPU,
    JobKind.FREEZE: Queue.CPU,
    JobKind.REGISTER: Queue.CPU,
    JobKind.PRUNE: Queue.GPU,
    JobKind.GENERATE: Queue.GPU,
    JobKind.PRECOMPUTE: Queue.GPU,
    JobKind.TRAIN: Queue.GPU,
    JobKind.EVALUATE: Queue.GPU,
    JobKind.PREVIEW: Queue.CPU,
}


class JobState(StrEnum):
    BLOCKED = "blocked"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ACTIVE_STATES = frozenset({JobState.STARTING, JobState.RUNNING, JobState.CANCELLING})
CancelMode = Literal["keep", "discard"]


class InspectJob(Spec):
    upload_id: int


class ImportJob(Spec):
    """Import uploads into a draft dataset version."""

    dataset_version_id: int
    upload_ids: tuple[int, ...]
    format: FormatName | Literal["auto"] = "auto"
    reference_path: str | None = None
    """JSON path (a.b.c) or CSV column that holds the ground truth of the record's answer."""
    validation_share: float = Field(default=0.1, ge=0, le=0.5)
    test_share: float = Field(default=0.2, ge=0, le=0.5)


class FreezeJob(Spec):
    dataset_version_id: int


class RegisterJob(Spec):
    checkpoint_id: int
    source: CheckpointSource


class PruneJob(Spec):
    checkpoint_id: int
    """The checkpoint row that the result fills."""
    teacher_id: int
    dataset_version_id: int | None = None
    """Whose conversations rank the channels; the teacher's own weights alone when absent."""
    prune: PruneSpec


class GenerateJob(Spec):
    """A checkpoint answers prompts; the answers become an upload in OpenAI chat format."""

    checkpoint_id: int
    prompts_upload_id: int
    """JSONL of OpenAI chat requests: {"messages": […], …}; other fields are carried along."""
    output_upload_id: int
    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=32, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0


class PrecomputeJob(Spec):
    """Fill the teacher cache for a dataset version's train and validation conversations.

    `part` of `parts`, counted from 0: every so many-th shard of the plan alone, unchecked, for the
    job without a part that comes after and completes the cache.
    """

    teacher_id: int
    dataset_version_id: int
    render: RenderSpec
    profile: CaptureProfile = CaptureProfile()
    shard_rows: int = Field(default=16_384, ge=1)
    check_faithfulness: bool = True
    max_train_conversations: int | None = Field(default=None, ge=1)
    """Of the training part only so many, as a run that trains on no more reads."""
    part: int | None = Field(default=None, ge=0)
    parts: int = Field(default=1, ge=1)


class TrainJob(Spec):
    run_id: int
    run: RunSpec


class EvaluateJob(Spec):
    """Evaluate a checkpoint; `teacher_id` scores fidelity. One evaluation row is filled."""

    evaluation_id: int
    checkpoint_id: int | None
    """None: the checkpoint of the run named by `run_id`, known once it has trained."""
    run_id: int | None = None
    teacher_id: int | None
    dataset_version_id: int
    render: RenderSpec
    evaluation: EvaluationSpec


class PreviewJob(Spec):
    """Show what a training would learn of a version's first training conversations."""

    checkpoint_id: int
    """Whose tokenizer and chat template render them: the student's."""
    dataset_version_id: int
    render: RenderSpec
    look_at: int = Field(default=200, ge=1)


JobSpec = (
    InspectJob
    | ImportJob
    | FreezeJob
    | RegisterJob
    | PruneJob
    | GenerateJob
    | PrecomputeJob
    | TrainJob
    | EvaluateJob
    | PreviewJob
)
SPEC_OF: dict[JobKind, type[Spec]] = {
    JobKind.INSPECT: InspectJob,
    JobKind.IMPORT: ImportJob,
    JobKind.FREEZE: FreezeJob,
    JobKind.REGISTER: RegisterJob,
    JobKind.PRUNE: PruneJob,
    JobKind.GENERATE: GenerateJob,
    JobKind.PRECOMPUTE: PrecomputeJob,
    JobKind.TRAIN: TrainJob,
    JobKind.EVALUATE: EvaluateJob,
    JobKind.PREVIEW: PreviewJob,
}
