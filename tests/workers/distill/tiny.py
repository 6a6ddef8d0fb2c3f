"""A tokenizer and models trained or made in process, on the made tickets task."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from app.demo.tickets import made_tickets
from app.specs.conversation import Conversation
from app.specs.teacher import CaptureProfile
from app.specs.training import RenderSpec
from workers.distill.rendering import Renderer
from workers.distill.students.tiny import byte_level_tokenizer
from workers.distill.teachers import LocalTeacher
from workers.distill.values import RenderedConversation, TargetRows


@functools.cache
def tickets(count: int, seed: int = 0) -> tuple[Conversation, ...]:
    return tuple(made_tickets(count, seed=seed))


@functools.cache
def tokenizer() -> Any:
    """Return a byte-level BPE of 512 entries, trained on the task, EOS `<|im_end|>`."""
    return byte_level_tokenizer([m.content for c in tickets(300) for m in c.messages])


def llama(
    *, hidden: int = 32, layers: int = 2, heads: int = 4, seed: int = 0, tied: bool = True
) -> Any:
    """Return a random llama-type model for the tokenizer; 2 query heads a key/value head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer().eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def rendered(conversations: Sequence[Conversation]) -> tuple[RenderedConversation, ...]:
    return Renderer(tokenizer(), RenderSpec()).render_all(conversations).rendered


class LiveRows:
    """Teacher rows straight from a model, as a cache would give them."""

    def __init__(self, model: Any, items: Sequence[RenderedConversation]) -> None:
        profile = CaptureProfile()
        self.grid = profile.temperatures
        found = LocalTeacher(model, len(tokenizer())).capture([r.input_ids for r in items], profile)
        self._rows = {r.entry: rows for r, rows in zip(items, found, strict=True)}

    def rows(self, entries: Sequence[str]) -> list[TargetRows | None]:
        return [self._rows.get(e) for e in entries]
