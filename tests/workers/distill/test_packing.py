"""Packed rows: the same losses and gradients, and not a bit from one document to another."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from app.specs import training
from app.specs.training import Objective, Schedule
from tests.workers.distill.test_batches import Rows, V, talk
from workers.distill.batches import BatchSource, Collator, StepBatches
from workers.distill.errors import PackingError
from workers.distill.heads import split_head
from workers.distill.losses.fused import fused_loss
from workers.distill.packing import (
    PACKABLE,
    first_fit_decreasing,
    packing_problem,
    positions_of,
)

WINDOW = 3
"""Shorter than the documents, so that a wrong sliding mask changes the numbers."""
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW, "pad_token_id": 0},
    "qwen2": {"use_sliding_window": True, **MIXED},
    "qwen3": {"use_sliding_window": True, **MIXED},
    "gemma3_text": MIXED,
    "smollm3": {"use_sliding_window": True, "pad_token_id": 0, "no_rope_layers": [1, 0], **MIXED},
}

LENGTHS = (12, 3, 4, 5, 6, 7, 8, 3)
"""Rows of 12: the first alone, 8 + 4, 7 + 5, 6 + 3 + 3."""
TALKS = [talk(number, length) for number, length in enumerate(LENGTHS)]


def tiny_of(kind: str, attention: str = "sdpa", **changes: Any) -> Any:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = CONFIG_MAPPING[kind](**(values | OWN.get(kind, {}) | changes))
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).double()


def loss_of(model: Any, step: StepBatches) -> torch.Tensor:
    head = split_head(model)
    total = torch.zeros((), dtype=torch.float64)
    for batch in step.micro:
        hidden = head.hidden(batch.input_ids, batch.attention_mask, batch.documents)
        total = (
            total
            + fused_loss(
                hidden.reshape(-1, hidden.shape[-1])[batch.positions],
                head.weight,
                labels=batch.labels,
                alpha=batch.alpha,
                teacher=batch.teacher,
                denominator=step.denominator,
            ).loss
        )
    return total


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def steps(micro: int | None = None) -> tuple[StepBatches, StepBatches]:
    """Return one step's batches: each conversation alone, without any padding, and packed."""
    made = []
    for packing, size in ((False, 1), (True, micro)):
        schedule = Schedule(steps=1, batch_size=8, packing=packing, micro_batch_size=size)
        kd = Objective(temperature=2.0, alpha=0.7)
        made.append(BatchSource(TALKS, Rows().know(TALKS), kd, schedule, 5).step(0))
    return made[0], made[1]


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", PACKABLE)
def test_a_packed_step_has_the_losses_and_gradients_of_the_unpacked(
    kind: str, attention: str, micro: int | None
) -> None:
    model = tiny_of(kind, attention)
    plain, packed = steps(micro)
    rows = [sum(len(b.input_ids) for b in s.micro) for s in (plain, packed)]
    assert rows == [8, 4]
    assert packed.conversations == plain.conversations
    assert packed.denominator == plain.denominator
    one, other = loss_of(model, plain), loss_of(model, packed)
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(model, other), gradients(model, one), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", PACKABLE)
def test_another_document_changes_not_a_bit(kind: str, attention: str) -> None:
    model = tiny_of(kind, attention).float()
    collate = Collator(None, Objective(kind="ce", alpha=0.0))
    first, second, third = talk(1, 7), talk(2, 6), talk(3, 5)
    changed = np.flip(second.input_ids)
    batch = collate.rows([[first, second, third], [talk(4, 20)]])
    hidden = split_head(model).hidden
    with torch.no_grad():
        before = hidden(batch.input_ids, batch.attention_mask, batch.documents)
        batch.input_ids[0, 7:13] = torch.from_numpy(changed.copy())
        after = hidden(batch.input_ids, batch.attention_mask, batch.documents)
    assert torch.isfinite(before).all()
    assert not torch.equal(before[0, 7:13], after[0, 7:13])
    for others in (slice(0, 7), slice(13, 20)):
        assert torch.equal(before[0, others], after[0, others])


def test_positions_start_anew_and_no_label_is_another_documents() -> None:
    one, two = talk(1, 3, [1, 2]), talk(2, 4, [0, 1, 3])
    batch = Collator(None, Objective(kind="ce", alpha=0.0)).rows([[one, two], [talk(3, 9, [8])]])
    assert batch.documents is not None
    assert batch.documents[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert positions_of(batch.documents)[0].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1]
    # The last token of `one` predicts nothing: what follows is the first of `two`.
    assert batch.positions.tolist() == [0, 1, 3, 5, 9 + 7]
    assert batch.labels[:4].tolist() == [*one.input_ids[[1, 2]], *two.input_ids[[1, 3]]]


def test_first_fit_decreasing_by_hand() -> None:
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]
    assert first_fit_decreasing([3, 3], 3) == [[0], [1]]
    assert first_fit_decreasing([12, 1], 10) == [[0], [1]]
    assert first_fit_decreasing([], 10) == []


def test_the_form_knows_the_same_types() -> None:
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert {names[kind] for kind in PACKABLE} == set(training.PACKABLE)


def test_a_type_that_cannot_be_kept_apart_is_refused_in_a_sentence() -> None:
    config = tiny_of("llama").config
    assert packing_problem(config) is None
    config.model_type = "mamba"
    assert "this one is of type mamba. Turn packing off." in (packing_problem(config) or "")
    hybrid = tiny_of("qwen3").config
    hybrid.layer_types = ["full_attention", "linear_attention"]
    assert "in linear_attention layers" in (packing_problem(hybrid) or "")
    model = tiny_of("llama")
    model.config.model_type = "mamba"
    packed = steps()[1]
    with pytest.raises(PackingError, match="Turn packing off"):
        loss_of(model, packed)
