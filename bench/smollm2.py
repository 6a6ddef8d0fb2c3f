"""Real weights for benches: the packaged SmolLM2, made dialogues, students cut from it."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from app.specs.conversation import Conversation, Message
from app.specs.teacher import CacheSpace, CaptureProfile
from app.specs.training import RenderSpec
from bench import report
from bench.made_dialogues import Dialogue, dialogue
from workers.distill.callbacks import Silent
from workers.distill.checkpoints import import_folder, load_model
from workers.distill.rendering import Renderer
from workers.distill.tokenizers import load_tokenizer
from workers.distill.values import RenderedConversation

SHAPE = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def folder() -> Path:
    """Return SmolLM2-135M-Instruct as a checkpoint, imported from its package the first time."""
    target = report.ROOT / "smollm2"
    if not target.exists():
        import_folder(report.packaged_gguf(), target, Silent())
    return target


def model() -> Any:
    return load_model(folder()).eval()


def random_model() -> Any:
    """Return a random model of the same shape; seed it first."""
    made: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
    return made.eval()


def tokenizer() -> Any:
    return load_tokenizer(folder())


def rendered(count: int, *, seed: int = 0, max_tokens: int = 1024) -> list[RenderedConversation]:
    """Return made dialogues as SmolLM2 reads them; its template knows no tools, so none is in."""
    renderer = Renderer(tokenizer(), RenderSpec(max_tokens=max_tokens))
    random = Random(seed)
    talks = [_conversation(dialogue(random, number)) for number in range(count)]
    return list(renderer.render_all(talks).rendered)


def space(profile: CaptureProfile) -> CacheSpace:
    """Return the address of a cache that only a bench reads."""
    nothing = "0" * 64
    return CacheSpace(
        weights_fingerprint=nothing,
        tokenizer_fingerprint=nothing,
        vocabulary=SHAPE["vocab_size"],
        profile=profile,
    )


def tokens_of(items: Sequence[RenderedConversation]) -> int:
    """Return how many tokens are predicted: the rows of a cache."""
    return sum(len(r.input_ids) - 1 for r in items)


def _conversation(made: Dialogue) -> Conversation:
    spoken = [m for m in made.messages if m["role"] in ("system", "user", "assistant")]
    messages = tuple(
        Message(role=m["role"], content=m["content"], is_target=m["role"] == "assistant")
        for m in spoken
        if m["content"] is not None
    )
    return Conversation(messages=messages, group=str(made.number))
