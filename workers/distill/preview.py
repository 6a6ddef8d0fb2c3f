"""What a training would learn: the first conversations of a set, rendered for people."""

from collections import Counter
from collections.abc import Callable, Iterable

from app.specs.conversation import Conversation
from app.specs.preview import PreviewedConversation, PreviewPiece, RenderPreview
from workers.distill.errors import NothingToTrainError, TemplateError
from workers.distill.rendering import Renderer
from workers.distill.values import RenderedConversation

FIRST = 3
"""So many are shown as they come; one that was cut and one of several turns join them."""
MOST_LEARNED, MOST_READ = 8000, 1500
"""Characters of a piece that are shown: its beginning and end, where it is longer."""


def preview_of(
    renderer: Renderer,
    conversations: Iterable[Conversation],
    should_stop: Callable[[], bool] = lambda: False,
) -> RenderPreview:
    """Render conversations; return counts of all and the pieces of a few.

    What cannot be rendered is counted by reason, also where that is all.
    """
    skipped: Counter[str] = Counter()
    first_error: str | None = None
    looked_at = cut = tokens = learned = in_parts = 0
    chosen: list[RenderedConversation] = []
    more: dict[str, RenderedConversation] = {}
    for conversation in conversations:
        if should_stop():
            break
        looked_at += 1
        try:
            parts, left_out = renderer.parts(conversation)
        except (NothingToTrainError, TemplateError) as error:
            skipped[getattr(error, "reason", "template")] += 1
            first_error = first_error or str(error)
            continue
        if left_out:
            skipped["part_too_long"] += left_out
        in_parts += len(parts) + left_out > 1
        cut += any(part.cut_messages for part in parts)
        for rendered in parts:
            tokens += len(rendered.input_ids)
            learned += int(rendered.target_mask.sum())
            if len(chosen) < FIRST:
                chosen.append(rendered)
            elif rendered.cut_messages:
                more.setdefault("cut", rendered)
            elif _turns(rendered) > 1:
                more.setdefault("turns", rendered)
    return RenderPreview(
        looked_at=looked_at,
        skipped=dict(sorted(skipped.items())),
        first_error=first_error,
        cut=cut,
        tokens=tokens,
        learned=learned,
        in_parts=in_parts,
        shown=tuple(_shown(renderer, r) for r in (*chosen, *more.values())),
    )


def _turns(rendered: RenderedConversation) -> int:
    """Return how many learned stretches there are."""
    mask = rendered.target_mask
    return int((mask[1:] & ~mask[:-1]).sum())


def _shown(renderer: Renderer, rendered: RenderedConversation) -> PreviewedConversation:
    return PreviewedConversation(
        conversation_id=rendered.conversation_id,
        tokens=len(rendered.input_ids),
        learned=int(rendered.target_mask.sum()),
        cut_messages=rendered.cut_messages,
        pieces=tuple(_clipped(piece) for piece in renderer.preview(rendered)),
    )


def _clipped(piece: PreviewPiece) -> PreviewPiece:
    most = MOST_LEARNED if piece.learned else MOST_READ
    if len(piece.text) <= most:
        return piece
    half = most // 2
    left_out = f"\n… {len(piece.text) - 2 * half:,} characters …\n"
    text = piece.text[:half] + left_out + piece.text[-half:]
    return piece.model_copy(update={"text": text})
