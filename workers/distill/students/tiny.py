"""A small untrained teacher with a tokenizer of its own texts: `python -m … FOLDER < texts`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.distill.checkpoints import save_checkpoint

VOCABULARY = 512
START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}" + START + "{{ message['role'] }}\n"
    "{{ message['content'] }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)
_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def make_tiny_teacher(target: Path, texts: Sequence[str], *, seed: int = 0) -> None:
    """Write a checkpoint folder of 0.9 M compute parameters that has learned nothing yet.

    The tokenizer is a byte-level BPE of at most 512 entries trained on `texts`, so it can write
    any text; the template is that of ChatML. The same texts and seed give the same bytes.
    """
    tokenizer = byte_level_tokenizer(texts)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **_SHAPE,
    )
    save_checkpoint(LlamaForCausalLM(config), tokenizer, target)


def byte_level_tokenizer(texts: Sequence[str]) -> Any:
    """Return a fast tokenizer trained on `texts`, EOS `<|im_end|>`, with a ChatML template."""
    made = Tokenizer(models.BPE())
    # A token a digit, as larger models have it: a number is then copied token by token.
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*texts, "system user assistant"], trainer)
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)  # type: ignore[no-untyped-call] # half typed
    fast.chat_template = TEMPLATE
    return fast


if __name__ == "__main__":
    [folder] = sys.argv[1:] or [""]
    if not folder or folder.startswith("-"):
        raise SystemExit(
            "Usage: python -m workers.distill.students.tiny FOLDER < texts, a line each"
        )
    make_tiny_teacher(Path(folder), sys.stdin.read().splitlines())
