"""The basic pack: generate each last answer, score it, and measure fidelity on the logged one."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.specs.conversation import Conversation
from app.specs.evaluation import EvaluationReport, EvaluationSpec, MetricSums
from app.specs.training import RenderSpec
from workers.distill.callbacks import Callbacks
from workers.distill.errors import NothingToTrainError, TemplateError
from workers.distill.evaluation.fidelity import Fidelity, measure_fidelity
from workers.distill.evaluation.scoring import exact_match, field_f1
from workers.distill.evaluation.sums import Clusters, calibration_terms
from workers.distill.generate import GeneratedBatch, Generation, generate_batches
from workers.distill.rendering import Renderer
from workers.distill.tokenizers import vocabulary_size
from workers.distill.values import RenderedConversation

TAIL = 600
"""Characters of the prompt's end kept for the report."""
TruthKind = Literal["reference", "logged", "none"]


@dataclass(frozen=True, slots=True)
class _Example:
    """What is asked of one conversation: its last target turn, and what is already known of it."""

    conversation_id: str
    group: str
    prompt: tuple[int, ...]
    logged: str
    truth: str | None
    truth_kind: TruthKind
    rendered: RenderedConversation | None


@dataclass(frozen=True, slots=True)
class _Scored:
    """One row of the report's table; None where a value does not apply."""

    exact: float | None
    fields: float | None
    confidence: float
    fidelity: Fidelity | None


def run_evaluation(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    *,
    teacher: Any | None,
    render: RenderSpec,
    spec: EvaluationSpec,
    out_file: Path,
    callbacks: Callbacks,
) -> EvaluationReport:
    """Evaluate a checkpoint on the conversations given (the caller chose the split).

    Writes one row per conversation to `out_file` (Parquet). Metrics: exact_match, field_f1 (truths
    that are JSON objects), kl and agreement (with a teacher of the same ids; per target token of
    the logged answer), ece, tokens_per_second. A metric that applies to no conversation is absent.
    Clusters are the conversations' groups, sorted; for tokens_per_second they are the batches.
    Errors: NothingToTrainError where no conversation can be asked, StoppedError.
    """
    began = time.perf_counter()
    examples = _examples(tokenizer, conversations, render, spec, callbacks)
    callbacks.phase("generate")
    batches = list(
        generate_batches(
            model,
            tokenizer,
            [e.prompt for e in examples],
            max_new_tokens=spec.max_new_tokens,
            batch_size=spec.batch_size,
            callbacks=callbacks,
        )
    )
    answers = _in_order(batches)
    fidelity: dict[int, Fidelity] = {}
    if teacher is not None:
        callbacks.phase("score")
        asked = [(i, e.rendered) for i, e in enumerate(examples) if e.rendered is not None]
        measured = measure_fidelity(
            model,
            teacher,
            [rendered for _, rendered in asked],
            vocabulary=vocabulary_size(tokenizer),
            batch_size=spec.batch_size,
            callbacks=callbacks,
        )
        fidelity = {i: value for (i, _), value in zip(asked, measured, strict=True)}
    scored = [
        _score(example, answer, fidelity.get(i))
        for i, (example, answer) in enumerate(zip(examples, answers, strict=True))
    ]
    callbacks.phase("write")
    _write(out_file, tokenizer, examples, answers, scored)
    clusters = Clusters([e.group for e in examples])
    return EvaluationReport(
        conversations=len(examples),
        clusters=clusters.names,
        metrics=_metrics(clusters, scored, batches, spec.ece_bins),
        seconds=time.perf_counter() - began,
        generated_tokens=sum(b.tokens for b in batches),
    )


def _examples(
    tokenizer: Any,
    conversations: Sequence[Conversation],
    render: RenderSpec,
    spec: EvaluationSpec,
    callbacks: Callbacks,
) -> list[_Example]:
    changes: dict[str, Any] = {"targets": "last_turn", "answer": "logged"}
    renderer = Renderer(tokenizer, render.model_copy(update=changes))
    out: list[_Example] = []
    first: str | None = None
    wanted = conversations[: spec.max_conversations]
    for conversation in wanted:
        try:
            out.append(_example(renderer, conversation, spec))
        except (NothingToTrainError, TemplateError) as error:
            first = first or str(error)
    if not out:
        raise NothingToTrainError(
            f"None of {len(wanted)} conversations can be evaluated. "
            f"First reason: {first or 'the set is empty.'}",
            reason="empty_set",
        )
    if len(out) < len(wanted):
        callbacks.log(
            f"{len(wanted) - len(out)} of {len(wanted)} conversations are left out: {first}",
            "warning",
        )
    return out


