"""What a checkpoint is: source, card, and how two tokenizers compare."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from app.specs.base import Spec
from app.specs.endpoint import base_url_of, url_problem
from app.specs.fingerprint import fingerprint


class FolderSource(Spec):
    """A local folder in transformers layout (config.json, tokenizer, *.safetensors or one GGUF)."""

    kind: Literal["folder"] = "folder"
    path: str


class HubSource(Spec):
    """A repository of a model hub, at a revision. The token is a secret: never part of a spec."""

    kind: Literal["hub"] = "hub"
    repo_id: str
    revision: str = "main"


TokenizerSource = Annotated[FolderSource | HubSource, Field(discriminator="kind")]


class EndpointSource(Spec):
    """A checkpoint behind an OpenAI-compatible URL. Its API key is a secret: never part of a spec.

    `tokenizer` is where the served checkpoint's tokenizer lies; without one the server is asked for
    text only.
    """

    kind: Literal["endpoint"] = "endpoint"
    base_url: str
    """Such as https://host:8000/v1: what `/completions` is appended to."""
    model: str = Field(min_length=1, max_length=300)
    """The name it is served under."""
    tokenizer: TokenizerSource | None = None
    at_once: int = Field(default=8, ge=1, le=256)
    """How many requests may be under way together."""

    @field_validator("base_url")
    @classmethod
    def _reachable_by_http(cls, text: str) -> str:
        url = base_url_of(text)
        problem = url_problem(url)
        if problem is not None:
            raise ValueError(problem)
        return url

    @property
    def fingerprint(self) -> str:
        """What stands for the weights, which nobody sees: it is a server, its URL, the model."""
        return fingerprint({"server": self.base_url, "model": self.model})


CheckpointSource = Annotated[FolderSource | HubSource | EndpointSource, Field(discriminator="kind")]


class ServerFacts(Spec):
    """What a server was found to give when its checkpoint was registered."""

    base_url: str
    model: str
    at_once: int
    top: int | None = None
    """Most log-probabilities a token it gives of a prompt; None: text only."""
    why_text_only: str = ""
    chat: bool = True
    """Whether it answers chat completions."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    tokenizer_check: str = ""
    """How its tokenizer was compared with the one named, in a sentence."""

    @property
    def sentence(self) -> str:
        """What it is good for, in a few words."""
        if self.top is None:
            return f"Text only: sequence-level. {self.why_text_only}".strip()
        words = f"Logit distillation with the top {self.top} a token at T = 1"
        return f"{words}, and text." if self.chat else f"{words}; no chat answers."


class CheckpointCard(Spec):
    """Facts read from the weights. Parameters are counts; `compute` leaves the embeddings out.

    Of a served checkpoint, `server` says what its server gives, and what nobody can tell is None.
    """

    architecture: str | None
    parameters_total: int | None
    parameters_embedding: int | None
    parameters_compute: int | None
    """Non-embedding parameters used per token."""
    depth: int | None
    width: int | None
    ffn_width: int | None
    heads: int | None
    kv_heads: int | None
    vocabulary: int | None
    """Rows of the embedding; may be padded beyond the tokenizer's entries."""
    tokenizer_entries: int | None
    tokenizer_fingerprint: str | None
    template_fingerprint: str | None
    eos_token: str | None
    context_length: int | None
    dtype: str | None
    bytes: int | None
    weights_fingerprint: str
    """SHA-256 over the weight files' hashes (of a server: over URL and model): half of a teacher
    cache's address."""
    licence: str | None = None
    server: ServerFacts | None = None

    @property
    def gives_rows(self) -> bool:
        """Whether teacher rows can be captured from it."""
        return self.server is None or self.server.top is not None


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

    kind: Literal["identical", "padded", "other_template", "different", "unknown"]
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
    if teacher.tokenizer_fingerprint is None:
        return no_tokenizer("teacher")
    if student.tokenizer_fingerprint is None:
        return no_tokenizer("checkpoint")
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
    return same_ids(0, *_rows(teacher, student))


def no_tokenizer(name: str) -> TokenizerVerdict:
    """Return the verdict where a served checkpoint's tokenizer is not known."""
    return TokenizerVerdict(
        kind="unknown",
        logits_allowed=False,
        sentence=(
            f"The tokenizer of the served {name} is not known: register it with its tokenizer, or "
            "train on its answers as text (sequence-level)."
        ),
        first_difference="no tokenizer named",
    )


def _rows(teacher: CheckpointCard, student: CheckpointCard) -> tuple[int, int, int]:
    """Return teacher's and student's rows and the entries; unknown rows hold them all."""
    entries = teacher.tokenizer_entries or 0
    rows = [entries if card.vocabulary is None else card.vocabulary for card in (teacher, student)]
    return rows[0], rows[1], entries


class Compression(Spec):
    """How much smaller a student is: teacher ÷ student, and what that means, in a sentence."""

    compute: float
    total: float
    bytes: float | None
    """None where one of them lies on a server."""
    in_band: bool
    sentence: str


BAND = (5.0, 20.0)
"""Compression in compute where distilling is known to pay."""


def _ratio(teacher: int | None, student: int | None) -> float | None:
    return teacher / student if teacher is not None and student else None


def _times(ratio: float, less: str, more: str) -> str:
    return f"{ratio:.1f}× {less}" if round(ratio, 1) >= 1 else f"{1 / ratio:.1f}× {more}"


def compression(teacher: CheckpointCard, student: CheckpointCard) -> Compression | None:
    """Return teacher ÷ student in compute, total and bytes, judged by compute per token.

    None where the parameters of one are not known, as of a served checkpoint without its config.
    """
    compute = _ratio(teacher.parameters_compute, student.parameters_compute)
    total = _ratio(teacher.parameters_total, student.parameters_total)
    size = _ratio(teacher.bytes, student.bytes)
    if compute is None or total is None:
        return None
    low, high = BAND
    figures = (
        f"{_times(compute, 'less compute', 'more compute')} per token, "
        f"{_times(total, 'fewer parameters', 'more parameters')} in total"
    )
    if size is not None:
        figures += f", {_times(size, 'fewer bytes', 'more bytes')}"
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
    if teacher.tokenizer_fingerprint is None:
        return no_tokenizer("teacher")
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
    *rows, entries = _rows(teacher, student)
    if min(rows) < entries:
        small = "teacher" if rows[0] < rows[1] else "student"
        return TokenizerVerdict(
            kind="different",
            logits_allowed=False,
            sentence=(
                f"The tokenizer has {entries:,} entries and the {small} only "
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
                f"Rows beyond the {entries:,} entries get no mass."
            ),
        )
    return TokenizerVerdict(
        kind="identical",
        logits_allowed=True,
        sentence="Identical tokenizers: same vocabulary, special tokens and chat template.",
    )
