"""A random llama-type model with a tokenizer trained on the spot: a base for quick demos, tests.

`python -m workers.distill.students.tiny --out DIR --texts FILE`: a checkpoint folder, in seconds,
from fine-tune JSONL (or plain text, a text a line). It knows nothing: tune it first.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.distill.checkpoints import save_checkpoint

END = "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDDEN, LAYERS, HEADS = 128, 6, 4


def byte_tokenizer(texts: Iterable[str], *, entries: int = 512) -> Any:
    """Return a byte-level BPE trained on the texts, with a chat template and EOS `<|im_end|>`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=["<|im_start|>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*texts, "system user assistant"], trainer)
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # half typed
        tokenizer_object=made, eos_token=END
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_llama(
    tokenizer: Any,
    *,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int | None = None,
    seed: int = 0,
    tied: bool = True,
) -> Any:
    """Return a random model for the tokenizer, FFN 3 × hidden; 2 query heads a key/value head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or max(1, heads // 2),
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def make_tiny(target: Path, texts: Iterable[str], *, seed: int = 0) -> None:
    """Write the quick demo's base checkpoint to `target`; the same texts give the same bytes."""
    tokenizer = byte_tokenizer(texts)
    model = tiny_llama(tokenizer, hidden=HIDDEN, layers=LAYERS, heads=HEADS, seed=seed)
    save_checkpoint(model, tokenizer, target)


def texts_in(path: Path) -> Iterator[str]:
    """Yield what the messages of fine-tune JSONL say; another line is a text as it stands."""
    for line in path.read_text(encoding="utf-8").splitlines():
        said = _messages(line)
        yield from [line] if said is None else (str(m.get("content") or "") for m in said)


def _messages(line: str) -> list[dict[str, Any]] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    said = record.get("messages") if isinstance(record, dict) else None
    return said if isinstance(said, list) else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a tiny random checkpoint.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_tiny(options.out, texts_in(options.texts), seed=options.seed)


if __name__ == "__main__":
    main()
