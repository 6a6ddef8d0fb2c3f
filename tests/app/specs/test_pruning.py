"""A student's card by arithmetic equals the card read from weights that were really cut."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from app.specs.checkpoint import CheckpointCard, PruneSpec, card_verdict
from app.specs.pruning import Shape, pruned_card, shape_problems
from tests.workers.distill import tiny
from workers.distill.checkpoints import read_card, save_checkpoint
from workers.distill.students.prune import prune

HEADER = 16_384
SPECS = (
    PruneSpec(depth=2),
    PruneSpec(width=16),
    PruneSpec(ffn_width=24),
    PruneSpec(heads=2),
    PruneSpec(depth=1, width=16, ffn_width=40, heads=2, kv_heads=1),
)


def qwen() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tiny.tokenizer()) + 8,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tiny.tokenizer().eos_token_id,
    )
    return Qwen2ForCausalLM(config).eval()


MODELS = {
    "tied llama": lambda: tiny.llama(layers=3),
    "untied llama": lambda: tiny.llama(layers=3, tied=False),
    "qwen2 with biases and padded rows": qwen,
}


def card_of(model: torch.nn.Module, folder: Path) -> CheckpointCard:
    save_checkpoint(model, tiny.tokenizer(), folder)
    return read_card(folder, licence="apache-2.0")


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_the_card_of_the_pruned_weights(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    teacher = card_of(model, tmp_path / "teacher")
    for number, spec in enumerate(SPECS):
        real = card_of(prune(model, spec), tmp_path / str(number))
        guess = pruned_card(teacher, spec)
        assert guess is not None
        unknown = {"weights_fingerprint", "bytes"}
        assert guess.model_dump(exclude=unknown) == real.model_dump(exclude=unknown)
        assert 0 < real.bytes - guess.bytes < HEADER
    # A pruned student has another head size than width ÷ heads, and can be cut again.
    student = prune(model, SPECS[1])
    again = pruned_card(card_of(student, tmp_path / "s"), PruneSpec(depth=1))
    assert again is not None
    real = card_of(prune(student, PruneSpec(depth=1)), tmp_path / "again")
    assert again.parameters_total == real.parameters_total


def test_an_unknown_architecture_or_count_gives_no_estimate(tmp_path: Path) -> None:
    card = card_of(tiny.llama(), tmp_path / "t")
    other = card.model_copy(update={"architecture": "GemmaForCausalLM"})
    assert pruned_card(other, PruneSpec(depth=1)) is None
    odd = card.model_copy(update={"parameters_compute": card.parameters_compute + 1})
    assert pruned_card(odd, PruneSpec(depth=1)) is None


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (PruneSpec(depth=31), "depth", "outside 1…30"),
        (PruneSpec(width=0), "width", "outside 1…576"),
        (PruneSpec(depth=30), "depth", "Nothing would be removed"),
        (PruneSpec(heads=4), "heads", "cannot share 3 key/value heads evenly. Take a multiple."),
        (PruneSpec(kv_heads=1), "kv_heads", "more than the teacher's 3 a group"),
        (
            PruneSpec(width=500),
            "width",
            "not a multiple of 9 heads, which transformers needs. Take 495.",
        ),
    ],
)
def test_impossible_shapes_say_what_would_do(spec: PruneSpec, field: str, words: str) -> None:
    full = Shape(depth=30, width=576, ffn_width=1536, heads=9, kv_heads=3)
    found = shape_problems(full, spec)
    assert list(found) == [field]
    assert words in found[field]


def test_tokenizers_are_compared_by_their_cards(tmp_path: Path) -> None:
    a = card_of(tiny.llama(), tmp_path / "a")
    for change, kind, allowed in (
        ({}, "identical", True),
        ({"vocabulary": a.vocabulary + 64}, "padded", True),
        ({"vocabulary": a.vocabulary - 1}, "different", False),
        ({"template_fingerprint": "other"}, "other_template", False),
        ({"tokenizer_fingerprint": "other"}, "different", False),
    ):
        verdict = card_verdict(a, a.model_copy(update=change))
        assert (verdict.kind, verdict.logits_allowed) == (kind, allowed)
    assert card_verdict(a, a).sentence == "Identical: same vocabulary and template."
