"""Words for what became of a set's conversations when they were rendered."""

from workers.distill.callbacks import Callbacks
from workers.distill.rendering import RenderedSet


def tell(rendered: RenderedSet, callbacks: Callbacks) -> None:
    """Log what became of a set's conversations where that is not simply all of them whole."""
    for reason, count in rendered.skipped.items():
        why = reason.replace("_", " ")
        callbacks.log(f"{counted(count, 'conversation')} left out: {why}.", "warning")
    if rendered.cut_conversations:
        cut = counted(rendered.cut_conversations, "conversation")
        gone = counted(rendered.cut_messages, "message")
        callbacks.log(f"{cut} too long: their oldest turns were cut, {gone} in all.", "warning")
    if rendered.in_parts:
        parts = counted(rendered.in_parts, "conversation")
        callbacks.log(f"{parts} in parts: the template rewrites earlier turns.")


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
