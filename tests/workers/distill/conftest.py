"""Tiny tokenizers, chat templates of the common families, and random models, all made here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]", "<|eot|>", "<turn>"]
DEFAULT_SYSTEM = "Be brief and kind."

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED_SHORT = CHATML_MARKED.replace(
    "<|im_end|>\n{% endgeneration %}", "{% endgeneration %}<|im_end|>\n"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "[{{ message['role'] }}]\n\n{{ message['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<turn>{{ role }}\n{{ message['content'] | trim }}<|eot|>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
TOOLS = (
    "{% if tools %}tools: {{ tools | tojson }}<|eot|>{% endif %}"
    "{% for message in messages %}<turn>{{ message['role'] }}\n"
    "{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }}({{ call.function.arguments | tojson }})"
    "{% endfor %}{{ message['content'] }}<|eot|>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
_CORPUS = [
    "Hello there, how may I help you today?",
    "system user assistant model tool\n",
    "I would like to order one pizza, please. Yes, a big one.",
    '{"intent": "card_lost", "confidence": 0.9}',
]


def make_tokenizer(template: str | None, *, vocabulary: int = 400) -> Any:
    """Return a byte-level BPE tokenizer trained in process, with the given chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[2],
        eos_token=SPECIAL[3],
        additional_special_tokens=[t for t in SPECIAL if t not in ("<s>", "</s>")],
    )
    fast.chat_template = template
    return fast


def make_model(vocabulary: int = 400, *, hidden: int = 32, seed: int = 0) -> Any:
    """Return a random llama-type model with sharp enough logits to have a head."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    return model


@pytest.fixture(scope="session")
def tokenizer_for() -> Callable[[str | None], Any]:
    made: dict[str | None, Any] = {}

    def make(template: str | None) -> Any:
        if template not in made:
            made[template] = make_tokenizer(template)
        return made[template]

    return make


@pytest.fixture(scope="session")
def model() -> Any:
    return make_model().eval()
