"""A GGUF becomes an ordinary checkpoint: equal logits, equal ids, its own template and end."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.workers.distill import tiny
from workers.distill.callbacks import Silent
from workers.distill.checkpoints import import_folder, load_model
from workers.distill.errors import CheckpointError
from workers.distill.tokenizers import load_tokenizer

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def name_of(key: str) -> str:
    key = key.removesuffix(".weight")
    if key in TOP:
        return f"{TOP[key]}.weight"
    _, _, layer, part = key.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rotary halves to pairs, as the format's llama files hold queries and keys."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    entries = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    special = {token["content"] for token in backend["added_tokens"]}
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    # Readers of this family add <|endoftext|> where a file has none: it takes the first place.
    writer.add_token_list(["<|endoftext|>", *(token for token, _ in entries[1:])])
    writer.add_token_types([control if token in special else normal for token, _ in entries])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)

    for key, value in model.state_dict().items():
        weight = value.numpy()
        if "q_proj" in key:
            weight = interleaved(weight, config.num_attention_heads)
        elif "k_proj" in key:
            weight = interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(name_of(key), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_gives_the_same_logits_and_ids(tmp_path: Path) -> None:
    model, tokenizer = tiny.llama(tied=False, seed=3), tiny.tokenizer()
    source = tmp_path / "source"
    source.mkdir()
    write_gguf(source / "small.gguf", model, tokenizer)
    card = import_folder(source, tmp_path / "made", Silent())
    assert (card.depth, card.width, card.kv_heads) == (2, 32, 2)
    assert card.tokenizer_entries == len(tokenizer)
    assert not list((tmp_path / "made").glob("*.gguf"))

    loaded, read = load_model(tmp_path / "made"), load_tokenizer(tmp_path / "made")
    ids = torch.from_numpy(tiny.rendered(tiny.tickets(1))[0].input_ids).long()[None]
    with torch.inference_mode():
        found, expected = (m(input_ids=ids).logits for m in (loaded, model))
    torch.testing.assert_close(found, expected)
    assert loaded.config.eos_token_id == tokenizer.eos_token_id
    assert read.chat_template == tokenizer.chat_template
    text = tiny.tickets(1)[0].messages[1].content
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_what_is_no_llama_or_no_gguf_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(CheckpointError, match=r"broken\.gguf could not be read"):
        import_folder(tmp_path / "broken.gguf", tmp_path / "made", Silent())
    assert not (tmp_path / "made").exists()
