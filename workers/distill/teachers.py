"""A live teacher: one pass over ids gives the rows that a cache keeps."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.specs.teacher import CaptureProfile
from workers.distill.errors import CheckpointError
from workers.distill.heads import split_head
from workers.distill.rendering import entry_of
from workers.distill.values import LiveTargets, StudentBatch, TargetRows

_CHUNK = 512
_BLOCK = 32
"""Rows reduced at a time on a processor: their logits stay in its cache over the dozen passes."""
_NOTHING = -1e30
"""Stands for −∞ where a product with exp(−∞) = 0 must be 0, not nan."""


class Teacher(Protocol):
    """Whatever can score rendered ids: weights in this process, or a server that has them.

    `capture` may raise Stopped where it was asked to while it waited.
    """

    vocabulary: int

    def capture(
        self, batch: Sequence[NDArray[np.int32]], profile: CaptureProfile
    ) -> list[TargetRows]:
        """Return rows [L − 1] for each sequence of ids [L]."""

    def log_probs(
        self, batch: Sequence[NDArray[np.int32]], *, chunk: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield float64 log-probabilities [c, V] at T = 1, sequence by sequence.

        c: at most `chunk` positions of one sequence of ids [L]; all its L − 1 without.
        """


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
        """Return rows [L − 1] for each sequence: adaptive head, log r per T, entropy, samples.

        Errors: CheckpointError where what the model gives is not finite.
        """
        states = self._states(batch)
        offsets = _offsets(batch).to(states.device) if profile.tail_samples else None
        block = _BLOCK if states.device.type == "cpu" else self._chunk
        parts = []
        for start in range(0, max(states.shape[0], 1), self._chunk):
            fresh = states[start : start + self._chunk] @ self._head.t()
            drawn = None if offsets is None else offsets[start : start + self._chunk]
            for at in range(0, max(fresh.shape[0], 1), block):
                part = slice(at, at + block)
                parts.append(_rows(fresh[part], profile, None if drawn is None else drawn[part]))
        whole = TargetRows(*(torch.cat(c).cpu().numpy() for c in zip(*parts, strict=True)))
        if not np.isfinite(whole.entropy).all():
            raise CheckpointError(
                "The teacher gives numbers that are not finite: its weights are damaged. Register "
                "the checkpoint again."
            )
        borders = np.cumsum([0, *(len(ids_) - 1 for ids_ in batch)])
        return [whole.take(slice(int(a), int(b))) for a, b in itertools.pairwise(borders)]

    @torch.inference_mode()
    def log_probs(
        self, batch: Sequence[NDArray[np.int32]], *, chunk: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield float64 log-probabilities [c, V] at T = 1, `chunk` positions at a time."""
        whole = torch.split(self._states(batch), [len(ids) - 1 for ids in batch])
        for states in whole:
            for part in torch.split(states, chunk or max(len(states), 1)):
                yield torch.log_softmax(part @ self._head.t(), -1, dtype=torch.float64)

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


class LiveTeacher:
    """A teacher held beside the student: its whole distribution, batch by batch, nothing stored."""

    def __init__(self, model: Any, vocabulary: int, temperature: float) -> None:
        self._split = split_head(model.eval().requires_grad_(requires_grad=False))
        self._head = self._split.weight[:vocabulary]
        self._temperature = temperature

    @torch.no_grad()
    def targets(self, batch: StudentBatch) -> LiveTargets:
        """Return what the teacher says at the batch's supervised positions."""
        hidden = self._split.hidden(batch.input_ids, batch.attention_mask, batch.documents)
        states = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
        return LiveTargets(states.to(self._head.dtype), self._head, self._temperature)


def _offsets(batch: Sequence[NDArray[np.int32]]) -> torch.Tensor:
    """Return where systematic sampling starts [Σ (L − 1)], uniform in [0, 1).

    A function of the entry alone: a shard that is made again has the same samples.
    """
    parts = [
        np.random.default_rng(int(entry_of(ids)[:16], 16)).random(len(ids) - 1) for ids in batch
    ]
    return torch.from_numpy(np.concatenate(parts))


def _rows(
    logits: torch.Tensor, profile: CaptureProfile, offsets: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Return (ids [c, K], log p [c, K], log r [c, G], entropy [c]) of a chunk of logits [c, V].

    With offsets [c] also (ids [c, n], share of the draws [c, n]) of samples of the rest.
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
    rows = (
        torch.where(kept, ids, -1),
        torch.where(kept, logp, -torch.inf),
        torch.stack(residuals, -1),
        entropy,
    )
    if offsets is None:
        return rows
    rest = z.exp_().scatter_(1, ids, torch.where(kept, 0, relative.exp()))
    return (*rows, *_samples(rest, offsets, profile.tail_samples))


def _samples(
    rest: torch.Tensor, offsets: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distinct ids [c, n] (−1 where padded) and their share of n draws [c, n].

    Systematic sampling of weights rest [c, V]: draw i falls where their running sum passes
    (i + offset) / n of the whole, so E[share] is the weight's share and no share errs by 1 / n.
    """
    running = rest.cumsum(-1, dtype=torch.float64)
    total = running[:, -1:]
    steps = torch.arange(count, device=rest.device, dtype=torch.float64)
    places = (steps + offsets[:, None]) / count * total
    drawn = torch.searchsorted(running, places, right=True).clamp_(max=rest.shape[1] - 1)
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]  # draws come in the order of ids
    first &= total > 0
    share = (drawn[:, :, None] == drawn[:, None, :]).sum(-1) / count
    order = (~first).byte().sort(dim=-1, stable=True).indices  # distinct ones to the front
    ids = torch.where(first, drawn, -1).gather(1, order)
    return ids, torch.where(first, share, 0).float().gather(1, order)


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
