"""What a checkpoint is: source, card, and how two tokenizers compare."""

from typing import Annotated, Literal

from pydantic import Field

from app.specs.base import Spec


class FolderSource(Spec):
    """A local folder in transformers layout (config.json, tokenizer, *.safetensors or one GGUF)."""

    kind: Literal["folder"] = "folder"
    path: str


class HubSource(Spec):
    """A repository of a model hub, at a revision. The token is a secret: never part of a spec."""

    kind: Literal["hub"] = "hub"
    repo_id: str
    revision: str = "main"


CheckpointSource = Annotated[FolderSource | HubSource, Field(discriminator="kind")]


class CheckpointCard(Spec):
    """Facts read from the weights. Parameters are counts; `compute` leaves the embeddings out."""

    architecture: str
    parameters_total: int
    parameters_embedding: int
    parameters_compute: int
    """Non-embedding parameters used per token."""
    depth: int
    width: int
    ffn_width: int
    heads: int
    kv_heads: int
    vocabulary: int
    """Rows of the embedding; may be padded beyond the tokenizer's entries."""
    tokenizer_entries: int
    tokenizer_fingerprint: str
    template_fingerprint: str | None
    eos_token: str | None
    context_length: int
    dtype: str
    bytes: int
    weights_fingerprint: str
    """SHA-256 over the weight files' hashes: half of a teacher cache's address."""
    licence: str | None = None


class PruneSpec(Spec):
    """A student made from a teacher (llama type). `None` keeps the teacher's value."""

    depth: int | None = None
    width: int | None = None
    ffn_width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    calibration_conversations: int = Field(default=64, ge=1)
    """Conversations whose activations rank the channels kept."""


class TokenizerVerdict(Spec):
    """Whether logit distillation may run between two checkpoints, with a sentence for a person."""

    kind: Literal["identical", "padded", "other_template", "different"]
    logits_allowed: bool
    sentence: str
    probes: int = 0
    first_difference: str | None = None


def same_ids(probes: int, teacher_rows: int, student_rows: int, entries: int) -> TokenizerVerdict:
    """Return the verdict on equal ids: rows of the embeddings against entries of the vocabulary."""
    if min(teacher_rows, student_rows) < entries:
        small = "teacher" if teacher_rows < student_rows else "student"
        difference = f"the {small} has {min(teacher_rows, student_rows)} rows, not {entries}"
        return TokenizerVerdict(
            kind="different",
            logits_allowed=False,
            sentence=(
                f"The tokenizer has {entries} entries, but {difference}: some ids have no weights. "
                "Resize the embeddings, or train on the teacher's answers as text."
            ),
            probes=probes,
            first_difference=difference,
        )
    if teacher_rows != student_rows:
        return TokenizerVerdict(
            kind="padded",
            logits_allowed=True,
            sentence=(
                f"Same ids, padded embeddings: teacher {teacher_rows} rows, student {student_rows}."
                f" Rows beyond the {entries} entries of the vocabulary get no mass."
            ),
            probes=probes,
        )
    on_texts = f" and ids on {probes} texts of this project" if probes else ""
    both = "same vocabulary, template" if probes else "same vocabulary and template"
    return TokenizerVerdict(
        kind="identical",
        logits_allowed=True,
        sentence=f"Identical: {both}{on_texts}.",
        probes=probes,
    )


def other_template(probes: int = 0) -> TokenizerVerdict:
    return TokenizerVerdict(
        kind="other_template",
        logits_allowed=False,
        sentence=(
            "The ids are the same, but the chat template or the end-of-turn token differs: the "
            "teacher would be scored under a template it was not trained on. Give the student "
            "the teacher's template, or train on the teacher's answers as text."
        ),
        probes=probes,
        first_difference="chat template, BOS or EOS",
    )


def card_verdict(teacher: CheckpointCard, student: CheckpointCard) -> TokenizerVerdict:
    """Compare two tokenizers by their fingerprints alone: what a page can say at once."""
    if teacher.tokenizer_fingerprint != student.tokenizer_fingerprint:
        return TokenizerVerdict(
            kind="different",
            logits_allowed=False,
            sentence=(
                "The tokenizers differ, so the teacher's probabilities belong to other tokens. "
                "Train on the teacher's answers as text instead (sequence-level)."
            ),
            first_difference="vocabulary, merges, special tokens or normaliser",
        )
    if teacher.template_fingerprint != student.template_fingerprint:
        return other_template()
    return same_ids(0, teacher.vocabulary, student.vocabulary, teacher.tokenizer_entries)


