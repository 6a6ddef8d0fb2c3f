"""What a run would read, take and last, each number with where it comes from."""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.checkpoints.service import queue_of
from app.jobs import queries as jobs
from app.runs.advice import Findings, look_at_disk
from app.runs.coverage import cover_of
from app.runs.disk import disk_of, others
from app.runs.schemas import EstimateOut, PartOut
from app.runs.subject import Subject, epochs
from app.runs.times import in_all, part
from app.runs.tokens import tokens_a_conversation
from app.settings import Settings
from app.specs.jobs import JobKind
from app.specs.training import RunSpec, Schedule


def _anchors(session: Session, anchors: Mapping[str, Checkpoint], count: int) -> list[PartOut]:
    """Return the evaluations that a table needs beside the run's own, as one part."""
    if not anchors or not count:
        return []
    parts = [part(session, "evaluate", count, row, "conversations") for row in anchors.values()]
    names = " and ".join(f"“{row.name}” as {role}" for role, row in anchors.items())
    basis = f"{names}: evaluated once for all runs on this set. {parts[0].basis}"
    return [PartOut(phase="evaluate", seconds=in_all(parts), basis=basis, of=list(anchors))]


def _at_most(training: PartOut, schedule: Schedule) -> PartOut:
    """Say that a training with patience may end before its last step."""
    if schedule.patience is None or training.seconds is None:
        return training
    words = f"At most: {schedule.patience} validations without improvement end it earlier."
    return training.model_copy(update={"basis": f"{words} {training.basis}"})


def _filling(session: Session, subject: Subject, missing: int) -> PartOut:
    """Return how long the missing rows take, which all workers that live share."""
    shared = 1 if queue_of(subject.teacher) else jobs.lanes(session, JobKind.PRECOMPUTE)
    found = part(session, "precompute", missing / shared, subject.teacher, "tokens")
    if shared == 1 or not missing or found.seconds is None:
        return found
    return found.model_copy(update={"basis": f"Shared by {shared} workers. {found.basis}"})


def _training(session: Session, subject: Subject, spec: RunSpec, tokens: int) -> PartOut:
    """Return how long training lasts; a live teacher reads every token beside the student."""
    own = part(session, "train", tokens, subject.student, "tokens")
    if not spec.training.objective.needs_teacher or spec.training.objective.reads_cache:
        return own
    beside = part(session, "precompute", tokens, subject.teacher, "tokens")
    basis = f"{own.basis} The live teacher's passes beside it: {beside.basis}"
    return PartOut(phase="train", seconds=in_all([own, beside]), basis=basis)


def _nothing_yet(found: Findings) -> EstimateOut:
    """Return what is known of a run whose rows are not ready: why it cannot start."""
    return EstimateOut(
        blocked=found.blocked,
        reasons=found.reasons,
        warnings=found.warnings,
        tokens=0,
        tokens_basis="Nothing can be estimated yet.",
        epochs=0,
        cache=None,
        disk_bytes=0,
        disk={},
        seconds=None,
        parts=[],
    )


def estimate(
    session: Session,
    subject: Subject,
    spec: RunSpec,
    found: Findings,
    settings: Settings,
    *,
    anchors: Mapping[str, Checkpoint],
    beside: Sequence[RunSpec] = (),
) -> EstimateOut:
    """Return what a run would read, take and last; zeros where its rows are not ready.

    `anchors` are the rows of its table that must be evaluated yet: role → checkpoint; `beside` runs
    that are started before it, at once.
    """
    ready = subject.student.card is not None and subject.version.conversations_blob is not None
    if not ready or (subject.teacher is not None and subject.teacher.card is None):
        return _nothing_yet(found)
    mean, basis = tokens_a_conversation(session, subject.version, spec.training.render, settings)
    schedule = spec.training.schedule
    tokens = round(schedule.steps * schedule.batch_size * mean)
    cover = cover_of(session, subject, spec, settings)
    parts = [_at_most(_training(session, subject, spec, tokens), schedule)]
    if cover is not None:
        parts.insert(0, _filling(session, subject, cover.missing_tokens))
    count = subject.split(spec.evaluation.split)
    count = min(count, spec.evaluation.max_conversations or count)
    parts.append(part(session, "evaluate", count, subject.student, "conversations"))
    parts += _anchors(session, anchors, count)
    disk = disk_of(session, subject, spec, cover)
    peak = sum(disk.values())
    waiting = others(session, spec, disk, settings, beside)
    look_at_disk(found, peak, waiting, settings)
    return EstimateOut(
        blocked=found.blocked,
        reasons=found.reasons,
        warnings=found.warnings,
        tokens=tokens,
        tokens_basis=basis,
        epochs=epochs(subject, spec),
        cache=cover,
        disk_bytes=peak - disk["snapshots"],
        disk_peak_bytes=peak,
        disk=disk,
        disk_others_bytes=waiting.bytes,
        disk_others=waiting.runs,
        seconds=in_all(parts),
        parts=parts,
    )
