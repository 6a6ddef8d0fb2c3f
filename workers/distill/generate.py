"""Batched generation: sorted by length, left-padded, cached keys and values, stop at the end."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from workers.distill.callbacks import Callbacks
from workers.distill.errors import NothingToTrainError, StoppedError


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer. ids: generated tokens, the end token included where it came; text: without it.

    logprobs: log-probability of each of `ids` at T = 1, nats, whatever temperature chose them.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GeneratedBatch:
    """The answers to prompts `indices`, and the seconds the batch took."""

    indices: tuple[int, ...]
    generations: tuple[Generation, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(g.ids) for g in self.generations)


class _Choose(LogitsProcessor):
    """Picks each row's next token and keeps its log-probability at T = 1.

    Gumbel-max: the largest of z/T + Gumbel noise is a sample of softmax(z/T) (Gumbel 1954). The
    noise comes from the prompt's own generator, so batching and order change nothing.
    """

    def __init__(self, seeds: Sequence[Sequence[int]], temperature: float) -> None:
        self._noise = [np.random.default_rng(list(seed)) for seed in seeds]
        self._temperature = temperature
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        del input_ids
        wanted = scores.float()
        if self._temperature > 0:
            rows = [rng.gumbel(size=wanted.shape[1]) for rng in self._noise]
            noise = torch.from_numpy(np.stack(rows)).to(wanted)
            wanted = wanted / self._temperature + noise
        chosen = wanted.argmax(-1, keepdim=True)
        logp = torch.log_softmax(scores.float(), -1).gather(1, chosen)[:, 0]
        self.logprobs.append(logp.cpu())
        return torch.full_like(wanted, -torch.inf).scatter_(1, chosen, 0.0)


def generate_batches(  # noqa: PLR0913 - one library call; all but three are keywords with one meaning
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    callbacks: Callbacks,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[GeneratedBatch]:
    """Yield answers batch by batch, long prompts first (so memory peaks at once, not at the end).

    temperature 0 is greedy. Errors: StoppedError between batches when asked to stop;
    NothingToTrainError for an empty prompt.
    """
    if any(len(p) == 0 for p in prompts):
        raise NothingToTrainError("A prompt is empty, so nothing can follow it.", "empty_prompt")
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    ends = end_ids(model, tokenizer)
    done = 0
    for start in range(0, len(order), batch_size):
        if callbacks.should_stop():
            raise StoppedError(f"Generation was stopped after {done} of {len(order)} prompts.")
        indices = tuple(order[start : start + batch_size])
        choose = _Choose([(seed, i) for i in indices], temperature)
        began = clock()
        rows = _run(model, [prompts[i] for i in indices], choose, ends, max_new_tokens)
        seconds = clock() - began
        logprobs = torch.stack(choose.logprobs, 1).tolist()
        answers = tuple(
            _generation(tokenizer, ids, logp, ends)
            for ids, logp in zip(rows.tolist(), logprobs, strict=True)
        )
        done += len(indices)
        callbacks.progress(done, len(order), "prompts")
        yield GeneratedBatch(indices, answers, seconds)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    callbacks: Callbacks,
) -> list[Generation]:
    """Return one answer per prompt, in the prompts' order; see `generate_batches`."""
    out: dict[int, Generation] = {}
    for batch in generate_batches(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        callbacks=callbacks,
    ):
        out.update(zip(batch.indices, batch.generations, strict=True))
    return [out[i] for i in range(len(prompts))]


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer: the tokenizer's EOS and those the checkpoint names."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id} | set(named if isinstance(named, list) else [named])
    return tuple(sorted(i for i in found if i is not None))


@torch.inference_mode()
def _run(
    model: Any,
    prompts: Sequence[Sequence[int]],
    choose: _Choose,
    ends: tuple[int, ...],
    max_new_tokens: int,
) -> torch.Tensor:
    """Return generated ids [B, S], rows that ended early filled up with an end id."""
    length = max(len(p) for p in prompts)
    pad = ends[0] if ends else 0
    input_ids = torch.full((len(prompts), length), pad, dtype=torch.long)
    attention = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        attention[row, length - len(prompt) :] = 1
    make_config: Any = GenerationConfig  # transformers leaves it untyped
    config = make_config(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
    )
    kept, training = model.generation_config, model.training
    model.generation_config = config  # else the checkpoint's own sampling defaults are merged in
    model.eval()
    try:
        out: torch.Tensor = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([choose]),
        )
    finally:
        model.generation_config = kept
        model.train(training)
    return out[:, length:].cpu()


def _generation(
    tokenizer: Any, ids: list[int], logprobs: list[float], ends: tuple[int, ...]
) -> Generation:
    stop = next((i for i, token in enumerate(ids) if token in ends), None)
    size = len(ids) if stop is None else stop + 1
    return Generation(
        ids=tuple(ids[:size]),
        text=str(tokenizer.decode(ids[:size], skip_special_tokens=True)),
        logprobs=tuple(logprobs[:size]),
        finish_reason="length" if stop is None else "stop",
    )
