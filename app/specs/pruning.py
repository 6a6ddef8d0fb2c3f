"""What a pruned student will be: which shapes are possible, and its card before it is made."""

from dataclasses import dataclass

from app.specs.checkpoint import CheckpointCard, PruneSpec

PRUNABLE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
_BIASED = "Qwen2ForCausalLM"
"""Its query, key and value projections have biases; the others' have none."""
FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes a llama-type checkpoint is cut along."""

    depth: int
    width: int
    ffn_width: int
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, card: CheckpointCard) -> "Shape":
        """Return the sizes on a card. Errors: ValueError where they are not known."""
        sizes = [card.depth, card.width, card.ffn_width, card.heads, card.kv_heads]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            raise ValueError("the sizes of a served checkpoint are not known")
        return cls(*known)


def shape_after(full: Shape, spec: PruneSpec) -> Shape:
    """Return the student's sizes; key/value heads follow the heads down where none are given."""
    heads = spec.heads or full.heads
    return Shape(
        depth=spec.depth or full.depth,
        width=spec.width or full.width,
        ffn_width=spec.ffn_width or full.ffn_width,
        heads=heads,
        kv_heads=spec.kv_heads or min(full.kv_heads, heads),
    )


def shape_problems(full: Shape, spec: PruneSpec) -> dict[str, str]:
    """Return field → what is wrong with it and the mend; empty when the student can be made."""
    found = {}
    for name in ("depth", "width", "ffn_width", "heads", "kv_heads"):
        wanted, most = getattr(spec, name), getattr(full, name)
        if wanted is not None and not 1 <= wanted <= most:
            words = f"{name.replace('_', ' ')} {wanted:,} is outside 1…{most:,}"
            found[name] = f"{words}, what the teacher has."
    if found:
        return found
    shape = shape_after(full, spec)
    if shape == full:
        return {"depth": "Nothing would be removed: make at least one size smaller."}
    return _head_problems(full, shape)


def _head_problems(full: Shape, shape: Shape) -> dict[str, str]:
    if shape.heads % shape.kv_heads:
        words = f"{shape.heads} heads cannot share {shape.kv_heads} key/value heads evenly."
        return {"heads": f"{words} Take a multiple."}
    group = full.heads // full.kv_heads
    if shape.heads // shape.kv_heads > group:
        words = f"{shape.heads} heads on {shape.kv_heads} key/value heads are more than"
        return {"kv_heads": f"{words} the teacher's {group} a group. Keep more key/value heads."}
    if shape.width % shape.heads:
        nearest = shape.width // shape.heads * shape.heads or shape.heads
        words = f"width {shape.width:,} is not a multiple of {shape.heads} heads"
        return {"width": f"{words}, which transformers needs. Take {nearest:,}."}
    return {}


def pruned_card(teacher: CheckpointCard, spec: PruneSpec) -> CheckpointCard | None:
    """Return the card the student will have, by arithmetic; None for an unknown architecture.

    Counts are exact. Bytes leave out the file's header (some hundred bytes a layer). The weights'
    fingerprint is empty until there are weights. The job cuts and saves in float32.
    """
    head_dim, rows, all_rows = _head_dim(teacher), teacher.vocabulary, teacher.parameters_embedding
    if head_dim is None or rows is None or all_rows is None:
        return None
    full = Shape.of(teacher)
    shape = shape_after(full, spec)
    compute = _compute(teacher.architecture, shape, head_dim)
    copies = all_rows // (rows * full.width)
    embedding = copies * rows * shape.width
    return teacher.model_copy(
        update={
            "depth": shape.depth,
            "width": shape.width,
            "ffn_width": shape.ffn_width,
            "heads": shape.heads,
            "kv_heads": shape.kv_heads,
            "parameters_compute": compute,
            "parameters_embedding": embedding,
            "parameters_total": compute + embedding,
            "bytes": FLOAT32_BYTES * (compute + embedding),
            "dtype": "float32",
            "weights_fingerprint": "",
        }
    )


def _compute(architecture: str | None, shape: Shape, head_dim: int) -> int:
    """Parameters outside the embeddings: attention, three FFN matrices and two norms a layer."""
    attention = 2 * shape.width * head_dim * (shape.heads + shape.kv_heads)
    if architecture == _BIASED:
        attention += head_dim * (shape.heads + 2 * shape.kv_heads)
    layer = attention + 3 * shape.width * shape.ffn_width + 2 * shape.width
    return shape.depth * layer + shape.width


def _head_dim(card: CheckpointCard) -> int | None:
    """Solve the head size from the counts: it is not always width ÷ heads, as after pruning."""
    if card.architecture not in PRUNABLE or card.parameters_compute is None:
        return None
    shape = Shape.of(card)
    without = _compute(card.architecture, shape, 0)
    each = _compute(card.architecture, shape, 1) - without
    size, rest = divmod(card.parameters_compute - without, each)
    return size if rest == 0 and size > 0 else None
