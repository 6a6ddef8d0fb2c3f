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
