"""Splitting a causal language model into hidden states and the one matrix that is its head."""

from dataclasses import dataclass
from typing import Any

import torch

from workers.distill.errors import HeadError
from workers.distill.packing import document_masks, positions_of

_TOKENS = 4
_SLACK = 1e-3
"""By how much logits may differ from hidden · weightᵀ, as a share of the largest: rounding."""
_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, slots=True)
class SplitHead:
    """decoder(input_ids, attention_mask) → hidden [B, L, D]; logits = hidden · weightᵀ."""

    decoder: Any
    weight: torch.Tensor

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        documents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the last hidden states [B, L, D] after the final norm.

        documents: [B, L], where a row packs several: none of them sees another.
        """
        packed: dict[str, Any] = {}
        if documents is not None:
            attention_mask = document_masks(documents, self.decoder.config)
            packed["position_ids"] = positions_of(documents)
        output = self.decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **packed
        )
        states: torch.Tensor = output.last_hidden_state
        return states


def split_head(model: Any) -> SplitHead:
    """Return decoder and head weight [V, D] of a transformers causal language model.

    Compares both on a few tokens, without gradients, chance or a change of mode. Errors: HeadError
    where the head has a bias or logits are rescaled: the fused loss would be wrong.
    """
    head = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise HeadError(f"{type(model).__name__} has no output head. Take a causal language model.")
    if getattr(head, "bias", None) is not None:
        raise HeadError(f"The output head of {type(model).__name__} has a bias; not supported yet.")
    for name in _SCALED:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise HeadError(
                f"{type(model).__name__} changes its logits after the head ({name}); "
                "not supported yet. Take a llama-type checkpoint."
            )
    split = SplitHead(decoder=model.base_model, weight=head.weight)
    if not _is_all(split, model):
        raise HeadError(
            f"The logits of {type(model).__name__} are not its head times its last hidden states; "
            "not supported yet. Take a llama-type checkpoint."
        )
    return split


@torch.no_grad()
def _is_all(split: SplitHead, model: Any) -> bool:
    """Whether hidden · weightᵀ are the model's logits; what is not finite is not judged here."""
    ids = torch.arange(_TOKENS, device=split.weight.device)[None] % len(split.weight)
    seen = torch.ones_like(ids)
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        made = split.hidden(ids, seen).to(split.weight.dtype) @ split.weight.t()
        said = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
    finally:
        for part, mode in modes:
            part.training = mode
    slack = max(_SLACK, 8 * torch.finfo(split.weight.dtype).eps)
    apart, most = (made.double() - said.double()).abs().max(), said.double().abs().max()
    return not bool(apart > slack * most)  # neither true of nan
