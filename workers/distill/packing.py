"""Several conversations in one row: which go together, and masks that keep them apart."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from workers.distill.errors import PackingError

Form = Literal["one", "window", "kinds"]
_FORMS: dict[str, Form] = {
    "llama": "one",
    "gemma": "one",
    "olmo2": "one",
    "mistral": "window",
    "phi3": "window",
    "qwen2": "kinds",
    "qwen3": "kinds",
    "gemma3_text": "kinds",
    "smollm3": "kinds",
}
"""Model types whose packed rows are proved equal to the unpacked ones, and how they take a mask:
one for all layers, one that has the type's window, or one for each kind of layer."""
PACKABLE: tuple[str, ...] = tuple(_FORMS)
FULL, SLIDING = "full_attention", "sliding_attention"


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of indices: the longest first, each into the first row that has room for it.

    A length above `capacity` has a row of its own. Rows stand in the order they were opened.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((r for r, left in enumerate(room) if lengths[index] <= left), None)
        if place is None:
            rows.append([index])
            room.append(capacity - lengths[index])
        else:
            rows[place].append(index)
            room[place] -= lengths[index]
    return rows


def packing_problem(config: Any) -> str | None:
    """Return why a checkpoint's packed documents could not be kept apart exactly, or None."""
    kind = str(config.model_type)
    if kind not in _FORMS:
        return (
            f"Packing is exact for {', '.join(PACKABLE)} checkpoints, and this one is of type "
            f"{kind}. Turn packing off."
        )
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING})
    if strange:
        return f"Packing cannot keep documents apart in {strange[0]} layers. Turn packing off."
    if config._attn_implementation not in ("sdpa", "eager"):  # noqa: SLF001 - no public name
        return "Packing needs sdpa or eager attention. Turn packing off."
    return None


def positions_of(documents: torch.Tensor) -> torch.Tensor:
    """Return [B, L] position ids that start from 0 with every document of a row."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(begins, place, 0).cummax(1).values


def document_masks(documents: torch.Tensor, config: Any) -> Any:
    """Return what a decoder takes as `attention_mask` so that no token sees another document.

    documents: [B, L]. The mask is [B, 1, L, L], or one for each kind of layer. Errors:
    PackingError.
    """
    problem = packing_problem(config)
    if problem is not None:
        raise PackingError(problem)
    place = torch.arange(documents.shape[1], device=documents.device)
    distance = place[:, None] - place[None, :]
    same = documents[:, :, None] == documents[:, None, :]
    full = (same & (distance >= 0))[:, None]
    window = getattr(config, "sliding_window", None)
    near = full if window is None else full & (distance < window)
    form = _FORMS[config.model_type]
    if form == "kinds":
        return {FULL: _typed(full, config), SLIDING: _typed(near, config)}
    return _typed(near if form == "window" else full, config)


def _typed(allowed: torch.Tensor, config: Any) -> torch.Tensor:
    if config._attn_implementation == "sdpa":  # noqa: SLF001 - no public name
        return allowed
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, lowest)
