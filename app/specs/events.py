"""What a job body tells the world while it works: one small value a line, over a pipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from app.specs.base import Spec


class PhaseEvent(Spec):
    """A named phase has begun ("load", "train", "save best" …)."""

    type: Literal["phase"] = "phase"
    name: str


class ProgressEvent(Spec):
    type: Literal["progress"] = "progress"
    done: int
    total: int
    unit: str
    eta_seconds: float | None = None


class MetricEvent(Spec):
    """Points of one step: names as in METRICS or `train/kd_loss`, values in the metric's unit."""

    type: Literal["metric"] = "metric"
    step: int
    values: dict[str, float]


class LogEvent(Spec):
    type: Literal["log"] = "log"
    level: Literal["info", "warning", "error"] = "info"
    text: str


class SnapshotEvent(Spec):
    """A complete snapshot lies in `folder` (manifest verified); a fenced row makes it visible."""

    type: Literal["snapshot"] = "snapshot"
    step: int
    folder: str
    manifest_sha256: str
    best: bool = False
    value: float | None = None


class ResumedEvent(Spec):
    """The body goes on after `step`: the newest sound snapshot may be older than the newest row."""

    type: Literal["resumed"] = "resumed"
    step: int


class PublishEvent(Spec):
    """A finished part (a teacher shard, say) that the task's `publish` writes under the fence."""

    type: Literal["publish"] = "publish"
    payload: dict[str, Any]


class ResultEvent(Spec):
    """The body's return value; the last line of a job that succeeded."""

    type: Literal["result"] = "result"
    payload: dict[str, Any]


class ErrorEvent(Spec):
    """A named failure: `retryable` is for infrastructure only, never for bad input."""

    type: Literal["error"] = "error"
    error: str
    message: str
    retryable: bool = False


BodyEvent = Annotated[
    PhaseEvent
    | ProgressEvent
    | MetricEvent
    | LogEvent
    | SnapshotEvent
    | ResumedEvent
    | PublishEvent
    | ResultEvent
    | ErrorEvent,
    Field(discriminator="type"),
]
BODY_EVENT: TypeAdapter[BodyEvent] = TypeAdapter(BodyEvent)
