"""The typed values that pass between the hops of the core."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RenderedConversation:
    """Ids of one conversation after the cut.

    input_ids: [L] int32. target_mask: [L] bool, true where the token itself is to be predicted
    (so position 0 is never true). `entry` is SHA-256 over the ids: the teacher cache's key.
    """

    conversation_id: str
    group: str
    input_ids: NDArray[np.int32]
    target_mask: NDArray[np.bool_]
    entry: str
    cut_messages: int = 0


@dataclass(frozen=True, slots=True)
class TargetRows:
    """Teacher rows of one entry at T = 1, before decoding to a temperature.

    One row per predicted position: row i predicts input_ids[i + 1]; R = L − 1.
    ids: [R, K] int64, rank order, padded with −1. logp: [R, K] float32, −inf where padded.
    log_r: [R, G] float32, log of the mass outside the head per grid temperature (−inf: none).
    entropy: [R] float32, nats at T = 1.
    tail_ids, tail_share: [R, n], systematic samples of the rest at T = 1 where the profile has
    them: distinct ids (−1 where padded) and what share of the draws fell on each (there 0).
    """

    ids: NDArray[np.int64]
    logp: NDArray[np.float32]
    log_r: NDArray[np.float32]
    entropy: NDArray[np.float32]
    tail_ids: NDArray[np.int64] | None = None
    tail_share: NDArray[np.float32] | None = None

    def take(self, rows: "slice | NDArray[np.int64]") -> "TargetRows":
        """Return some of the rows."""
        return TargetRows(
            self.ids[rows],
            self.logp[rows],
            self.log_r[rows],
            self.entropy[rows],
            None if self.tail_ids is None else self.tail_ids[rows],
            None if self.tail_share is None else self.tail_share[rows],
        )


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """Teacher distribution at one temperature for N supervised positions: Σ w + r = 1 per row.

    ids: [N, K] int64 (padding 0 with weight 0). log_w: [N, K] (−inf where padded).
    log_r: [N] (−inf where the head is everything).
    samples: how many of the last columns are samples of the rest, whose weights sum to r: only for
    forward KL at T = 1, and then with entropy [N], the teacher's in nats.
    """

    ids: torch.Tensor
    log_w: torch.Tensor
    log_r: torch.Tensor
    temperature: float
    samples: int = 0
    entropy: torch.Tensor | None = None

    def to(self, device: torch.device) -> "SparseTargets":
        """Return the same on a device."""
        return SparseTargets(
            self.ids.to(device),
            self.log_w.to(device),
            self.log_r.to(device),
            self.temperature,
            self.samples,
            None if self.entropy is None else self.entropy.to(device),
        )


@dataclass(frozen=True, slots=True)
class LiveTargets:
    """The whole distribution of a teacher that is at hand, for N supervised positions.

    hidden: [N, D′] its states that predict; weight: [V, D′] its output head, without padding. Its
    logits exist for a chunk of positions at a time.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    temperature: float


@dataclass(frozen=True, slots=True)
class StudentBatch:
    """One micro-batch, right-padded; labels are already shifted: the only place that does so.

    input_ids, attention_mask: [B, L]. positions: [N] flat indices into B·L of the hidden
    states that predict; labels: [N] the ids they predict. teacher: rows for the same N, or None.
    alpha: [N] per-token weight of the teacher term (0 where no teacher row, 1 where no label).
    documents: [B, L] which document of its row a token belongs to (padding is one of its own), or
    None where each row is one conversation.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    alpha: torch.Tensor
    teacher: SparseTargets | LiveTargets | None
    documents: torch.Tensor | None = None

    @property
    def target_tokens(self) -> int:
        return int(self.positions.numel())