def _example(renderer: Renderer, conversation: Conversation, spec: EvaluationSpec) -> _Example:
    messages = conversation.messages
    turns = [i for i, m in enumerate(messages) if m.is_target and m.role == "assistant"]
    if not turns or turns[-1] == 0:
        raise NothingToTrainError("The conversation has no target turn.", reason="no_target")
    last = messages[turns[-1]]
    prompt = renderer.render_prompt(messages[: turns[-1]], conversation.tools)
    truth: str | None = None
    kind: TruthKind = "none"
    if spec.truth != "logged" and last.reference is not None:
        truth, kind = last.reference, "reference"
    elif spec.truth != "reference" and not last.tool_calls:
        truth, kind = last.content, "logged"
    try:
        rendered = renderer.render(conversation)
    except (NothingToTrainError, TemplateError):
        rendered = None  # the prompt fits, prompt and logged answer together do not
    return _Example(
        conversation_id=conversation.id,
        group=conversation.group or conversation.id,
        prompt=tuple(prompt.tolist()),
        logged=last.content,
        truth=truth,
        truth_kind=kind,
        rendered=rendered,
    )


def _in_order(batches: Sequence[GeneratedBatch]) -> list[Generation]:
    found = {i: g for b in batches for i, g in zip(b.indices, b.generations, strict=True)}
    return [found[i] for i in range(len(found))]


def _score(example: _Example, answer: Generation, fidelity: Fidelity | None) -> _Scored:
    truth = example.truth
    return _Scored(
        exact=None if truth is None else exact_match(answer.text, truth),
        fields=None if truth is None else field_f1(answer.text, truth),
        confidence=math.exp(min(0.0, sum(answer.logprobs))),
        fidelity=fidelity,
    )


def _metrics(
    clusters: Clusters, scored: Sequence[_Scored], batches: Sequence[GeneratedBatch], bins: int
) -> tuple[MetricSums, ...]:
    fidelity = [s.fidelity for s in scored]
    tokens = [0.0 if f is None else float(f.tokens) for f in fidelity]
    judged = [i for i, s in enumerate(scored) if s.exact is not None]
    terms: list[float | None] = [None] * len(scored)
    if judged:
        values = calibration_terms(
            np.asarray([scored[i].confidence for i in judged]),
            np.asarray([scored[i].exact for i in judged], dtype=np.float64),
            bins,
        )
        for i, value in zip(judged, values.tolist(), strict=True):
            terms[i] = value
    found = [
        clusters.sums("exact_match", [s.exact for s in scored]),
        clusters.sums("field_f1", [s.fields for s in scored]),
        clusters.sums("kl", [None if f is None else f.kl for f in fidelity], tokens),
        clusters.sums("agreement", [None if f is None else f.agreed for f in fidelity], tokens),
        clusters.sums("ece", terms),
    ]
    speed = MetricSums(
        metric="tokens_per_second",
        sums=tuple(float(b.tokens) for b in batches),
        counts=tuple(b.seconds for b in batches),
        n=len(batches),
        paired=False,
    )
    return (*(m for m in found if m is not None), speed)


def _write(
    out_file: Path,
    tokenizer: Any,
    examples: Sequence[_Example],
    answers: Sequence[Generation],
    scored: Sequence[_Scored],
) -> None:
    """Write the rows in the conversations' order; kl and agreement are means per token here."""

    def per_token(value: Callable[[Fidelity], float]) -> list[float | None]:
        rows = [s.fidelity for s in scored]
        return [None if f is None or not f.tokens else value(f) / f.tokens for f in rows]

    text, number = pa.string(), pa.float64()
    columns = {
        "conversation_id": pa.array([e.conversation_id for e in examples], text),
        "group": pa.array([e.group for e in examples], text),
        "prompt": pa.array([tokenizer.decode(list(e.prompt))[-TAIL:] for e in examples], text),
        "prediction": pa.array([a.text for a in answers], text),
        "truth": pa.array([e.truth for e in examples], text),
        "truth_kind": pa.array([e.truth_kind for e in examples], text),
        "logged": pa.array([e.logged for e in examples], text),
        "exact_match": pa.array([s.exact for s in scored], number),
        "field_f1": pa.array([s.fields for s in scored], number),
        "kl": pa.array(per_token(lambda f: f.kl), number),
        "agreement": pa.array(per_token(lambda f: float(f.agreed)), number),
        "confidence": pa.array([s.confidence for s in scored], number),
        "tokens": pa.array([len(a.ids) for a in answers], pa.int64()),
        "finish_reason": pa.array([a.finish_reason for a in answers], text),
    }
    out_file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), out_file, compression="zstd")
