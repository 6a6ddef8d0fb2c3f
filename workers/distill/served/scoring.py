"""A teacher behind a server: its log-probabilities of a prompt become the rows a cache keeps.

The interface is vLLM's: `prompt_logprobs` of a completion is a list as long as the prompt, first
null, then for each token id → {logprob, rank, decoded_token}: the likeliest k, and the token that
stands there, which may be further down.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.specs.served import profile_problems
from app.specs.teacher import CaptureProfile
from workers.distill.errors import (
    DistillError,
    EndpointAnswerError,
    EndpointLogprobsError,
    EndpointTokenizerError,
    TemperatureError,
)
from workers.distill.served.client import Endpoint, Json, Question, Server
from workers.distill.values import TargetRows

LEAST_RESIDUAL = 2.0**-23
"""Mass outside the head that float32 log-probabilities cannot tell from none: a row keeps it."""
BYTES_AN_ENTRY = 512
SLACK = 1e-3
"""By how much a log-probability may exceed what it can be, or its neighbour: rounding of bf16."""
_PARTS = 2
"""An entry of k log-probabilities may come with the token's own beside them."""


def scoring(server: Server, ids: Sequence[int], top: int) -> Question:
    """Return the request for the log-probabilities of ids [L]; one token more is generated."""
    return Question(
        "/completions",
        {
            "model": server.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": top,
        },
        most_bytes=(1 << 20) + len(ids) * (top + _PARTS) * BYTES_AN_ENTRY,
    )


def entries_of(answer: Json, ids: Sequence[int]) -> list[Mapping[str, Any]]:
    """Return the answer's entries for positions 1…L − 1, each with the token that stands there.

    Errors: EndpointLogprobsError (none, or not as many as ids), EndpointTokenizerError.
    """
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    found = first.get("prompt_logprobs") if isinstance(first, dict) else None
    found = answer.get("prompt_logprobs") if found is None else found
    if not isinstance(found, list):
        raise EndpointLogprobsError(
            "The server ignores prompt_logprobs: it answers without them. vLLM gives them."
        )
    if len(found) != len(ids):
        raise EndpointLogprobsError(
            f"The server gave log-probabilities of {len(found)} positions for {len(ids)} tokens. "
            "It changes prompts, or leaves out what it had cached (vLLM: --no-enable-prefix-"
            "caching)."
        )
    entries = found[1:]
    for place, (entry, token) in enumerate(zip(entries, ids[1:], strict=True), 1):
        if not isinstance(entry, dict):
            raise EndpointLogprobsError(
                f"The server gave no log-probabilities of position {place} of {len(ids)}. Serve it "
                "without prefix caching (vLLM: --no-enable-prefix-caching)."
            )
        if str(token) not in entry:
            raise EndpointTokenizerError(
                f"Position {place} of the prompt is token {token}, and the server's log-"
                "probabilities there name it not: it read other ids. Name the served model's own "
                "tokenizer."
            )
    return entries


def head_of(entry: Mapping[str, Any], top: int, vocabulary: int) -> tuple[list[int], list[float]]:
    """Return ids and log-probabilities of the likeliest `top`, the likeliest first.

    Errors: EndpointAnswerError, EndpointTokenizerError for an id beyond the vocabulary.
    """
    found = sorted(map(_parsed, entry.items()))
    wanted = min(top, vocabulary)
    kept = [(token, logp) for rank, minus, token, logp in found if rank <= top][:wanted]
    if len(kept) < wanted:
        raise EndpointAnswerError(
            f"The server gave {len(kept)} log-probabilities of a token where {wanted} were asked "
            "for. Lower k max."
        )
    ids, logps = [token for token, _ in kept], [logp for _, logp in kept]
    if not all(0 <= token < vocabulary for token in ids):
        far = next(token for token in ids if not 0 <= token < vocabulary)
        raise EndpointTokenizerError(
            f"The server gives token {far}, and the tokenizer named for it has {vocabulary:,} "
            "entries. Name the served model's own tokenizer."
        )
    rising = any(b > a + SLACK for a, b in itertools.pairwise(logps))
    if rising or logps[0] > SLACK or not all(map(math.isfinite, logps)):
        raise EndpointAnswerError(
            "The server's log-probabilities are not in the order of their ranks, or above 0: they "
            "are no log-probabilities."
        )
    return ids, logps


