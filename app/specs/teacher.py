"""Teacher targets: what is captured, and where a cache is addressed."""

from typing import Literal

from pydantic import Field, field_validator

from app.specs.base import Chosen, Spec
from app.specs.fingerprint import fingerprint

SHARD_FORMAT = 1


class CaptureProfile(Chosen):
    """How much of the teacher's distribution a row keeps (engine: head mass, bucket per T)."""

    name: Literal["standard"] = "standard"
    head_mass: float = Field(default=0.95, gt=0, lt=1)
    k_min: int = Field(default=4, ge=1)
    k_max: int = Field(default=32, ge=1)
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)

    @field_validator("temperatures")
    @classmethod
    def _sorted_grid(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 not in grid or any(t <= 0 for t in grid):
            raise ValueError("the temperature grid needs 1 and positive values only")
        return tuple(sorted(set(grid)))


class CacheSpace(Spec):
    """Everything that changes a stored row; its fingerprint is the cache's address."""

    weights_fingerprint: str
    tokenizer_fingerprint: str
    vocabulary: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["eager", "sdpa"] = "sdpa"
    profile: CaptureProfile = CaptureProfile()
    shard_format: int = SHARD_FORMAT

    @property
    def address(self) -> str:
        return fingerprint(self)


class Faithfulness(Spec):
    """Re-scored sample: KL(stored‖live) beside KL(live‖live′), nats per token."""

    tokens: int
    stored_live: float
    live_live: float
    passed: bool
    sentence: str


class CacheReport(Spec):
    """What a capture job found and made."""

    entries: int
    rows: int
    new_entries: int
    new_rows: int
    missing_entries: int = 0
    """What a call that was stopped left undone."""
    missing_rows: int = 0
    bytes: int
    seconds: float
    bare_forward_seconds: float | None = None
    captured_mass: dict[str, float] = Field(default_factory=dict)
    """Mean head mass per temperature of the grid."""
    mean_entropy: float = 0.0
    faithfulness: Faithfulness | None = None
