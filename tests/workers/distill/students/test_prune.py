"""Pruning: keeping everything is the teacher; removing what does nothing changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from app.specs.checkpoint import PruneSpec
from tests.workers.distill import tiny
from workers.distill.errors import PruneError
from workers.distill.students.prune import prune

CALIBRATION = [np.asarray(tiny.some_ids(n, seed=n), dtype=np.int32) for n in (9, 14, 6)]
IDS = tiny.some_ids(15, seed=77)


def _same(student: Any, teacher: Any) -> None:
    torch.testing.assert_close(
        tiny.logits(student, IDS), tiny.logits(teacher, IDS), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("tied", [True, False])
def test_keeping_everything_is_the_teacher(tied: bool) -> None:  # noqa: FBT001 - a parameter of the test
    teacher = tiny.make_model(tied=tied)
    student = prune(teacher, PruneSpec(depth=2, width=32, ffn_width=64, heads=4, kv_heads=2))
    assert torch.equal(tiny.logits(student, IDS), tiny.logits(teacher, IDS))
    assert (student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()) == (
        tied
    )


def test_layers_that_write_nothing_can_go() -> None:
    teacher = tiny.make_model(layers=5)
    with torch.no_grad():
        for layer in (1, 3):
            teacher.model.layers[layer].self_attn.o_proj.weight.zero_()
            teacher.model.layers[layer].mlp.down_proj.weight.zero_()
    _same(prune(teacher, PruneSpec(depth=3)), teacher)


@pytest.mark.parametrize("calibration", [CALIBRATION, []])
def test_silent_ffn_channels_go_first(calibration: Any) -> None:
    teacher = tiny.make_model()
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.mlp.up_proj.weight[[0, 5, 20, 63]] = 0
    student = prune(teacher, PruneSpec(ffn_width=60), calibration)
    assert student.model.layers[0].mlp.up_proj.weight.shape == (60, 32)
    _same(student, teacher)


def test_silent_groups_of_heads_go_first() -> None:
    teacher = tiny.make_model()
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.self_attn.v_proj.weight[:8] = 0  # the first of two groups
    student = prune(teacher, PruneSpec(heads=2, kv_heads=1), CALIBRATION)
    assert student.model.layers[0].self_attn.k_proj.weight.shape == (8, 32)
    _same(student, teacher)


def test_silent_heads_within_their_groups_go_first() -> None:
    teacher = tiny.make_model()
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight[:, :8] = 0  # head 0
            layer.self_attn.o_proj.weight[:, 24:] = 0  # head 3
    _same(prune(teacher, PruneSpec(heads=2, kv_heads=2), CALIBRATION), teacher)


def test_silent_channels_of_the_stream_go_first_and_norms_are_rescaled() -> None:
    wide = tiny.make_model()
    silent = [1, 7, 8, 30]
    with torch.no_grad():
        wide.model.embed_tokens.weight[:, silent] = 0
        for layer in wide.model.layers:
            layer.self_attn.o_proj.weight[silent] = 0
            layer.mlp.down_proj.weight[silent] = 0
    student = prune(wide, PruneSpec(width=28), CALIBRATION)
    assert student.config.hidden_size == 28
    _same(student, wide)


def test_shapes_of_a_student_small_in_every_way() -> None:
    teacher = tiny.make_model(layers=6)
    spec = PruneSpec(depth=3, width=24, ffn_width=20, heads=2, kv_heads=1)
    student = prune(teacher, spec, CALIBRATION)
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 24, 20)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert student.model.layers[0].self_attn.q_proj.weight.shape == (16, 24)
    assert torch.isfinite(tiny.logits(student, IDS)).all()
    again = prune(teacher, spec, CALIBRATION)
    assert tiny.same_weights(student, again)


def test_first_and_last_layer_stay() -> None:
    teacher = tiny.make_model(layers=7)
    student = prune(teacher, PruneSpec(depth=3))
    for place, layer in enumerate((0, 3, 6)):
        kept = student.model.layers[place].mlp.gate_proj.weight
        assert torch.equal(kept, teacher.model.layers[layer].mlp.gate_proj.weight)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (PruneSpec(depth=3), "depth 3 is not between 1 and the teacher's 2"),
        (PruneSpec(width=0), "width 0"),
        (PruneSpec(depth=1), "first and the last"),
        (PruneSpec(heads=3), "multiple of kv_heads"),
        (PruneSpec(kv_heads=1), "Keep more key-value heads"),
        (PruneSpec(width=30), "Take width 28"),
    ],
)
def test_impossible_sizes_are_named(spec: PruneSpec, words: str) -> None:
    with pytest.raises(PruneError, match=words):
        prune(tiny.make_model(), spec)


def test_biases_are_refused() -> None:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_bias=True,
    )
    with pytest.raises(PruneError, match="biases"):
        prune(LlamaForCausalLM(config), PruneSpec())
