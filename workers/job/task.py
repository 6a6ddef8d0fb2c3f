"""What a kind of job brings: load (with a session), run (in a child, without), apply."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sqlalchemy.orm import Session

from app.jobs.lease import Claim
from app.settings import Settings
from app.specs.base import Spec
from app.specs.jobs import JobKind
from workers.sinks import PipeCallbacks


class Inputs(Spec):
    """What `load` found out, as the child receives it: a base for each task's own inputs."""

    cards: int = 1
    """Graphics cards that the body can use at once; it gets at least one, and no busy one."""


@dataclass(frozen=True, slots=True)
class BodyContext:
    """What a body may use: its own folder, the blob root (read only), and the event pipe."""

    workdir: Path
    blobs: Path
    snapshots: tuple[tuple[int, Path, str], ...]
    """(step, folder, manifest SHA-256), newest first: try them in this order."""
    callbacks: PipeCallbacks


class UserError(Exception):
    """Bad input or a named failure: shown as it is, never retried."""


class Task(Protocol):
    """One kind of job. `load` and `apply` run in the supervisor, each in one short transaction."""

    kind: JobKind
    inputs: type[Inputs]

    def load(self, session: Session, spec: Mapping[str, Any], settings: Settings) -> Inputs:
        """Resolve ids into paths and plain values; raise an AppError for what is missing."""

    def run(self, inputs: Any, context: BodyContext) -> dict[str, Any]:
        """Compute in the child; write files into `context.workdir` only."""

    def publish(
        self, session: Session, held: Claim, payload: dict[str, Any], settings: Settings
    ) -> None:
        """Write one finished part, inside a fenced transaction."""

    def apply(
        self, session: Session, held: Claim, result: dict[str, Any], settings: Settings
    ) -> None:
        """Write the result, inside the fenced transaction that finishes the job."""


@runtime_checkable
class SharedTask(Task, Protocol):
    """A task whose body several processes may share."""

    def share(self, inputs: Any, context: BodyContext, ranks: Any) -> None:
        """Take part as one of the further ranks: compute as `run` does, and write nothing."""
