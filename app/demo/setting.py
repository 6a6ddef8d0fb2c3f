"""The demo's two settings: sizes, seeds and every knob. The decision record tells why."""

from typing import Literal

from app.specs.base import Spec
from app.specs.checkpoint import PruneSpec
from app.specs.evaluation import EvaluationSpec
from app.specs.teacher import CaptureProfile
from app.specs.training import (
    CeTarget,
    Objective,
    RenderSpec,
    Schedule,
    Trainable,
    TrainingSpec,
)

REFERENCE_PATH = "metadata.reference"
"""Where the made log keeps the truth of an answer: the import's reference column."""
StudentRole = Literal["distilled", "sequence_level", "labels_only"]


class TicketPlan(Spec):
    """How many tickets are made, from which seeds, and how the import will split them.

    Sizes are exact: the split is by hash, so traffic is drawn until each side is full.
    """

    tune_seed: int
    traffic_seed: int
    tune: int
    """Tickets with their truth that the teacher is tuned on; its validation share included."""
    train: int
    validation: int
    test: int
    labelled: int
    """Train conversations with a reference; validation and test conversations all have one."""
    validation_share: float
    test_share: float


class DemoSetting(Spec):
    """Everything the demo's steps need to know."""

    name: Literal["real", "quick"]
    tickets: TicketPlan
    choosing: TicketPlan
    """The same sizes from other seeds: what the setting was chosen on."""
    tuning: TrainingSpec
    """How the teacher is made from the base checkpoint."""
    tuning_validation_share: float
    student: PruneSpec
    capture: CaptureProfile
    runs: dict[StudentRole, TrainingSpec]
    """The three students, at equal steps, batch and seed."""
    evaluation: EvaluationSpec
    generate_batch_size: int

    def seeded(self, seed: int) -> dict[StudentRole, TrainingSpec]:
        """Return the three runs under another training seed."""
        return {role: spec.model_copy(update={"seed": seed}) for role, spec in self.runs.items()}


def _training(
    schedule: Schedule,
    trainable: Trainable,
    max_tokens: int,
    *,
    alpha: float = 0.0,
    answer: CeTarget = "logged",
) -> TrainingSpec:
    kind: Literal["forward_kl", "ce"] = "forward_kl" if alpha else "ce"
    return TrainingSpec(
        objective=Objective(kind=kind, alpha=alpha, ce_target=answer),
        schedule=schedule,
        trainable=trainable,
        render=RenderSpec(max_tokens=max_tokens, answer=answer),
        precision="float32",
    )


def _runs(
    schedule: Schedule, trainable: Trainable, max_tokens: int, alpha: float
) -> dict[StudentRole, TrainingSpec]:
    return {
        "distilled": _training(schedule, trainable, max_tokens, alpha=alpha),
        "sequence_level": _training(schedule, trainable, max_tokens),
        "labels_only": _training(schedule, trainable, max_tokens, answer="reference"),
    }


def _schedule(steps: int, learning_rate: float, *, batch_size: int = 16) -> Schedule:
    return Schedule(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=10,
        snapshot_every=40,
        validate_every=40,
    )


_REAL_TICKETS = TicketPlan(
    tune_seed=105,
    traffic_seed=106,
    tune=600,
    train=600,
    validation=48,
    test=240,
    labelled=72,
    validation_share=0.055,
    test_share=0.27,
)
REAL = DemoSetting(
    name="real",
    tickets=_REAL_TICKETS,
    choosing=_REAL_TICKETS.model_copy(update={"tune_seed": 1, "traffic_seed": 2}),
    tuning=_training(_schedule(60, 3e-4), Trainable(top_layers=8, freeze_embeddings=True), 96),
    tuning_validation_share=0.08,
    student=PruneSpec(depth=6),
    capture=CaptureProfile(),
    runs=_runs(_schedule(80, 1e-3), Trainable(freeze_embeddings=True), 96, alpha=0.7),
    evaluation=EvaluationSpec(truth="reference", max_new_tokens=24, batch_size=32),
    generate_batch_size=64,
)
_QUICK_TICKETS = TicketPlan(
    tune_seed=201,
    traffic_seed=202,
    tune=480,
    train=480,
    validation=48,
    test=160,
    labelled=32,
    validation_share=0.07,
    test_share=0.23,
)
QUICK = DemoSetting(
    name="quick",
    tickets=_QUICK_TICKETS,
    choosing=_QUICK_TICKETS.model_copy(update={"tune_seed": 11, "traffic_seed": 12}),
    tuning=_training(_schedule(400, 2e-3, batch_size=8), Trainable(), 160),
    tuning_validation_share=0.08,
    student=PruneSpec(depth=1),
    capture=CaptureProfile(),
    runs=_runs(_schedule(150, 3e-3, batch_size=8), Trainable(), 160, alpha=0.7),
    evaluation=EvaluationSpec(truth="reference", max_new_tokens=48, batch_size=32),
    generate_batch_size=64,
)
