"""Answers of a checkpoint, in batches of similar length, with the log-probability of each token."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from workers.distill.callbacks import Callbacks, Stopped
from workers.distill.tokenizers import vocabulary_size

_PROBABILITY_FLOOR = 1e-20


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer. `ids` and `logprobs` (nats, T = 1) include the end token where there is one.

    `batch` numbers the batch it was made in and `batch_seconds` is how long that took.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    batch: int
    batch_seconds: float


class GenerationStopped(Stopped):
    """Asked to stop; `answers` holds those of complete batches, by the prompt's index."""

    def __init__(self, answers: dict[int, Generation]) -> None:
        super().__init__(f"Stopped after {len(answers)} answers.")
        self.answers = answers


@torch.inference_mode()
def generate(  # noqa: PLR0913 - a core's entry: inputs, knobs, callbacks
    model: Any,
    tokenizer: Any,
    prompts: Sequence[NDArray[np.int32] | list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    callbacks: Callbacks,
    temperature: float = 0.0,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Generation]:
    """Return one Generation per prompt of ids [L], in the prompts' order.

    Temperature 0 is greedy. Above it each prompt draws from its own generator, seeded by `seed` and
    its place, so neither the batch size nor torch's global state changes an answer. Stops at EOS.
    Errors: GenerationStopped within a token's time of `should_stop`.
    """
    model.eval()
    ends = end_ids(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    vocabulary = vocabulary_size(tokenizer)
    out: dict[int, Generation] = {}
    for number, start in enumerate(range(0, len(order), batch_size)):
        chosen = order[start : start + batch_size]
        draw = _Draw(temperature, [[seed, i] for i in chosen], vocabulary)
        started = clock()
        stop = _Stop(callbacks)
        answers = _batch(model, [prompts[i] for i in chosen], max_new_tokens, ends, (draw, stop))
        seconds = clock() - started
        if stop.asked:
            raise GenerationStopped(out)
        for index, row, logprobs in zip(chosen, answers, draw.logprobs, strict=True):
            out[index] = _generation(tokenizer, row, logprobs, ends, (number, seconds))
        callbacks.progress(len(out), len(prompts), "answers")
    return [out[i] for i in range(len(prompts))]


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: the tokenizer's EOS and those the checkpoint names."""
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, model.generation_config.eos_token_id):
        found.update([value] if isinstance(value, int) else value or [])
    return sorted(found)


class _Draw(LogitsProcessor):
    """Records log-probabilities at T = 1 and turns greedy choice into sampling (Gumbel-max)."""

    def __init__(self, temperature: float, seeds: list[list[int]], vocabulary: int) -> None:
        self.temperature, self.vocabulary = temperature, vocabulary
        self.generators = [np.random.default_rng(s) for s in seeds]
        self._columns: list[torch.Tensor] = []
        self._last: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.observe(input_ids)
        scores = scores.float()
        scores[:, self.vocabulary :] = -torch.inf
        self._last = torch.log_softmax(scores, -1)
        if self.temperature == 0:
            return self._last
        noise = np.stack([g.random(scores.shape[1]) for g in self.generators])
        gumbel = -np.log(-np.log(noise + _PROBABILITY_FLOOR))
        return self._last / self.temperature + torch.from_numpy(gumbel).to(self._last)

    def observe(self, input_ids: torch.Tensor) -> None:
        """Take the log-probability of the token that was chosen from the last scores."""
        if self._last is not None:
            self._columns.append(self._last.gather(1, input_ids[:, -1:])[:, 0])

    @property
    def logprobs(self) -> list[list[float]]:
        rows: list[list[float]] = torch.stack(self._columns, 1).tolist()
        return rows


class _Stop(StoppingCriteria):
    """Ends every row of a batch as soon as somebody asks: a batch may take minutes."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self.asked = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        del scores
        self.asked = self.asked or self._callbacks.should_stop()
        return torch.full((len(input_ids),), self.asked, device=input_ids.device)


def _batch(
    model: Any,
    prompts: Sequence[NDArray[np.int32] | list[int]],
    max_new_tokens: int,
    ends: list[int],
    hooks: tuple[_Draw, _Stop],
) -> list[list[int]]:
    """Return the new ids of left-padded prompts, all of one length; what follows EOS is padding."""
    draw, stop = hooks
    length = max(map(len, prompts))
    pad = ends[0] if ends else 0
    ids = np.full((len(prompts), length), pad, dtype=np.int64)
    mask = np.zeros((len(prompts), length), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    device = model.get_input_embeddings().weight.device
    sequences = model.generate(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call] # half typed
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=pad,
        ),
        logits_processor=LogitsProcessorList([draw]),
        stopping_criteria=StoppingCriteriaList([stop]),
    )
    draw.observe(sequences)
    new: list[list[int]] = sequences[:, length:].tolist()
    return new


def _generation(
    tokenizer: Any,
    row: list[int],
    logprobs: list[float],
    ends: list[int],
    batch: tuple[int, float],
) -> Generation:
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    count = len(row) if stop is None else stop + 1
    content = row[:count] if stop is None else row[:stop]
    return Generation(
        ids=tuple(row[:count]),
        text=tokenizer.decode(content, skip_special_tokens=True),
        logprobs=tuple(logprobs[:count]),
        finish_reason="length" if stop is None else "stop",
        batch=batch[0],
        batch_seconds=batch[1],
    )
