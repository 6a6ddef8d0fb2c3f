"""What a job that uses teacher rows makes sure of first: the ids mean the same to both."""

from pathlib import Path
from typing import Any

from app.specs.checkpoint import CheckpointCard
from app.specs.conversation import Conversation
from workers.distill.errors import TokenizerError
from workers.distill.tokenizers import load_tokenizer, tokenizer_verdict
from workers.job.task import Inputs

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