def _parsed(item: tuple[str, Any]) -> tuple[float, float, int, float]:
    """Return (rank, −log p, id, log p); without ranks all may be the likeliest."""
    text, value = item
    try:
        logp = float(value["logprob"])
        rank = value.get("rank")
        return (1.0 if rank is None else float(rank), -logp, int(text), logp)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise EndpointAnswerError(
            f"The server's log-probability of token {text[:20]!r} cannot be read. It must be "
            '{"logprob": number, "rank": number}, as vLLM gives it.'
        ) from error


class ServedTeacher:
    """A Teacher whose rows are asked of a server: the top k at T = 1, the rest one bucket."""

    def __init__(self, endpoint: Endpoint, vocabulary: int, top: int) -> None:
        self.vocabulary = vocabulary
        self._endpoint = endpoint
        self._top = top

    def capture(
        self, batch: Sequence[NDArray[np.int32]], profile: CaptureProfile
    ) -> list[TargetRows]:
        """Return rows [L − 1] for each sequence of ids [L], cut as a local teacher's are.

        log_r is log(1 − Σ) in float64. `entropy` counts the bucket as one token: a lower bound.
        Errors: TemperatureError or EndpointLogprobsError for what a server cannot give (see
        app.specs.served); EndpointError; Stopped.
        """
        for problem in profile_problems(self._top, profile):
            kind: type[DistillError] = EndpointLogprobsError
            if problem.field == "temperatures":
                kind = TemperatureError
            raise kind(problem.sentence)
        k = min(profile.k_max, self.vocabulary)
        return [_cut(*head, profile) for head in self._heads(batch, k)]

    def log_probs(
        self, batch: Sequence[NDArray[np.int32]], *, chunk: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield float64 log-probabilities [c, V]: the top k, and what is left spread evenly.

        What lies beyond the top k, nobody here knows; any bucket of it has the right mass.
        """
        k = min(self._top, self.vocabulary)
        for ids in batch:
            [(tokens, logp)] = self._heads([ids], k)
            left = np.maximum(1 - np.exp(logp).sum(-1), LEAST_RESIDUAL)
            each = np.log(left / max(self.vocabulary - k, 1))
            size = chunk or max(len(each), 1)
            for start in range(0, max(len(each), 1), size):
                part = slice(start, start + size)
                dense = np.repeat(each[part, None], self.vocabulary, axis=1)
                np.put_along_axis(dense, tokens[part], logp[part], axis=1)
                yield torch.from_numpy(dense)

    def _heads(
        self, batch: Sequence[NDArray[np.int32]], k: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return (ids [L − 1, k], log p [L − 1, k]) for each sequence; one of a token has none."""
        asked = [[int(i) for i in ids] for ids in batch]
        server = self._endpoint.server
        answers = iter(
            self._endpoint.ask_all([scoring(server, ids, k) for ids in asked if len(ids) > 1])
        )
        out = []
        for ids in asked:
            entries = entries_of(next(answers), ids) if len(ids) > 1 else []
            heads = [head_of(entry, k, self.vocabulary) for entry in entries]
            tokens = np.array([head[0] for head in heads], dtype=np.int64).reshape(-1, k)
            out.append((tokens, np.array([h[1] for h in heads], dtype=np.float64).reshape(-1, k)))
        return out


def _cut(
    tokens: NDArray[np.int64], logp: NDArray[np.float64], profile: CaptureProfile
) -> TargetRows:
    """Return rows of (ids, log p) [R, K]: an entry is kept while the mass before it is small."""
    p = np.exp(logp)
    before = np.cumsum(p, -1) - p
    kept = (before < profile.head_mass) | (np.arange(tokens.shape[1]) < profile.k_min)
    left = np.maximum(1 - np.where(kept, p, 0).sum(-1), LEAST_RESIDUAL)
    beyond = np.maximum(1 - p.sum(-1), LEAST_RESIDUAL)
    entropy = -(p * logp).sum(-1) - beyond * np.log(beyond)
    return TargetRows(
        ids=np.where(kept, tokens, -1),
        logp=np.where(kept, logp, -np.inf).astype(np.float32),
        log_r=np.log(left)[:, None].astype(np.float32),
        entropy=entropy.astype(np.float32),
    )
