"""Teacher targets: what is captured, and where a cache is addressed."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from app.specs.base import Chosen, Spec
from app.specs.fingerprint import fingerprint

SHARD_FORMAT = 2
MOST_HEAD = 65_535
"""The longest head a row can have."""
AUDIT_HEAD = 256
MOST_SAMPLES = 64
ProfileName = Literal["standard", "sampled", "audit", "dense"]
PROFILES: dict[ProfileName, dict[str, Any]] = {
    "standard": {"k_min": 4, "k_max": 32, "tail_samples": 0},
    "sampled": {"k_min": 4, "k_max": 32, "tail_samples": 8},
    "audit": {"k_min": AUDIT_HEAD, "k_max": AUDIT_HEAD, "tail_samples": 0},
    "dense": {"k_min": MOST_HEAD, "k_max": MOST_HEAD, "tail_samples": 0},
}
"""What each profile keeps, unless the spec says otherwise."""


class CaptureProfile(Chosen):
    """How much of the teacher's distribution a row keeps.

    A head: the likeliest tokens until they hold `head_mass`, at least `k_min` and at most `k_max`
    of them, and the mass of the rest per temperature of the grid. `sampled` adds systematic samples
    of the rest at T = 1, `audit` keeps 256 tokens whatever they hold, `dense` the whole vocabulary
    (small ones only); the latter two store log p in 16 bits instead of 8.
    """

    name: ProfileName = "standard"
    head_mass: float = Field(default=0.95, gt=0, lt=1)
    k_min: int = Field(default=4, ge=1, le=MOST_HEAD)
    k_max: int = Field(default=32, ge=1, le=MOST_HEAD)
    tail_samples: int = Field(default=0, ge=0, le=MOST_SAMPLES)
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)

    @model_validator(mode="before")
    @classmethod
    def _of_its_name(cls, given: Any) -> Any:
        """Fill in what the profile's name stands for."""
        if not isinstance(given, dict):
            return given
        usual = PROFILES.get(given.get("name", "standard"), {})
        return {**usual, **{k: v for k, v in given.items() if v is not None}}

    @model_validator(mode="after")
    def _true_to_its_name(self) -> "CaptureProfile":
        if self.k_min > self.k_max:
            raise ValueError("k_min must be at most k_max")
        if (self.name == "sampled") != (self.tail_samples > 0):
            raise ValueError(
                "samples of the rest (tail_samples) belong to the profile sampled: it needs at "
                "least 1, the others 0"
            )
        if self.name == "audit" and self.k_min < AUDIT_HEAD:
            raise ValueError(f"the profile audit keeps at least {AUDIT_HEAD} tokens: raise k_min")
        if self.name == "dense" and self.k_min < MOST_HEAD:
            raise ValueError(f"the profile dense keeps all tokens: k_min and k_max {MOST_HEAD}")
        return self

    @property
    def sentence(self) -> str:
        """Return in words what is kept of a token."""
        if self.name == "dense":
            return "The whole distribution."
        rest = "the rest as one bucket"
        if self.tail_samples:
            rest += f" and {self.tail_samples} samples of it at T = 1"
        if self.k_min == self.k_max:
            return f"The likeliest {self.k_max}, {rest}."
        until = f"until {100 * self.head_mass:g} % of the mass"
        return f"The likeliest {self.k_min} to {self.k_max} {until}, {rest}."

    @property
    def value_bytes(self) -> Literal[1, 2]:
        """How many bytes a stored log-probability takes."""
        return 2 if self.name in ("audit", "dense") else 1

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
    dtype: Literal["float32", "bfloat16", "served"] = "float32"
    attention: Literal["eager", "sdpa", "served"] = "sdpa"
    profile: CaptureProfile = CaptureProfile()
    shard_format: int = SHARD_FORMAT

    @property
    def address(self) -> str:
        return fingerprint(self)

    @property
    def served(self) -> bool:
        """Whether the rows were asked of a server: how it computes them, nobody knows."""
        return self.dtype == "served"


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
    measured_rows: int = 0
    """Of a space: the rows that these means are over."""
    mean_entropy: float = 0.0
    faithfulness: Faithfulness | None = None
