"""A student made from a llama-type teacher: fewer layers, and the channels that matter most."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from app.specs.checkpoint import PruneSpec
from app.specs.pruning import Shape, shape_after, shape_problems
from workers.distill.errors import PruneError

_FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
_BATCH = 8


@dataclass(slots=True)
class Importance:
    """How much each channel matters; larger is kept.

    width: [D]; ffn: per layer [F]; heads: per layer [H]. energy: per norm (two a layer, then the
    final one) the mean share [D] of a token's squared activations, or None without calibration.
    """

    width: torch.Tensor
    ffn: list[torch.Tensor]
    heads: list[torch.Tensor]
    energy: list[torch.Tensor] | None


def prune(model: Any, spec: PruneSpec, calibration: Sequence[NDArray[np.int32]] = ()) -> Any:
    """Return a smaller model of the same class; the given one is untouched.

    Depth keeps evenly spread layers, first and last included. Width keeps the channels with the
    largest mean |activation| over the calibration ids (Minitron, arXiv:2407.14679): the hidden size
    by what leaves the norms, FFN channels by what enters down_proj, heads by what enters o_proj,
    whole groups of query heads with their key/value head. head_dim stays. Without calibration the
    weights' own norms rank. Every norm's gain is scaled to the energy that was kept, so removing a
    silent channel changes nothing. Errors: PruneError.
    """
    shape = _check(model, spec)
    kept_layers = layers_to_keep(len(model.base_model.layers), shape.depth)
    importance = (
        measure_importance(model, calibration[: spec.calibration_conversations])
        if len(calibration)
        else weight_importance(model)
    )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.hidden_size = shape.depth, shape.width
    config.intermediate_size = shape.ffn_width
    config.num_attention_heads, config.num_key_value_heads = shape.heads, shape.kv_heads
    config.head_dim = _head_dim(model)
    if getattr(config, "layer_types", None):
        config.layer_types = [model.config.layer_types[i] for i in kept_layers]
    student = type(model)(config).to(model.get_input_embeddings().weight.dtype)
    with torch.no_grad():
        _copy(model, student, shape, kept_layers, importance)
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()


def layers_to_keep(total: int, kept: int) -> list[int]:
    """Return `kept` layer numbers of `total`, evenly spread, first and last included."""
    return np.linspace(0, total - 1, kept).round().astype(int).tolist() if kept > 1 else [0]


def _head_dim(model: Any) -> int:
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def _check(model: Any, spec: PruneSpec) -> Shape:
    if not isinstance(model, _FAMILIES):
        raise PruneError(
            f"{type(model).__name__} cannot be pruned; llama, mistral and qwen2 can. "
            "Choose such a teacher, or an existing student."
        )
    config = model.config
    full = Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        int(config.num_key_value_heads or config.num_attention_heads),
    )
    shape = shape_after(full, spec)
    problems = shape_problems(full, spec) if shape != full else {}
    if problems:
        raise PruneError(" ".join(problems.values()))
    return shape


def weight_importance(model: Any) -> Importance:
    """Rank channels by the norms of the weights that read and write them."""
    layers, head_dim = model.base_model.layers, _head_dim(model)
    width = model.get_input_embeddings().weight.detach().float().norm(dim=0)
    ffn, heads = [], []
    for layer in layers:
        down = layer.mlp.down_proj.weight.detach().float().norm(dim=0)
        ffn.append(down * layer.mlp.up_proj.weight.detach().float().norm(dim=1))
        out = layer.self_attn.o_proj.weight.detach().float().norm(dim=0)
        heads.append(out.view(-1, head_dim).norm(dim=1))
        width = width + layer.mlp.down_proj.weight.detach().float().norm(dim=1)
        width = width + layer.self_attn.o_proj.weight.detach().float().norm(dim=1)
    return Importance(width, ffn, heads, None)


@torch.inference_mode()
def measure_importance(model: Any, calibration: Sequence[NDArray[np.int32]]) -> Importance:
    """Rank channels by mean |activation| over the tokens of the calibration ids."""
    layers, head_dim = model.base_model.layers, _head_dim(model)
    device = model.get_input_embeddings().weight.device
    sums = _Sums(head_dim)
    with sums.listening(model):
        ordered = sorted(calibration, key=len)
        for start in range(0, len(ordered), _BATCH):
            batch = ordered[start : start + _BATCH]
            length = max(map(len, batch))
            ids = np.zeros((len(batch), length), dtype=np.int64)
            mask = np.zeros((len(batch), length), dtype=np.int64)
            for row, one in enumerate(batch):
                ids[row, : len(one)], mask[row, : len(one)] = one, 1
            attention = torch.from_numpy(mask).to(device)
            sums.mask = attention.bool()
            model.base_model(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=attention,
                use_cache=False,
            )
    count = len(layers)
    width = torch.stack([sums.out[n] for n in range(2 * count + 1)]).sum(0)
    return Importance(
        width=width,
        ffn=[sums.ffn[n] for n in range(count)],
        heads=[sums.heads[n] for n in range(count)],
        energy=[sums.energy[n] / sums.tokens for n in range(2 * count + 1)],
    )


class _Sums:
    """Forward hooks that add up activations of unpadded tokens."""

    def __init__(self, head_dim: int) -> None:
        self.head_dim = head_dim
        self.mask = torch.zeros(0)
        self.tokens = 0
        self.out: dict[int, torch.Tensor] = {}
        self.energy: dict[int, torch.Tensor] = {}
        self.ffn: dict[int, torch.Tensor] = {}
        self.heads: dict[int, torch.Tensor] = {}

    @contextmanager
    def listening(self, model: Any) -> Iterator[None]:
        base, handles = model.base_model, []
        for number, layer in enumerate(base.layers):
            handles += [
                layer.input_layernorm.register_forward_hook(self._norm(2 * number)),
                layer.post_attention_layernorm.register_forward_hook(self._norm(2 * number + 1)),
                layer.mlp.down_proj.register_forward_hook(self._input(self.ffn, number)),
                layer.self_attn.o_proj.register_forward_hook(self._input(self.heads, number)),
            ]
        handles.append(base.norm.register_forward_hook(self._norm(2 * len(base.layers))))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _norm(self, number: int) -> Any:
        def hook(_module: Any, inputs: Any, output: torch.Tensor) -> None:
            stream = inputs[0][self.mask].float().square()
            share = (stream / stream.sum(-1, keepdim=True).clamp_min(1e-20)).sum(0)
            self._add(self.energy, number, share)
            self._add(self.out, number, output[self.mask].float().abs().sum(0))
            self.tokens += stream.shape[0] if number == 0 else 0

        return hook

    def _input(self, store: dict[int, torch.Tensor], number: int) -> Any:
        def hook(_module: Any, inputs: Any, _output: torch.Tensor) -> None:
            value = inputs[0][self.mask].float().abs().sum(0)
            if store is self.heads:
                value = value.view(-1, self.head_dim).sum(1)
            self._add(store, number, value)

        return hook

    @staticmethod
    def _add(store: dict[int, torch.Tensor], number: int, value: torch.Tensor) -> None:
        store[number] = store[number] + value if number in store else value


def _top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the `count` best positions in rising order; ties go to the lower position."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _choose_heads(
    scores: torch.Tensor, groups: int, shape: Shape
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (query heads, key/value heads) kept: the best groups, and the best heads in each."""
    grouped = scores.view(groups, -1)
    size = shape.heads // shape.kv_heads
    best = grouped.sort(dim=1, descending=True).values[:, :size].sum(1)
    kv_heads = _top(best, shape.kv_heads)
    queries = [g * grouped.shape[1] + _top(grouped[g], size) for g in kv_heads.tolist()]
    return torch.cat(queries), kv_heads


