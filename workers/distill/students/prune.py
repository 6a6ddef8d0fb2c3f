<<<<<<< HEAD
"""A student cut out of a llama-type teacher: fewer layers, channels, heads, or a thinner stream.

Width is ranked by activations (Muralidharan et al. 2024, "Compact Language Models via Pruning and
Knowledge Distillation"); layers are kept evenly spread.
"""

=======
"""A student made from a llama-type teacher: fewer layers, and the channels that matter most."""

import copy
>>>>>>> shell
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
<<<<<<< HEAD
from transformers import LlamaConfig, LlamaForCausalLM
=======
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM
>>>>>>> shell

from app.specs.checkpoint import PruneSpec
from workers.distill.errors import PruneError

<<<<<<< HEAD
=======
_FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
>>>>>>> shell
_BATCH = 8


@dataclass(frozen=True, slots=True)
class _Shape:
    depth: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
<<<<<<< HEAD
    head_dim: int


@dataclass(frozen=True, slots=True)
class _Importance:
    """Mean squares over calibration tokens.

    stream: norm → [D] of what enters it; normed: [D], its root after scaling, summed over norms;
    ffn: [layers, F] of what enters down_proj; mixed: [layers, H · d] of what enters o_proj.
    """

    stream: dict[str, torch.Tensor]
    normed: torch.Tensor
    ffn: torch.Tensor
    mixed: torch.Tensor


def prune(model: Any, spec: PruneSpec, calibration: Sequence[NDArray[np.int32]] = ()) -> Any:
    """Return a new LlamaForCausalLM of the sizes in `spec`, made of the teacher's own weights.

    calibration: ids [L] of conversations whose activations rank what is kept; without any, the
    weights alone rank. RMS norms are rescaled for the channels that leave the stream.
    Errors: PruneError where the sizes are impossible for this teacher.
    """
    old = _shape_of(model)
    new = _target_shape(old, spec)
    layers = _spread(old.depth, new.depth)
    keep_stream = torch.arange(old.width)
    importance = None
    if (new.width, new.ffn, new.heads, new.kv_heads) != (
        old.width,
        old.ffn,
        old.heads,
        old.kv_heads,
    ):
        chosen = list(calibration)[: spec.calibration_conversations]
        importance = _measure(model, chosen) if chosen else _from_weights(model)
        keep_stream = _top(importance.normed, new.width)
    state = _cut(model.state_dict(), old, new, layers, keep_stream, importance)
    facts = model.config.to_dict()
    facts |= {
        "num_hidden_layers": new.depth,
        "hidden_size": new.width,
        "intermediate_size": new.ffn,
        "num_attention_heads": new.heads,
        "num_key_value_heads": new.kv_heads,
        "head_dim": new.head_dim,
        # As the mean square grows by this factor where only silent channels leave.
        "rms_norm_eps": model.config.rms_norm_eps * old.width / new.width,
    }
    facts.pop("_name_or_path", None)
    student = LlamaForCausalLM(LlamaConfig(**facts)).to(model.dtype)
    student.load_state_dict(state)
    student.tie_weights()
    student.generation_config = model.generation_config
    return student.eval()


