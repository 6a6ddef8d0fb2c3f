"""A run: what is trained, on what, with which objective and schedule."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.specs.base import Chosen
from app.specs.evaluation import EvaluationSpec
from app.specs.fingerprint import fingerprint
from app.specs.teacher import CaptureProfile

ObjectiveKind = Literal["forward_kl", "reverse_kl", "jsd", "total_variation", "ce"]
CeTarget = Literal["reference", "logged"]
Decay = Annotated[float, Field(ge=0, lt=1)]
RunRole = Literal["distilled", "sequence_level", "labels_only", "fine_tune"]
SelectBy = Literal["loss", "kl", "agreement", "exact_match", "field_f1"]
BY_ANSWERS: tuple[SelectBy, ...] = ("exact_match", "field_f1")
"""What can only be measured by letting the student answer."""
PACKABLE: tuple[str, ...] = (
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Olmo2ForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
"""Architectures whose packed documents are kept apart exactly, as is proved for each."""


class Objective(Chosen):
    """loss = Σ m(α T² KD + (1 − α) CE) / Σ m, per target token.

    `kind` is the divergence KD from teacher to student at `temperature`; `beta`, the teacher's
    share in the mean that `jsd` compares both with, is read by it alone. `teacher` says where its
    distribution comes from: stored rows (`cache`), or the whole of it from weights held beside the
    student (`live`). `alpha` 0 trains on text alone. `ce_target` names whose text: `reference`
    (ground truth; only conversations that have one) or `logged` (the answer in the traffic).
    """

    kind: ObjectiveKind = "forward_kl"
    temperature: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.5, gt=0, lt=1)
    teacher: Literal["cache", "live"] = "cache"
    alpha: float = Field(default=0.7, ge=0, le=1)
    ce_target: CeTarget = "logged"

    @model_validator(mode="after")
    def _consistent(self) -> "Objective":
        if self.kind == "ce" and self.alpha != 0:
            raise ValueError("objective ce has no teacher term: set alpha to 0 or take forward_kl")
        if self.alpha > 0 and self.ce_target == "reference":
            raise ValueError(
                "teacher rows belong to the logged answer's tokens: "
                "ce_target reference needs alpha 0"
            )
        return self

    @property
    def needs_teacher(self) -> bool:
        return self.alpha > 0

    @property
    def reads_cache(self) -> bool:
        return self.needs_teacher and self.teacher == "cache"

    @property
    def fits_samples(self) -> bool:
        """Whether a sampled tail may train it: at T ≠ 1 weights explode, elsewhere it is biased."""
        return self.kind == "forward_kl" and self.temperature == 1.0


class Schedule(Chosen):
    """Optimiser steps and their shape. A batch is `batch_size` conversations a step.

    `micro_batch_size`: conversations (with `packing`: rows) in memory at once; None lets a memory
    probe choose. `ranks`: processes that share a step. Neither changes a loss beyond rounding.
    `select_by`: which validation metric says what weights are the best. `patience`: so many
    validations without an improvement of it by more than `min_delta` (in the unit it is shown in,
    so points where that is per cent) end the training, counted from the first that found anything
    right; None: never.
    """

    steps: int = Field(default=150, ge=1, le=10_000_000)
    batch_size: int = Field(default=16, ge=1, le=1_000_000)
    micro_batch_size: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0, le=10)
    warmup_steps: int = Field(default=10, ge=0)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    max_grad_norm: float = Field(default=1.0, gt=0)
    snapshot_every: int = Field(default=50, ge=1)
    validate_every: int = Field(default=50, ge=1)
    select_by: SelectBy = "loss"
    selection_conversations: int = Field(default=64, ge=1)
    """Validation conversations answered at most, where `select_by` needs answers."""
    patience: int | None = Field(default=None, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    packing: bool = False
    ranks: int = Field(default=1, ge=1, le=64)

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> "Schedule":
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError("micro_batch_size must be at most batch_size")
        return self


class Trainable(Chosen):
    """Which weights move: all, or the top layers; embeddings (and tied head) may stay frozen."""

    top_layers: int | None = Field(default=None, ge=1)
    freeze_embeddings: bool = False


class RenderSpec(Chosen):
    """How a conversation becomes ids. Cut rule: system stays, oldest turns go, at a user turn.

    `targets` names which assistant turns are learned: all of them, the last one, or the
    `completion`, which is every one after the last user message: in a trace with tools the calls
    too, of which `last_turn` leaves out all but the last message. Flagged turns never are.
    """

    max_tokens: int = Field(default=1024, ge=8)
    targets: Literal["all_turns", "last_turn", "completion"] = "all_turns"
    answer: CeTarget = "logged"


class TrainingSpec(Chosen):
    """Everything the trainer itself reads."""

    objective: Objective = Objective()
    schedule: Schedule = Schedule()
    trainable: Trainable = Trainable()
    render: RenderSpec = RenderSpec()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    loss_chunk_tokens: int = Field(default=256, ge=1)
    gradient_checkpointing: bool = False
    seed: int = Field(default=0, ge=0)
    max_train_conversations: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_answer(self) -> "TrainingSpec":
        if self.render.answer != self.objective.ce_target:
            raise ValueError("render.answer and objective.ce_target must name the same text")
        return self

    @model_validator(mode="after")
    def _selection_is_measured(self) -> "TrainingSpec":
        if self.schedule.select_by == "kl" and not self.objective.needs_teacher:
            raise ValueError(
                "validation KL needs a teacher term: "
                "select by loss or agreement, or set alpha above 0"
            )
        return self


class RunSpec(Chosen):
    """The whole truth of a run, frozen when it starts. Ids are rows of the installation."""

    name: str = Field(min_length=1, max_length=80)
    teacher_id: int | None
    student_id: int
    dataset_version_id: int
    training: TrainingSpec = TrainingSpec()
    capture: CaptureProfile = CaptureProfile()
    evaluation: EvaluationSpec = EvaluationSpec()
    group: str | None = None
    """Runs of one group are compared together."""
    role: RunRole | None = None
    """Only `fine_tune` is set by hand (the product is a teacher); else the objective tells."""

    @property
    def effective_role(self) -> RunRole:
        if self.role is not None:
            return self.role
        if self.training.objective.needs_teacher:
            return "distilled"
        if self.training.objective.ce_target == "reference":
            return "labels_only"
        return "sequence_level"

    @property
    def recipe(self) -> str:
        """Return what addresses all that is chosen but the seed: runs of one differ by it alone."""
        chosen = self.model_dump(mode="json", exclude={"name", "group"})
        del chosen["training"]["seed"]
        return fingerprint(chosen)
