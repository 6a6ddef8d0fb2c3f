"""What a run would read, take and last, each number with where it comes from."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.datasets.queries import text_sizes
from app.runs.advice import Findings, look_at_disk
from app.runs.coverage import cover as cover_of
from app.runs.schemas import CacheOut, EstimateOut, PartOut
from app.runs.subject import Subject, epochs
from app.runs.times import in_all, part
from app.settings import Settings
from app.specs.training import RunSpec
from app.storage.blobs import LocalBlobs
from app.teacher_cache import queries as cache
from app.teacher_cache.service import space_of

CHARACTERS_A_TOKEN = 4.0
TOKENS_A_MESSAGE = 5.0
"""Role and border tokens of a chat template."""
STANDARD_BYTES_A_ROW = 67.0
"""What the standard profile is held to; used until this installation has shards of its own."""
SNAPSHOT_WEIGHTS = 3
"""A snapshot holds the weights and two moments of the optimiser, in float32."""
SNAPSHOTS_KEPT = 3
FLOAT32_BYTES = 4


@lru_cache(maxsize=64)
def _text_sizes(path: Path, content_sha256: str) -> tuple[float, float]:
    del content_sha256  # part of the key: a frozen file never changes
    return text_sizes(path)


def _tokens_a_conversation(
    session: Session, subject: Subject, spec: RunSpec, settings: Settings
) -> tuple[float, str]:
    """Return mean rendered tokens of a conversation, and where the number comes from."""
    version = subject.version
    measured = cache.rendered_size(session, version.id, spec.training.render)
    if measured is not None and measured.conversations:
        mean = measured.rows / measured.conversations + 1
        return mean, "Measured when the teacher cache was filled for this version."
    words = "Estimated from the length of its texts, four characters a token."
    if version.conversations_blob is None:
        return 0.0, words
    path = LocalBlobs(settings.blobs).path(version.conversations_blob)
    characters, messages = _text_sizes(path, version.content_sha256 or "")
    mean = characters / CHARACTERS_A_TOKEN + messages * TOKENS_A_MESSAGE
    return min(mean, spec.training.render.max_tokens), words


def _disk(
    session: Session, subject: Subject, spec: RunSpec, cover: CacheOut | None
) -> dict[str, int]:
    """Return bytes by what they hold."""
    teacher, student = subject.cards
    used = {
        "checkpoint": student.bytes,
        "snapshots": SNAPSHOTS_KEPT * SNAPSHOT_WEIGHTS * FLOAT32_BYTES * student.parameters_total,
    }
    if cover is not None and teacher is not None:
        own = cache.size(session, space_of(teacher, spec.capture).address).bytes_per_row
        each = own or cache.size(session).bytes_per_row or STANDARD_BYTES_A_ROW
        used["cache"] = round(cover.missing_tokens * each)
    return used


def _anchors(session: Session, anchors: Mapping[str, Checkpoint], count: int) -> list[PartOut]:
    """Return the evaluations that a table needs beside the run's own, as one part."""
    if not anchors or not count:
        return []
    parts = [part(session, "evaluate", count, row, "conversations") for row in anchors.values()]
    names = " and ".join(f"“{row.name}” as {role}" for role, row in anchors.items())
    basis = f"{names}: evaluated once for all runs on this set. {parts[0].basis}"
    return [PartOut(phase="evaluate", seconds=in_all(parts), basis=basis, of=list(anchors))]


def estimate(
    session: Session,
    subject: Subject,
    spec: RunSpec,
    found: Findings,
    settings: Settings,
    *,
    anchors: Mapping[str, Checkpoint],
) -> EstimateOut:
    """Return what a run would read, take and last; zeros where its rows are not ready.

    `anchors` are the rows of its table that must be evaluated yet: role → checkpoint.
    """
    ready = subject.student.card is not None and subject.version.conversations_blob is not None
    if not ready or (subject.teacher is not None and subject.teacher.card is None):
        return EstimateOut(
            blocked=found.blocked,
            mends=found.mends,
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
    mean, basis = _tokens_a_conversation(session, subject, spec, settings)
    schedule = spec.training.schedule
    tokens = round(schedule.steps * schedule.batch_size * mean)
    count = subject.split("train") + subject.split("validation")
    cover = cover_of(session, subject.cards[0], spec, count=count, mean=mean)
    parts = [part(session, "train", tokens, subject.student, "tokens")]
    if cover is not None:
        missing = cover.missing_tokens
        parts.insert(0, part(session, "precompute", missing, subject.teacher, "tokens"))
    count = subject.split(spec.evaluation.split)
    count = min(count, spec.evaluation.max_conversations or count)
    parts.append(part(session, "evaluate", count, subject.student, "conversations"))
    parts += _anchors(session, anchors, count)
    disk = _disk(session, subject, spec, cover)
    peak = sum(disk.values())
    look_at_disk(found, peak, settings)
    return EstimateOut(
        blocked=found.blocked,
        mends=found.mends,
        warnings=found.warnings,
        tokens=tokens,
        tokens_basis=basis,
        epochs=epochs(subject, spec),
        cache=cover,
        disk_bytes=peak - disk["snapshots"],
        disk_peak_bytes=peak,
        disk=disk,
        seconds=in_all(parts),
        parts=parts,
    )