class Compression(Spec):
    """How much smaller a student is: teacher ÷ student, and what that means, in a sentence."""

    compute: float
    total: float
    bytes: float
    in_band: bool
    sentence: str


BAND = (5.0, 20.0)
"""Compression in compute where distilling is known to pay."""


def _times(ratio: float, less: str, more: str) -> str:
    return f"{ratio:.1f}× {less}" if round(ratio, 1) >= 1 else f"{1 / ratio:.1f}× {more}"


def compression(teacher: CheckpointCard, student: CheckpointCard) -> Compression:
    """Return teacher ÷ student in compute, total and bytes, judged by compute per token."""
    compute = teacher.parameters_compute / student.parameters_compute
    total = teacher.parameters_total / student.parameters_total
    size = teacher.bytes / student.bytes
    low, high = BAND
    figures = (
        f"{_times(compute, 'less compute', 'more compute')} per token, "
        f"{_times(total, 'fewer parameters', 'more parameters')} in total, "
        f"{_times(size, 'fewer bytes', 'more bytes')}"
    )
    rounded = round(compute, 1)
    if rounded < 1:
        verdict = "It computes more than the teacher: choose a smaller student."
    elif rounded < low:
        verdict = f"Below {low:g}× in compute, quantising the teacher is simpler."
    elif rounded > high:
        verdict = f"Above {high:g}× in compute, expect a clear loss of quality."
    else:
        verdict = f"Within the band of {low:g}–{high:g}× where distillation pays."
    return Compression(
        compute=compute,
        total=total,
        bytes=size,
        in_band=low <= rounded <= high,
        sentence=f"{figures}. {verdict}",
    )


def verdict_of_cards(teacher: CheckpointCard, student: CheckpointCard) -> TokenizerVerdict:
    """Compare two tokenizers by what their cards say; training encodes texts to make sure.

    Fingerprints cover vocabulary, merges, special tokens and normalising, so equal ones give equal
    ids; the embedding's rows and the chat template are compared beside them.
    """
    if teacher.tokenizer_fingerprint != student.tokenizer_fingerprint:
        return TokenizerVerdict(
            kind="different",
            logits_allowed=False,
            sentence=(
                "The tokenizers differ, so the teacher's probabilities would belong to other "
                "tokens. Train on the teacher's answers as text instead (sequence-level)."
            ),
            first_difference="tokenizer fingerprint",
        )
    rows = (teacher.vocabulary, student.vocabulary)
    if min(rows) < teacher.tokenizer_entries:
        small = "teacher" if teacher.vocabulary < student.vocabulary else "student"
        return TokenizerVerdict(
            kind="different",
            logits_allowed=False,
            sentence=(
                f"The tokenizer has {teacher.tokenizer_entries:,} entries and the {small} only "
                f"{min(rows):,} rows: some ids have no weights. Resize its embeddings."
            ),
            first_difference="rows of the embedding",
        )
    if teacher.template_fingerprint != student.template_fingerprint:
        return TokenizerVerdict(
            kind="other_template",
            logits_allowed=False,
            sentence=(
                "The ids are the same, but the chat template or the end-of-turn token differs. "
                "Give the student the teacher's template, or train on its answers as text."
            ),
            first_difference="chat template, BOS or EOS",
        )
    if rows[0] != rows[1]:
        return TokenizerVerdict(
            kind="padded",
            logits_allowed=True,
            sentence=(
                f"Same ids, padded embeddings: teacher {rows[0]:,} rows, student {rows[1]:,}. "
                f"Rows beyond the {teacher.tokenizer_entries:,} entries get no mass."
            ),
        )
    return TokenizerVerdict(
        kind="identical",
        logits_allowed=True,
        sentence="Identical tokenizers: same vocabulary, special tokens and chat template.",
    )
