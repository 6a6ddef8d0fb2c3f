"""Cross-entropy on the label, from pieces of a chunk's logits."""

import torch


def nll(logit_label: torch.Tensor, logsumexp: torch.Tensor) -> torch.Tensor:
    """Return −log q(label) [c] at T = 1. Its gradient: dCE/dz_j = q_j − 1[j = label]."""
    return logsumexp - logit_label
