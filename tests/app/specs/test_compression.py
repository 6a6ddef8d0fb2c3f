"""Compression by hand, and its verdict on both sides of the band."""

import pytest

from app.specs.checkpoint import CheckpointCard, compression


def _card(compute: int, embedding: int = 100) -> CheckpointCard:
    facts = dict.fromkeys(
        ("depth", "width", "ffn_width", "heads", "kv_heads", "vocabulary", "tokenizer_entries"), 1
    )
    return CheckpointCard.model_validate(
        facts
        | {
            "architecture": "LlamaForCausalLM",
            "parameters_total": compute + embedding,
            "parameters_embedding": embedding,
            "parameters_compute": compute,
            "tokenizer_fingerprint": "",
            "template_fingerprint": None,
            "eos_token": None,
            "context_length": 1,
            "dtype": "float32",
            "bytes": 4 * (compute + embedding),
            "weights_fingerprint": "",
        }
    )


@pytest.mark.parametrize(
    ("student", "in_band", "words"),
    [
        (250, False, "quantising the teacher"),
        (200, True, "Within the band of 5–20×"),
        (201, True, "5.0× less compute"),
        (50, True, "Within"),
        (40, False, "loss of quality"),
    ],
)
def test_compression(student: int, in_band: bool, words: str) -> None:
    found = compression(_card(1000), _card(student))
    assert found.compute == 1000 / student
    assert found.total == 1100 / (student + 100) == found.bytes
    assert found.in_band is in_band
    assert words in found.sentence
