"""What the loss would read of a dataset version: texts with their learned pieces, and counts."""

from app.specs.base import Spec


class PreviewPiece(Spec):
    """A stretch of rendered text, all of it learned or none; `text` may be clipped for people."""

    text: str
    learned: bool
    tokens: int


class PreviewedConversation(Spec):
    """A conversation as it is trained on, after the cut."""

    conversation_id: str
    tokens: int
    learned: int
    """Tokens that the loss reads."""
    cut_messages: int
    pieces: tuple[PreviewPiece, ...]


class RenderPreview(Spec):
    """How the first training conversations of a version render under one tokenizer."""

    looked_at: int
    skipped: dict[str, int]
    """Conversations that cannot be trained on, by reason."""
    first_error: str | None
    cut: int
    """Conversations that lost their oldest turns."""
    tokens: int
    learned: int
    in_parts: int = 0
    """Conversations that are learned as several texts: the template rewrites earlier turns."""
    shown: tuple[PreviewedConversation, ...]
