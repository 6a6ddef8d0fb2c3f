"""What the teacher cache covers of a dataset version, as the last capture of it found."""

from typing import Any

from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.metrics.formatting import number
from app.runs.models import Run
from app.runs.schemas import CacheOut
from app.runs.subject import Subject
from app.runs.tokens import tokens_a_conversation
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard
from app.specs.training import RunSpec
from app.teacher_cache import queries as cache
from app.teacher_cache.service import space_of


def cover_of(
    session: Session, subject: Subject, spec: RunSpec, settings: Settings
) -> CacheOut | None:
    """Return what the cache covers; None where the run reads no teacher."""
    teacher = subject.cards[0]
    if teacher is None or not spec.training.objective.reads_cache:
        return None
    address = space_of(teacher, spec.capture).address
    known = cache.coverage(session, address, spec.dataset_version_id, spec.training.render)
    train, most = subject.split("train"), spec.training.max_train_conversations
    count = subject.split("validation") + min(train, most or train)
    mean, _ = tokens_a_conversation(session, subject.version, spec.training.render, settings)
    wanted = round(count * max(mean - 1, 0))
    if known is not None:
        return CacheOut(
            conversations=known.conversations,
            cached=known.cached,
            missing_tokens=min(known.missing_rows, wanted) if most else known.missing_rows,
            basis="As the last capture of this version found it; it may hold more by now.",
            rows_from=_rows_from(teacher, spec),
            **_measured(session, address),
        )
    rows = cache.size(session, address).rows
    if cache.is_captured(session, address, spec.dataset_version_id):
        basis = (
            "This version was captured with other rendering settings (length, turns or text). How "
            "much of that serves here is found when the run starts; all of it is counted."
        )
    else:
        basis = "No capture of this version with this teacher yet: all of it is counted."
        if rows:
            basis += f" The cache holds {number(rows)} tokens of other versions, which may overlap."
    return CacheOut(
        conversations=count,
        cached=None if rows else 0,
        missing_tokens=wanted,
        basis=basis,
        rows_from=_rows_from(teacher, spec),
        **_measured(session, address),
    )


def _rows_from(teacher: CheckpointCard, spec: RunSpec) -> str | None:
    if teacher.server is None:
        return None
    return (
        f"Rows are asked of {teacher.server.base_url}: the top {spec.capture.k_max} a token at "
        "most, one bucket for the rest, T = 1 only."
    )


def rows_were_lost(session: Session, run: Run) -> bool:
    """Return whether the cache lacks what a capture for this run had put there."""
    spec = RunSpec.model_validate(run.spec)
    teacher = session.get(Checkpoint, run.teacher_id)
    if teacher is None or teacher.card is None or not spec.training.objective.reads_cache:
        return False
    address = space_of(CheckpointCard.model_validate(teacher.card), spec.capture).address
    known = cache.coverage(session, address, spec.dataset_version_id, spec.training.render)
    return known is None or known.missing_rows > 0


def _measured(session: Session, address: str) -> dict[str, Any]:
    report = cache.report(session, address)
    if report is None:
        return {}
    checked = report.faithfulness
    return {
        "captured_mass": report.captured_mass,
        "faithfulness": checked.sentence if checked else None,
    }
