"""What an evaluation measures and the values it leaves."""

from typing import Literal

from pydantic import Field

from app.specs.base import Chosen, Spec
from app.specs.conversation import Split


class EvaluationSpec(Chosen):
    """The basic pack: generation scored against a truth, and fidelity on the logged answer.

    `truth` is what generated answers are compared with: the reference where there is one, else the
    logged answer (`auto`), or only one of them.
    """

    pack: Literal["basic"] = "basic"
    split: Split = "test"
    truth: Literal["auto", "reference", "logged"] = "auto"
    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_conversations: int | None = Field(default=None, ge=1)
    ece_bins: int = Field(default=15, ge=2)


class MetricSums(Spec):
    """One metric as sums per cluster, in the set's cluster order: value = Σ sums / Σ counts."""

    metric: str
    sums: tuple[float, ...]
    counts: tuple[float, ...]
    n: int
    """Conversations (or batches, for speeds) that the value rests on."""
    excluded: int = 0
    paired: bool = True
    """False where clusters of two evaluations do not correspond (speeds)."""


class EvaluationReport(Spec):
    """What an evaluation job returns; per-example rows lie in a Parquet file beside it."""

    conversations: int
    clusters: tuple[str, ...]
    metrics: tuple[MetricSums, ...]
    seconds: float
    generated_tokens: int
