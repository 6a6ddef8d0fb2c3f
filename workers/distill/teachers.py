"""A live teacher: one pass over ids gives the rows that a cache keeps."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.specs.teacher import CaptureProfile
from workers.distill.heads import split_head
from workers.distill.values import TargetRows

_CHUNK = 512
_NOTHING = -1e30
"""Stands for −∞ where a product with exp(−∞) = 0 must be 0, not nan."""


class Teacher(Protocol):
    """Whatever can score rendered ids: a local checkpoint now, a server later."""

    vocabulary: int

    def capture(
        self, batch: Sequence[NDArray[np.int32]], profile: CaptureProfile
    ) -> list[TargetRows]:
        """Return rows [L − 1] for each sequence of ids [L]."""

    def log_probs(self, batch: Sequence[NDArray[np.int32]]) -> Iterator[torch.Tensor]:
        """Yield float64 log-probabilities [L − 1, V] at T = 1, sequence by sequence."""


class LocalTeacher:
    """A transformers checkpoint in this process. Rows of the head beyond `vocabulary` get no mass.

    Logits exist for `chunk` positions at a time; [B, L, V] never does.
    """

    def __init__(self, model: Any, vocabulary: int, *, chunk: int = _CHUNK) -> None:
        self.vocabulary = vocabulary
        self._model = model.eval()
        self._split = split_head(model)
        self._head = self._split.weight[:vocabulary]
        self._chunk = chunk

    @torch.inference_mode()
    def capture(
        self, batch: Sequence[NDArray[np.int32]], profile: CaptureProfile
    ) -> list[TargetRows]:
        """Return rows [L − 1] for each sequence: adaptive head, log r per T, entropy."""
        states = self._states(batch)
        parts = [
            _rows(states[start : start + self._chunk] @ self._head.t(), profile)  # fresh logits
            for start in range(0, states.shape[0], self._chunk)
        ]
        if not parts:
            parts = [_rows(states @ self._head.t(), profile)]
        ids, logp, log_r, entropy = (torch.cat(c).cpu().numpy() for c in zip(*parts, strict=True))
        borders = np.cumsum([0, *(len(ids_) - 1 for ids_ in batch)])
        out = []
        for start, stop in itertools.pairwise(borders):
            part = slice(int(start), int(stop))
            out.append(TargetRows(ids[part], logp[part], log_r[part], entropy[part]))
        return out

    @torch.inference_mode()
    def log_probs(self, batch: Sequence[NDArray[np.int32]]) -> Iterator[torch.Tensor]:
        """Yield float64 log-probabilities [L − 1, V] at T = 1; for small samples only."""
        states = self._states(batch)
        start = 0
        for ids in batch:
            stop = start + len(ids) - 1
            yield torch.log_softmax((states[start:stop] @ self._head.t()).double(), -1)
            start = stop

    @torch.inference_mode()
    def bare_forward(self, batch: Sequence[NDArray[np.int32]]) -> None:
        """Run the same pass with all logits and keep nothing: what capturing is compared with."""
        input_ids, attention = self._padded(batch)
        self._model(input_ids=input_ids, attention_mask=attention, use_cache=False)

    def _states(self, batch: Sequence[NDArray[np.int32]]) -> torch.Tensor:
        """Return hidden states [Σ (L − 1), D] that predict, padding left out."""
        input_ids, attention = self._padded(batch)
        hidden = self._split.hidden(input_ids, attention)
        return torch.cat([hidden[i, : len(ids) - 1] for i, ids in enumerate(batch)])

    def _padded(self, batch: Sequence[NDArray[np.int32]]) -> tuple[torch.Tensor, torch.Tensor]:
        length = max(len(ids) for ids in batch)
        input_ids = np.zeros((len(batch), length), dtype=np.int64)
        attention = np.zeros((len(batch), length), dtype=np.int64)
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = ids
            attention[row, : len(ids)] = 1
        device = self._split.weight.device
        return torch.from_numpy(input_ids).to(device), torch.from_numpy(attention).to(device)


def _rows(
    logits: torch.Tensor, profile: CaptureProfile
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (ids [c, K], log p [c, K], log r [c, G], entropy [c]) of a chunk of logits [c, V].

    The logits are used up. The residual is summed outside the head, never taken as 1 − Σ.
    """
    z = logits.float()
    top, ids = z.topk(min(profile.k_max, z.shape[1]), dim=-1)
    relative = top - top[:, :1]
    z = z.sub_(top[:, :1]).scatter_(1, ids, _NOTHING)
    outside = _outside(z, profile.temperatures)
    plain, dot = outside[1.0]
    total = plain + relative.exp().sum(-1)
    entropy = total.log() - (dot + (relative.exp() * relative).sum(-1)) / total
    logp = relative - total.log()[:, None]
    # An entry belongs to the head while the mass before it is below `head_mass`.
    before = logp.exp().cumsum(-1) - logp.exp()
    rank = torch.arange(ids.shape[1], device=ids.device)
    kept = (before < profile.head_mass) | (rank < profile.k_min)
    residuals = []
    for temperature in profile.temperatures:
        weights = (relative / temperature).exp()
        rest = outside[temperature][0] + torch.where(kept, 0, weights).sum(-1)
        residuals.append((rest / (rest + torch.where(kept, weights, 0).sum(-1))).log())
    return (
        torch.where(kept, ids, -1),
        torch.where(kept, logp, -torch.inf),
        torch.stack(residuals, -1),
        entropy,
    )


def _outside(
    z: torch.Tensor, temperatures: tuple[float, ...]
) -> dict[float, tuple[torch.Tensor, torch.Tensor]]:
    """Return per T (Σ exp(z / T), Σ exp(z / T) z) over the entries not in the top k.

    From hot to cold, so that halving the temperature is a squaring instead of an exponential.
    """
    sums: dict[float, tuple[torch.Tensor, torch.Tensor]] = {}
    exponentials: torch.Tensor | None = None
    hotter = 0.0
    for temperature in sorted(temperatures, reverse=True):
        if exponentials is not None and hotter == 2 * temperature:
            exponentials.square_()
        else:
            exponentials = (z / temperature).exp_()
        hotter = temperature
        total = exponentials.sum(-1)
        dot = torch.linalg.vecdot(exponentials, z) if temperature == 1.0 else total
        sums[temperature] = (total, dot)
    return sums
