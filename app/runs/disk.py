"""What a run writes, and what the runs before and beside it will still write."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.datasets.models import DatasetVersion
from app.jobs import queries as jobs
from app.jobs.models import Job, JobSnapshot
from app.runs.coverage import cover_of
from app.runs.schemas import CacheOut
from app.runs.subject import Subject, capture_of
from app.settings import Settings
from app.specs.fingerprint import fingerprint
from app.specs.jobs import TERMINAL_STATES, JobKind, JobState, TrainJob
from app.specs.teacher import CaptureProfile
from app.specs.training import RunSpec
from app.teacher_cache import queries as cache
from app.teacher_cache.service import space_of

STANDARD_BYTES_A_ROW = 67.0
"""What the standard profile is held to; used until a space has shards of its own."""
USUAL_HEAD = 32
SNAPSHOT_WEIGHTS = 3
"""A snapshot holds the weights and two moments of the optimiser, in float32."""
SNAPSHOTS_KEPT = 3
FLOAT32_BYTES = 4


def expected_bytes(profile: CaptureProfile, vocabulary: int) -> float:
    """Return what a row of the profile takes, at most, where none was written yet."""
    id_bytes = 2 if vocabulary <= 1 << 16 else 3
    samples = profile.tail_samples * (id_bytes + 1)
    head = min(profile.k_max, vocabulary) * (id_bytes + profile.value_bytes)
    usual = profile.k_max <= USUAL_HEAD and profile.value_bytes == 1
    return (STANDARD_BYTES_A_ROW if usual else head) + samples


def disk_of(
    session: Session, subject: Subject, spec: RunSpec, cover: CacheOut | None
) -> dict[str, int]:
    """Return bytes by what they hold: checkpoint, snapshots (which go again), cache."""
    teacher, student = subject.cards
    weights = student.parameters_total or 0  # a served one, which is refused as student, has none
    used = {
        "checkpoint": student.bytes or 0,
        "snapshots": SNAPSHOTS_KEPT * SNAPSHOT_WEIGHTS * FLOAT32_BYTES * weights,
    }
    if cover is not None and teacher is not None:
        own = cache.size(session, space_of(teacher, spec.capture).address).bytes_per_row
        each = own or expected_bytes(spec.capture, teacher.tokenizer_entries or 0)
        used["cache"] = round(cover.missing_tokens * each)
    return used


@dataclass(frozen=True, slots=True)
class Others:
    """Other runs that have not trained yet, and what they add to a run's own peak."""

    runs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Open:
    """A run to be trained; `snapshots` counts what it has on the disk already."""

    spec: RunSpec
    snapshots: int = 0
    fills: bool = True
    """Whether its teacher cache is yet to be filled."""


def others(
    session: Session,
    spec: RunSpec,
    used: dict[str, int],
    settings: Settings,
    beside: Sequence[RunSpec] = (),
) -> Others:
    """Return what waits or works already, and the runs that start `beside` this one, will write.

    A cache that several runs need is filled once, and snapshots go when a training ends: there are
    at once those of as many trainings as there are workers for them.
    """
    waiting = [*_open(session), *(_Open(other) for other in beside)]
    passing, kept, count = [used["snapshots"]], 0, 0
    filled = {fingerprint(capture_of(spec))} if spec.training.objective.reads_cache else set()
    left = _captures(session)
    for one in waiting:
        subject = _subject(session, one.spec)
        if subject is None:
            continue
        key = fingerprint(capture_of(one.spec)) if one.spec.training.objective.reads_cache else ""
        fills = one.fills and key not in filled
        cover = cover_of(session, subject, one.spec, settings) if fills else None
        theirs = disk_of(session, subject, one.spec, cover)
        kept += theirs["checkpoint"] + round(theirs.get("cache", 0) * left.get(key, 1.0))
        passing.append(
            theirs["snapshots"] * max(0, SNAPSHOTS_KEPT - one.snapshots) // SNAPSHOTS_KEPT
        )
        filled.add(key)
        count += 1
    at_once = nlargest(jobs.lanes(session, JobKind.TRAIN), passing)
    return Others(count, kept + sum(at_once) - used["snapshots"])


def _open(session: Session) -> Iterator[_Open]:
    """Yield the runs whose training has not ended, of all projects: they share the disk."""
    written = (
        select(func.count())
        .select_from(JobSnapshot)
        .where(JobSnapshot.job_id == Job.id)
        .scalar_subquery()
    )
    rows = session.execute(
        select(Job.spec, Job.state, written)
        .where(Job.kind == JobKind.TRAIN, Job.state.not_in(sorted(TERMINAL_STATES)))
        .order_by(Job.id)
    )
    for spec, state, snapshots in rows:
        run = TrainJob.model_validate(spec).run
        yield _Open(run, snapshots, fills=state == JobState.BLOCKED)


def _captures(session: Session) -> dict[str, float]:
    """Return what share of its tokens each capture in hand has yet to write."""
    rows = session.execute(
        select(Job.spec_hash, Job.progress).where(
            Job.kind == JobKind.PRECOMPUTE, Job.state.not_in(sorted(TERMINAL_STATES))
        )
    )
    return {
        key: 1 - min(1.0, progress["done"] / progress["total"])
        for key, progress in rows
        if progress and progress["unit"] == "tokens" and progress["total"]
    }


def _subject(session: Session, spec: RunSpec) -> Subject | None:
    """Return the rows of an open run's spec as far as they can be estimated by."""
    version = session.get(DatasetVersion, spec.dataset_version_id)
    student = session.get(Checkpoint, spec.student_id)
    teacher = session.get(Checkpoint, spec.teacher_id) if spec.teacher_id is not None else None
    if version is None or student is None or student.card is None:
        return None
    return Subject(version, student, teacher)
