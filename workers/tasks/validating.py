"""What a training is validated on, and which of its weights are then kept."""

from collections.abc import Sequence
from typing import Any

from app.metrics.registry import METRICS
from app.specs.conversation import Conversation
from app.specs.training import BY_ANSWERS, RunSpec, Schedule
from workers.distill.batches import Collator
from workers.distill.callbacks import Callbacks
from workers.distill.errors import ContextLengthError, EvaluationError, NothingToTrainError
from workers.distill.evaluation.run import cases_of
from workers.distill.rendering import Renderer
from workers.distill.selection import Answers, Selection, Validation
from workers.distill.values import RenderedConversation

ROWS = 16
"""Conversations validated together at most: without gradients more would gain little."""


def validation_of(
    run: RunSpec,
    conversations: Sequence[Conversation],
    tokenizer: Any,
    collate: Collator,
    calls: Callbacks,
) -> Validation:
    """Return what a run's training is validated on: held-out batches, and answers if they judge."""
    schedule = run.training.schedule
    held_out = held_out_of(Renderer(tokenizer, run.training.render), conversations, calls)
    size = min(schedule.micro_batch_size or schedule.batch_size, ROWS)
    batches = [collate(held_out[i : i + size]) for i in range(0, len(held_out), size)]
    answers = None
    if held_out and schedule.select_by in BY_ANSWERS:
        answers = _answers_of(run, conversations, tokenizer, calls)
    return Validation(batches, selection_of(schedule), answers)


def selection_of(schedule: Schedule) -> Selection:
    """Return how snapshots are judged; the metric's direction is the registry's."""
    metric = METRICS[f"validation/{schedule.select_by}"]
    return Selection(
        metric=metric.name,
        label=metric.label[0].lower() + metric.label[1:],
        higher=metric.direction == "higher",
        percent=metric.percent,
        patience=schedule.patience,
        min_delta=schedule.min_delta / metric.scale,
    )


def _answers_of(
    run: RunSpec, conversations: Sequence[Conversation], tokenizer: Any, calls: Callbacks
) -> Answers | None:
    schedule, spec = run.training.schedule, run.evaluation
    first = conversations[: schedule.selection_conversations]
    try:
        cases = cases_of(first, tokenizer, run.training.render, spec, calls)
    except EvaluationError as error:
        calls.log(str(error), "warning")
        return None
    known = [(case.prompt, case.truth) for case in cases if case.truth is not None]
    return Answers(
        metric=f"validation/{schedule.select_by}",
        tokenizer=tokenizer,
        prompts=[prompt for prompt, _ in known],
        truths=[truth for _, truth in known],
        max_new_tokens=spec.max_new_tokens,
        batch_size=spec.batch_size,
    )


def held_out_of(
    renderer: Renderer, conversations: Sequence[Conversation], calls: Callbacks
) -> tuple[RenderedConversation, ...]:
    """Return what is validated on, if anything: no label may have fallen into a small part."""
    try:
        return renderer.render_all(conversations).rendered if conversations else ()
    except NothingToTrainError as error:
        calls.log(f"Not validated, so the last weights are kept, not the best. {error}", "warning")
        return ()


def require_context(
    model: Any, rendered: Sequence[RenderedConversation], who: str = "student"
) -> None:
    """Refuse a conversation longer than the checkpoint reads. Errors: ContextLengthError."""
    most = getattr(model.config, "max_position_embeddings", None)
    longest = max(rendered, key=lambda r: len(r.input_ids), default=None)
    if most and longest is not None and len(longest.input_ids) > most:
        raise ContextLengthError(
            f"Conversation {longest.conversation_id} has {len(longest.input_ids):,} tokens, and "
            f"the {who} reads {most:,}. Set tokens at most to {most:,} or less: the oldest turns "
            f"are cut then. Or take a {who} with a longer context."
        )
