"""Teacher beside student: the ids must mean the same to both, and a live one must fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.specs.checkpoint import CheckpointCard
from app.specs.conversation import Conversation
from app.specs.training import Objective
from workers.distill.callbacks import Callbacks
from workers.distill.checkpoints import compute_device, load_model
from workers.distill.errors import OutOfMemoryError, TokenizerError
from workers.distill.memory import is_out_of_memory
from workers.distill.teachers import LiveTeacher
from workers.distill.tokenizers import load_tokenizer, tokenizer_verdict
from workers.distill.values import RenderedConversation
from workers.job.task import Inputs
from workers.tasks.validating import require_context

PROBES = 200
"""Texts of the project that both tokenizers encode: its own words find what fingerprints miss."""


class Pair(Inputs):
    """Teacher and student: their folders, and the rows of their embeddings."""

    teacher: str
    student: str
    teacher_rows: int
    student_rows: int


def pair_of(teacher: tuple[str, CheckpointCard], student: tuple[str, CheckpointCard]) -> Pair:
    (left, left_card), (right, right_card) = teacher, student
    return Pair(
        teacher=left,
        student=right,
        teacher_rows=left_card.vocabulary or left_card.tokenizer_entries or 0,
        student_rows=right_card.vocabulary or 0,
    )


def require_same_ids(pair: Pair, conversations: list[Conversation], callbacks: Any) -> None:
    """Log the verdict on two tokenizers; raise TokenizerError where it forbids teacher rows."""
    texts = dict.fromkeys(m.content for c in conversations for m in c.messages if m.content)
    verdict = tokenizer_verdict(
        load_tokenizer(Path(pair.teacher)),
        load_tokenizer(Path(pair.student)),
        probes=list(texts)[:PROBES],
        teacher_vocabulary=pair.teacher_rows,
        student_vocabulary=pair.student_rows,
    )
    if not verdict.logits_allowed:
        raise TokenizerError(verdict.sentence)
    callbacks.log(f"Tokenizers: {verdict.sentence}")


def live_teacher(
    pair: Pair | None,
    objective: Objective,
    vocabulary: int,
    calls: Callbacks,
    rendered: Sequence[RenderedConversation] = (),
) -> LiveTeacher | None:
    """Return the teacher that is held beside the student, where the objective wants that.

    Errors: OutOfMemoryError where its weights do not fit, ContextLengthError where one of the
    conversations does not.
    """
    if pair is None or objective.reads_cache:
        return None
    calls.log("The live teacher is held beside the student; no cache is read.")
    try:
        model = load_model(Path(pair.teacher)).to(compute_device())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "The live teacher does not fit beside the student. Let a run read its stored rows "
            "instead, or give the worker more memory."
        ) from error
    require_context(model, rendered, "teacher")
    return LiveTeacher(model, vocabulary, objective.temperature)
