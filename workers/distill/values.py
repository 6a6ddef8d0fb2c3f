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
    """

    ids: NDArray[np.int64]
    logp: NDArray[np.float32]
    log_r: NDArray[np.float32]
    entropy: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """Teacher distribution at one temperature for N supervised positions: Σ w + r = 1 per row.

    ids: [N, K] int64 (padding 0 with weight 0). log_w: [N, K] (−inf where padded).
    log_r: [N] (−inf where the head is everything).
    """

    ids: torch.Tensor
    log_w: torch.Tensor
    log_r: torch.Tensor
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
    teacher: SparseTargets | None
    documents: torch.Tensor | None = None

    @property
    def target_tokens(self) -> int:
        return int(self.positions.numel())
