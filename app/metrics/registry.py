"""Every metric's unit, direction, digits and meaning."""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower", "none"]


@dataclass(frozen=True, slots=True)
class Metric:
    """How one metric is read. `percent`: stored 0 to 1, shown ×100, differences in points."""

    name: str
    label: str
    unit: str
    direction: Direction
    digits: int
    meaning: str
    percent: bool = False
    judged: bool = True
    """False: no verdict. Speeds are timed one after another, on a machine that may do more."""
    counted: str = "conversations"
    """What its n counts."""
    beside: str | None = None
    """A better value is no merit where this metric is worse by more than the tolerance."""

    @property
    def scale(self) -> float:
        return 100.0 if self.percent else 1.0


_ALL = (
    Metric(
        "exact_match", "Exact match", "%", "higher", 1, "Answers equal to the truth", percent=True
    ),
    Metric(
        "field_f1", "Field F1", "%", "higher", 1, "F1 over the fields of JSON answers", percent=True
    ),
    Metric("kl", "KL to teacher", "nats", "lower", 3, "KL per target token, full vocabulary"),
    Metric(
        "agreement",
        "Agreement",
        "%",
        "higher",
        1,
        "Target tokens where student and teacher have the same top token",
        percent=True,
    ),
    Metric(
        "ece",
        "ECE",
        "",
        "lower",
        3,
        "Expected calibration error: an answer's probability against its exact match",
        beside="exact_match",
    ),
    Metric(
        "tokens_per_second",
        "Generation speed",
        "tokens/s",
        "higher",
        0,
        "Generated tokens per second",
        judged=False,
        counted="batches",
    ),
    Metric("train/loss", "Training loss", "nats", "lower", 4, "Weighted loss per target token"),
    Metric("train/kd_loss", "KD loss", "nats", "lower", 4, "Bucket KL to the teacher, per token"),
    Metric("train/ce_loss", "CE loss", "nats", "lower", 4, "Cross-entropy per labelled token"),
    Metric("validation/loss", "Validation loss", "nats", "lower", 4, "Loss on validation data"),
    Metric("validation/kl", "Validation KL", "nats", "lower", 4, "KL on validation data"),
    Metric(
        "validation/agreement",
        "Token agreement",
        "%",
        "higher",
        1,
        "Validation tokens whose top one is the teacher's, or the label without a teacher",
        percent=True,
    ),
    Metric(
        "validation/exact_match",
        "Validation exact match",
        "%",
        "higher",
        1,
        "Answers on validation data equal to the truth",
        percent=True,
    ),
    Metric(
        "validation/field_f1",
        "Validation field F1",
        "%",
        "higher",
        1,
        "F1 over the fields of JSON answers on validation data",
        percent=True,
    ),
    Metric("optim/grad_norm", "Gradient norm", "", "none", 3, "Norm before clipping"),
    Metric("optim/learning_rate", "Learning rate", "", "none", 6, "Rate of this step"),
    Metric(
        "perf/tokens_per_second",
        "Training speed",
        "tokens/s",
        "higher",
        0,
        "Trained tokens per second",
    ),
    Metric("data/tokens", "Tokens seen", "tokens", "none", 0, "Target tokens trained on so far"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
DECIDING: tuple[str, ...] = ("exact_match", "field_f1", "agreement", "kl")
