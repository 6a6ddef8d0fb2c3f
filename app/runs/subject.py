"""The rows a spec names, and what their counts tell of a training."""

from dataclasses import dataclass

from app.checkpoints.models import Checkpoint
from app.datasets.models import DatasetVersion
from app.errors import Conflict
from app.specs.checkpoint import CheckpointCard
from app.specs.conversation import ImportFunnel
from app.specs.jobs import PrecomputeJob
from app.specs.training import RunSpec


@dataclass(frozen=True, slots=True)
class Subject:
    """The rows a spec names."""

    version: DatasetVersion
    student: Checkpoint
    teacher: Checkpoint | None

    @property
    def funnel(self) -> ImportFunnel | None:
        found = self.version.funnel
        return None if found is None else ImportFunnel.model_validate(found)

    def split(self, name: str) -> int:
        return self.funnel.splits.get(name, 0) if self.funnel else 0

    def referenced(self, name: str) -> int | None:
        """Return how many conversations of a split have a reference; None: never counted."""
        counts = self.funnel.referenced if self.funnel else None
        return None if counts is None else counts.get(name, 0)

    @property
    def cards(self) -> tuple[CheckpointCard | None, CheckpointCard]:
        """Teacher's and student's; only of a subject whose checkpoints are ready."""
        teacher = self.teacher.card if self.teacher else None
        return (
            CheckpointCard.model_validate(teacher) if teacher else None,
            CheckpointCard.model_validate(self.student.card),
        )


def trained_on(subject: Subject, spec: RunSpec) -> int:
    """Return how many conversations a run trains on, as far as counts tell."""
    funnel = subject.funnel
    count = subject.split("train")
    if funnel is not None and spec.training.objective.ce_target == "reference":
        found = subject.referenced("train")
        if found is None:
            # Counted over all splits: the training part has its share of them.
            share = count / max(sum(funnel.splits.values()), 1)
            found = max(1, round(funnel.references * share))
        count = min(count, found)
    return min(count, spec.training.max_train_conversations or count)


def epochs(subject: Subject, spec: RunSpec) -> float:
    schedule = spec.training.schedule
    return schedule.steps * schedule.batch_size / max(trained_on(subject, spec), 1)


def capture_of(spec: RunSpec) -> PrecomputeJob:
    """Return the job that fills the cache a run reads. Raises Conflict without a teacher."""
    if spec.teacher_id is None:
        raise Conflict("An objective with a teacher term needs a teacher: choose one.")
    return PrecomputeJob(
        teacher_id=spec.teacher_id,
        dataset_version_id=spec.dataset_version_id,
        render=spec.training.render,
        profile=spec.capture,
        max_train_conversations=spec.training.max_train_conversations,
    )
