"""Splitting a causal language model into hidden states and the one matrix that is its head."""

from dataclasses import dataclass
from typing import Any

import torch

from workers.distill.errors import HeadError
from workers.distill.packing import document_masks, positions_of

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

    Errors: HeadError where the head has a bias or rescales logits: the fused loss would be wrong.
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
    return SplitHead(decoder=model.base_model, weight=head.weight)