def _rows_of(heads: torch.Tensor, head_dim: int) -> torch.Tensor:
    return (heads[:, None] * head_dim + torch.arange(head_dim, device=heads.device)).reshape(-1)


def _copy(
    model: Any, student: Any, shape: Shape, kept_layers: list[int], importance: Importance
) -> None:
    source, target = model.base_model, student.base_model
    head_dim = _head_dim(model)
    width = _top(importance.width, shape.width)
    target.embed_tokens.weight.copy_(source.embed_tokens.weight[:, width])
    if not model.config.tie_word_embeddings:
        student.lm_head.weight.copy_(model.lm_head.weight[:, width])

    def norm(into: Any, out_of: Any, number: int) -> None:
        if shape.width == model.config.hidden_size:
            into.weight.copy_(out_of.weight)
            return
        share = torch.ones((), device=width.device)
        if importance.energy is not None:
            share = importance.energy[number][width].sum()
        gain = (share * model.config.hidden_size / shape.width).sqrt()
        into.weight.copy_(out_of.weight[width] * gain)

    for place, number in enumerate(kept_layers):
        old, new = source.layers[number], target.layers[place]
        norm(new.input_layernorm, old.input_layernorm, 2 * number)
        norm(new.post_attention_layernorm, old.post_attention_layernorm, 2 * number + 1)
        ffn = _top(importance.ffn[number], shape.ffn_width)
        _linear(new.mlp.gate_proj, old.mlp.gate_proj, ffn, width)
        _linear(new.mlp.up_proj, old.mlp.up_proj, ffn, width)
        _linear(new.mlp.down_proj, old.mlp.down_proj, width, ffn)
        heads, kv_heads = _choose_heads(
            importance.heads[number], model.config.num_key_value_heads, shape
        )
        queries, keys = _rows_of(heads, head_dim), _rows_of(kv_heads, head_dim)
        _linear(new.self_attn.q_proj, old.self_attn.q_proj, queries, width)
        _linear(new.self_attn.k_proj, old.self_attn.k_proj, keys, width)
        _linear(new.self_attn.v_proj, old.self_attn.v_proj, keys, width)
        _linear(new.self_attn.o_proj, old.self_attn.o_proj, width, queries)
    norm(target.norm, source.norm, 2 * len(source.layers))


def _linear(into: Any, out_of: Any, rows: torch.Tensor, columns: torch.Tensor) -> None:
    into.weight.copy_(out_of.weight[rows][:, columns])
    if out_of.bias is not None:
        into.bias.copy_(out_of.bias[rows])