def _shape_of(model: Any) -> _Shape:
    config = model.config
    if config.model_type != "llama":
        raise PruneError(
            f"A student is cut only out of llama-type checkpoints, not {config.model_type}. "
            "Register a smaller checkpoint of the same family instead."
        )
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise PruneError("A teacher with biases in attention or FFN cannot be pruned yet.")
    heads = config.num_attention_heads
    return _Shape(
        depth=config.num_hidden_layers,
        width=config.hidden_size,
        ffn=config.intermediate_size,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _target_shape(old: _Shape, spec: PruneSpec) -> _Shape:
    wanted = {
        "depth": (spec.depth, old.depth),
        "width": (spec.width, old.width),
        "ffn": (spec.ffn_width, old.ffn),
        "heads": (spec.heads, old.heads),
        "kv_heads": (spec.kv_heads, old.kv_heads),
    }
    for name, (value, most) in wanted.items():
        if value is not None and not 1 <= value <= most:
            raise PruneError(f"{name} {value} is not between 1 and the teacher's {most}.")
    new = _Shape(**{n: v or most for n, (v, most) in wanted.items()}, head_dim=old.head_dim)
    if new.depth == 1 < old.depth:
        raise PruneError("depth 1 cannot keep the first and the last layer. Take at least 2.")
    if new.heads % new.kv_heads:
        raise PruneError(
            f"{new.heads} heads cannot share {new.kv_heads} key-value heads evenly. "
            "Make heads a multiple of kv_heads."
        )
    if new.heads // new.kv_heads > old.heads // old.kv_heads:
        raise PruneError(
            f"{new.heads} heads over {new.kv_heads} key-value heads is more a group than the "
            f"teacher's {old.heads // old.kv_heads}. Keep more key-value heads."
        )
    if new.width % new.heads:
        raise PruneError(
            f"width {new.width} is not divisible by {new.heads} heads, which the architecture "
            f"demands. Take width {new.width - new.width % new.heads}."
        )
    return new


def _spread(depth: int, count: int) -> list[int]:
    """Return `count` layers of `depth`, evenly spread, first and last included."""
    if count == 1:
        return [0]
    return [round(i * (depth - 1) / (count - 1)) for i in range(count)]


def _top(importance: torch.Tensor, count: int) -> torch.Tensor:
    """Return the `count` most important indices, ascending; ties go to the lower index."""
    order = torch.sort(importance, descending=True, stable=True).indices
    return order[:count].sort().values


@torch.inference_mode()
def _measure(model: Any, calibration: Sequence[NDArray[np.int32]]) -> _Importance:
    sums: dict[str, torch.Tensor] = {}
    mask: list[torch.Tensor] = []
    with _listening(model, sums, mask):
        for start in range(0, len(calibration), _BATCH):
            batch = calibration[start : start + _BATCH]
            length = max(len(ids) for ids in batch)
            input_ids = torch.zeros((len(batch), length), dtype=torch.long)
            attention = torch.zeros_like(input_ids)
            for row, ids in enumerate(batch):
                input_ids[row, : len(ids)] = torch.from_numpy(np.asarray(ids, dtype=np.int64))
                attention[row, : len(ids)] = 1
            mask[:] = [attention.bool().to(model.device)]
            model.base_model(
                input_ids=input_ids.to(model.device),
                attention_mask=attention.to(model.device),
                use_cache=False,
            )
    tokens = sum(len(ids) for ids in calibration)
    means = {name: (value / tokens).cpu() for name, value in sums.items()}
    layers = model.config.num_hidden_layers
    stream = {n: v for n, v in means.items() if n.endswith("norm")}
    weights = {n: model.base_model.get_submodule(n).weight.detach().cpu() for n in stream}
    normed = sum(
        (v / v.mean() * weights[n].double() ** 2).sqrt() for n, v in sorted(stream.items())
    )
    return _Importance(
        stream=stream,
        normed=torch.as_tensor(normed),
        ffn=torch.stack([means[f"layers.{i}.mlp.down_proj"] for i in range(layers)]),
        mixed=torch.stack([means[f"layers.{i}.self_attn.o_proj"] for i in range(layers)]),
    )


@contextmanager
def _listening(
    model: Any, sums: dict[str, torch.Tensor], mask: list[torch.Tensor]
) -> Iterator[None]:
    """Add Σ x² over real tokens of what enters each norm, down_proj and o_proj to `sums`."""
    handles = []

    def listen(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            value = (inputs[0][mask[0]].double() ** 2).sum(0)
            sums[name] = sums[name] + value if name in sums else value

        return hook

    for name, module in model.base_model.named_modules():
        if name.endswith(("norm", "down_proj", "o_proj")):
            handles.append(module.register_forward_pre_hook(listen(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _from_weights(model: Any) -> _Importance:
    """Stand in for activations: sizes of the weights that write each channel."""
    state = {n: w.double().cpu() for n, w in model.base_model.state_dict().items()}
    layers = range(model.config.num_hidden_layers)
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    head_dim = model.base_model.layers[0].self_attn.head_dim
    stream = (state["embed_tokens.weight"] ** 2).mean(0)
    for i in layers:
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            stream = stream + (state[f"layers.{i}.{part}.weight"] ** 2).mean(1)
    norms = [n.removesuffix(".weight") for n in state if n.endswith("norm.weight")]
    ffn, mixed = [], []
    for i in layers:
        gate = (state[f"layers.{i}.mlp.gate_proj.weight"] ** 2).sum(1)
        ffn.append(gate * (state[f"layers.{i}.mlp.up_proj.weight"] ** 2).sum(1))
        values = (state[f"layers.{i}.self_attn.v_proj.weight"] ** 2).sum(1).view(-1, head_dim)
        mixed.append(values.repeat_interleave(group, 0).flatten())
    return _Importance(
        stream=dict.fromkeys(norms, stream),
        normed=stream.sqrt(),
        ffn=torch.stack(ffn),
        mixed=torch.stack(mixed),
    )


def _cut(
    state: dict[str, torch.Tensor],
    old: _Shape,
    new: _Shape,
    layers: list[int],
    stream: torch.Tensor,
    importance: _Importance | None,
) -> dict[str, torch.Tensor]:
    """Return the student's state dict: every tensor sliced in the dimensions it shares."""

    def norm(name: str) -> torch.Tensor:
        weight = state[f"model.{name}.weight"][stream]
        if importance is None or new.width == old.width:
            return weight.clone()
        energy = importance.stream[name]
        # The mean square now runs over fewer channels: keep its size as it was on average.
        share = float(energy[stream].sum() / energy.sum())
        scale: float = (share * old.width / new.width) ** 0.5
        return weight * scale

    out = {
        "model.embed_tokens.weight": state["model.embed_tokens.weight"][:, stream].clone(),
        "model.norm.weight": norm("norm"),
        "lm_head.weight": state["lm_head.weight"][:, stream].clone(),
    }
    for place, layer in enumerate(layers):
        prefix, target = f"layers.{layer}", f"model.layers.{place}"
        ffn, heads, kv = _kept_in_layer(state, layer, old, new, importance)
        weights = {n: state[f"model.{prefix}.{n}.weight"] for n in _LINEAR}
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"{target}.{name}.weight"] = norm(f"{prefix}.{name}")
        rows = {"self_attn.q_proj": heads, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
        rows |= {"mlp.gate_proj": ffn, "mlp.up_proj": ffn}
        for name, kept in rows.items():
            out[f"{target}.{name}.weight"] = weights[name][kept][:, stream].clone()
        for name, kept in {"self_attn.o_proj": heads, "mlp.down_proj": ffn}.items():
            out[f"{target}.{name}.weight"] = weights[name][stream][:, kept].clone()
    return out


_LINEAR = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def _kept_in_layer(
    state: dict[str, torch.Tensor],
    layer: int,
    old: _Shape,
    new: _Shape,
    importance: _Importance | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return indices kept of a layer: FFN channels, rows of q_proj, rows of k_proj and v_proj."""
    ffn, groups = torch.arange(old.ffn), torch.arange(old.kv_heads)
    size = old.heads // old.kv_heads
    members = torch.arange(old.heads).view(old.kv_heads, size)
    if importance is not None:
        prefix = f"model.layers.{layer}"
        down = (state[f"{prefix}.mlp.down_proj.weight"].double().cpu() ** 2).sum(0)
        ffn = _top(importance.ffn[layer] * down, new.ffn)
        mix = (state[f"{prefix}.self_attn.o_proj.weight"].double().cpu() ** 2).sum(0)
        by_head = (importance.mixed[layer] * mix).view(old.heads, old.head_dim).sum(1)
        by_group = by_head.view(old.kv_heads, size)
        groups = _top(by_group.sum(1), new.kv_heads)
        each = new.heads // new.kv_heads
        members = torch.stack([members[g][_top(by_group[g], each)] for g in groups])
    offsets = torch.arange(old.head_dim)
    heads = (members.flatten()[:, None] * old.head_dim + offsets).flatten()
    return ffn, heads, (groups[:, None] * old.head_dim + offsets).flatten()
=======


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
    config.intermediate_size = shape.ffn
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


def _check(model: Any, spec: PruneSpec) -> _Shape:
    if not isinstance(model, _FAMILIES):
        raise PruneError(
            f"{type(model).__name__} cannot be pruned; llama, mistral and qwen2 can. "
            "Choose such a teacher, or an existing student."
        )
    config = model.config
    full = _Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        int(config.num_key_value_heads or config.num_attention_heads),
    )
    heads = spec.heads or full.heads
    kv_heads = int(spec.kv_heads or min(full.kv_heads, heads))
    shape = _Shape(
        spec.depth or full.depth,
        spec.width or full.width,
        spec.ffn_width or full.ffn,
        heads,
        kv_heads,
    )
    for name in ("depth", "width", "ffn", "heads", "kv_heads"):
        wanted, most = getattr(shape, name), getattr(full, name)
        if not 1 <= wanted <= most:
            raise PruneError(f"{name} {wanted} is outside 1…{most}, what the teacher has.")
    if shape.heads % shape.kv_heads:
        raise PruneError(
            f"{shape.heads} heads cannot share {shape.kv_heads} key/value heads evenly. "
            "Take a multiple."
        )
    if shape.heads // shape.kv_heads > full.heads // full.kv_heads:
        raise PruneError(
            f"{shape.heads} heads on {shape.kv_heads} key/value heads are more than the teacher's "
            f"{full.heads // full.kv_heads} a group. Keep more key/value heads."
        )
    if shape.width % shape.heads:
        raise PruneError(
            f"width {shape.width} is not a multiple of {shape.heads} heads, which transformers "
            f"needs. Take {shape.width // shape.heads * shape.heads or shape.heads}."
        )
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
    scores: torch.Tensor, groups: int, shape: _Shape
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
    model: Any, student: Any, shape: _Shape, kept_layers: list[int], importance: Importance
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
        ffn = _top(importance.ffn[number], shape.ffn)
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
>>>>>>> shell
