"""One evaluation: answers against a truth, fidelity to a teacher, sums per cluster."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.specs.conversation import Conversation, Message
from app.specs.evaluation import EvaluationReport, EvaluationSpec, MetricSums
from app.specs.training import RenderSpec
from workers.distill.callbacks import Callbacks
from workers.distill.errors import EvaluationError, NothingToTrainError, TemplateError
from workers.distill.evaluation.fidelity import Fidelity, fidelity
from workers.distill.evaluation.scores import ece_contributions, exact_match, field_f1
from workers.distill.generate import Generation, generate
from workers.distill.rendering import Renderer
from workers.distill.tokenizers import vocabulary_size
from workers.distill.values import RenderedConversation

PROMPT_TAIL = 500
"""Characters of the last prompt message kept beside an answer, for people."""


@dataclass(frozen=True, slots=True)
class Case:
    """The last target turn of one conversation."""

    conversation: Conversation
    turn: Message
    prompt: NDArray[np.int32]
    prompt_tail: str
    rendered: RenderedConversation
    truth: str | None
    truth_kind: str | None


@dataclass(frozen=True, slots=True)
class _Result:
    case: Case
    answer: Generation
    exact_match: bool | None
    field_f1: float | None
    confidence: float
    fidelity: Fidelity | None


def run_evaluation(  # noqa: PLR0913 - a core's entry: inputs, specs, where results go
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    teacher: Any | None,
    render: RenderSpec,
    spec: EvaluationSpec,
    out_file: Path,
    callbacks: Callbacks,
    clock: Callable[[], float] = time.perf_counter,
) -> EvaluationReport:
    """Evaluate a checkpoint on the last target turn of each conversation, in the given order.

    exact_match, field_f1: the greedy answer against the truth (see scores). kl (nats a token, full
    vocabulary) and agreement: over the tokens of the logged answer, absent without `teacher`, a
    model of the same tokenizer. ece: confidence is the answer's probability exp Σ log p,
    correctness its exact match. tokens_per_second: its clusters are batches, so it is not paired.
    Other clusters are the conversations' groups, sorted. A row per conversation goes to `out_file`
    (Parquet). Deterministic but for the speeds. Errors: EvaluationError where nothing is left;
    Stopped when asked to: a part of a set is comparable with nothing, so none of it is kept.
    """
    started = clock()
    limit = spec.max_conversations or len(conversations)
    cases = cases_of(conversations[:limit], tokenizer, render, spec, callbacks)
    callbacks.phase("generate")
    answers = generate(
        model,
        tokenizer,
        [c.prompt for c in cases],
        max_new_tokens=spec.max_new_tokens,
        batch_size=spec.batch_size,
        callbacks=callbacks,
        clock=clock,
    )
    closeness: list[Fidelity | None] = [None] * len(cases)
    if teacher is not None:
        callbacks.phase("compare with the teacher")
        closeness = list(
            fidelity(
                model,
                teacher,
                [c.rendered for c in cases],
                vocabulary=vocabulary_size(tokenizer),
                batch_size=spec.batch_size,
                callbacks=callbacks,
            )
        )
    results = [_score(*parts) for parts in zip(cases, answers, closeness, strict=True)]
    callbacks.phase("write")
    _write(results, out_file)
    clusters = tuple(sorted({c.conversation.group for c in cases}))
    return EvaluationReport(
        conversations=len(cases),
        clusters=clusters,
        metrics=tuple(_metrics(results, clusters, spec.ece_bins)),
        seconds=clock() - started,
        generated_tokens=sum(len(a.ids) for a in answers),
    )


def cases_of(
    conversations: Sequence[Conversation],
    tokenizer: Any,
    render: RenderSpec,
    spec: EvaluationSpec,
    callbacks: Callbacks,
) -> list[Case]:
    renderer = Renderer(
        tokenizer, render.model_copy(update={"targets": "last_turn", "answer": "logged"})
    )
    cases: list[Case] = []
    skipped = 0
    for conversation in conversations:
        place = conversation.last_target
        if place is None:
            skipped += 1
            continue
        turn, before = conversation.messages[place], conversation.messages[:place]
        try:
            rendered = renderer.render(conversation)
            prompt = renderer.render_prompt(before, conversation.tools)
        except (NothingToTrainError, TemplateError):
            skipped += 1
            continue
        truth, kind = _truth(turn, spec)
        tail = before[-1].content[-PROMPT_TAIL:] if before else ""
        cases.append(Case(conversation, turn, prompt, tail, rendered, truth, kind))
    if skipped:
        callbacks.log(f"{skipped} conversations have no turn that can be evaluated.", "warning")
    if not cases:
        raise EvaluationError(
            f"None of {len(conversations)} conversations has a turn that can be evaluated. "
            "Choose a split that has target turns."
        )
    return cases


def _truth(turn: Message, spec: EvaluationSpec) -> tuple[str | None, str | None]:
    if spec.truth != "logged" and turn.reference is not None:
        return turn.reference, "reference"
    if spec.truth == "reference":
        return None, None
    return turn.content, "logged"


def _score(case: Case, answer: Generation, closeness: Fidelity | None) -> _Result:
    known = case.truth is not None
    return _Result(
        case=case,
        answer=answer,
        exact_match=exact_match(answer.text, case.truth or "") if known else None,
        field_f1=field_f1(answer.text, case.truth or "") if known else None,
        confidence=math.exp(math.fsum(answer.logprobs)),
        fidelity=closeness,
    )


def _metrics(
    results: Sequence[_Result], clusters: tuple[str, ...], ece_bins: int
) -> list[MetricSums]:
    place = {group: i for i, group in enumerate(clusters)}
    groups = np.array([place[r.case.conversation.group] for r in results])
    ones = [1.0] * len(results)

    def sums(
        metric: str, values: Sequence[float | None], weights: Sequence[float]
    ) -> MetricSums | None:
        kept = [i for i, v in enumerate(values) if v is not None]
        if not kept:
            return None
        top = np.array([float(values[i] or 0) for i in kept])
        under = np.array([weights[i] for i in kept])
        size = len(clusters)
        return MetricSums(
            metric=metric,
            sums=tuple(np.bincount(groups[kept], top, minlength=size).tolist()),
            counts=tuple(np.bincount(groups[kept], under, minlength=size).tolist()),
            n=len(kept),
            excluded=len(values) - len(kept),
        )

    close = [r.fidelity for r in results]
    tokens = [float(f.tokens) if f else 0.0 for f in close]
    found = [
        sums("exact_match", [r.exact_match for r in results], ones),
        sums("field_f1", [r.field_f1 for r in results], ones),
        sums("kl", [f.kl if f else None for f in close], tokens),
        sums("agreement", [f.agreements if f else None for f in close], tokens),
        sums("ece", _calibration(results, ece_bins), ones),
    ]
    return [m for m in found if m is not None] + [_speed(results)]


def _calibration(results: Sequence[_Result], bins: int) -> list[float | None]:
    known = [i for i, r in enumerate(results) if r.exact_match is not None]
    parts = ece_contributions(
        np.array([results[i].confidence for i in known], dtype=np.float64),
        np.array([bool(results[i].exact_match) for i in known], dtype=np.bool_),
        bins,
    )
    out: list[float | None] = [None] * len(results)
    for i, value in zip(known, parts.tolist(), strict=True):
        out[i] = value
    return out


def _speed(results: Sequence[_Result]) -> MetricSums:
    tokens: dict[int, float] = {}
    seconds: dict[int, float] = {}
    for result in results:
        number = result.answer.batch
        tokens[number] = tokens.get(number, 0.0) + len(result.answer.ids)
        seconds[number] = result.answer.batch_seconds
    order = sorted(tokens)
    return MetricSums(
        metric="tokens_per_second",
        sums=tuple(tokens[b] for b in order),
        counts=tuple(seconds[b] for b in order),
        n=len(order),
        paired=False,
    )


def _write(results: Sequence[_Result], out_file: Path) -> None:
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {
        "conversation_id": (pa.string(), [r.case.conversation.id for r in results]),
        "group": (pa.string(), [r.case.conversation.group for r in results]),
        "prompt_tail": (pa.string(), [r.case.prompt_tail for r in results]),
        "prediction": (pa.string(), [r.answer.text for r in results]),
        "truth": (pa.string(), [r.case.truth for r in results]),
        "truth_kind": (pa.string(), [r.case.truth_kind for r in results]),
        "teacher_answer": (pa.string(), [r.case.turn.content for r in results]),
        "exact_match": (pa.bool_(), [r.exact_match for r in results]),
        "field_f1": (pa.float64(), [r.field_f1 for r in results]),
        "kl": (pa.float64(), [_mean(r.fidelity, "kl") for r in results]),
        "agreement": (pa.float64(), [_mean(r.fidelity, "agreements") for r in results]),
        "confidence": (pa.float64(), [r.confidence for r in results]),
        "tokens": (pa.int32(), [len(r.answer.ids) for r in results]),
        "finish_reason": (pa.string(), [r.answer.finish_reason for r in results]),
    }
    table = pa.table(
        {name: pa.array(values, type=kind) for name, (kind, values) in columns.items()}
    )
    out_file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out_file)


def _mean(closeness: Fidelity | None, name: str) -> float | None:
    if closeness is None or not closeness.tokens:
        return None
    return float(getattr(closeness, name)) / closeness.tokens
