"""What comes in and goes out about evaluations and comparisons."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.specs.conversation import Message

Outcome = Literal["all", "wins", "losses", "ties"]


class Choice(BaseModel):
    """Which rows to compare: runs by name or number, evaluations by id, or a whole group.

    Nothing chosen: the last group whose runs have all ended. `baseline`: a row's name or key.
    """

    model_config = ConfigDict(frozen=True)

    runs: tuple[str, ...] = ()
    evaluations: tuple[int, ...] = ()
    group: str | None = None
    baseline: str | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.runs or self.evaluations or self.group)


EvaluationState = Literal["pending", "done", "failed"]


class CellOut(BaseModel):
    """A value in the metric's stored unit (shares 0 to 1); null: not measured, or no interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class MeasuredOut(CellOut):
    excluded: int
    """Conversations that have no value."""


class ComparedRowOut(BaseModel):
    name: str
    role: str
    cells: dict[str, CellOut]


class DifferenceOut(BaseModel):
    """a − b, with what the interval allows to say."""

    a: str
    b: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    verdict: str
    reason: str | None
    """Why there is no verdict, where the figures seem to give one."""


class ComparisonOut(BaseModel):
    """What `runs compare --json` prints. `tolerance` is in shown units (points)."""

    deciding_metric: str
    tolerance: float
    baseline: str | None
    sentence: str
    warnings: list[str]
    rows: list[ComparedRowOut]
    differences: list[DifferenceOut]
    recipes: "ComparisonOut | None" = None
    """Over seeds, of the recipes that were trained with three or more."""


class EvaluationOut(BaseModel):
    """An evaluation; `cells` is empty until it is done."""

    id: int
    name: str
    role: str
    run: int | None
    """Number of the run whose checkpoint this is."""
    checkpoint_id: int | None
    state: str
    set_name: str
    """Dataset and version, such as “traffic@3”."""
    set_key: str
    spec: dict[str, Any]
    conversations: int | None
    seconds: float | None
    created_at: datetime
    job_id: int | None
    cells: dict[str, MeasuredOut]


class ExampleFilter(BaseModel):
    """Which examples, and by which score: `against` is an evaluation of the same set."""

    model_config = ConfigDict(frozen=True)

    metric: str = "exact_match"
    against: int | None = None
    outcome: Outcome = "all"
    wrong: bool = False
    search: str = Field(default="", max_length=200)
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=20, ge=1, le=200)


class ExampleOut(BaseModel):
    """One conversation's last turn. Scores are of this answer, `other_…` of the one beside it."""

    place: int
    """1 is the worst of those shown."""
    conversation_id: str
    prompt_tail: str
    truth: str | None
    truth_kind: str | None
    logged_answer: str | None
    prediction: str
    other_prediction: str | None
    score: float | None
    other_score: float | None
    scores: dict[str, float | None]
    other_scores: dict[str, float | None]
    tokens: int
    finish_reason: str
    outcome: Literal["win", "loss", "tie"] | None
    """Against the other evaluation; null where one of the two has no score."""


class ExamplesOut(BaseModel):
    """A page of examples, worst first, and how many there are of each outcome."""

    metric: str
    against: int | None
    total: int
    """Examples that the filters leave."""
    wins: int
    losses: int
    ties_right: int
    ties_wrong: int
    ties: int
    not_scored: int
    examples: list[ExampleOut]


class PromptOut(BaseModel):
    """All that stands before an evaluated answer, as the set has it."""

    conversation_id: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]

    @property
    def characters(self) -> int:
        return sum(message.characters for message in self.messages)
