<<<<<<< HEAD
"""A tokenizer trained in a second, tiny random Llamas, and the tickets task for them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
=======
"""A tokenizer and models trained or made in process, on the made tickets task."""

import functools
from collections.abc import Sequence
from typing import Any

>>>>>>> shell
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

<<<<<<< HEAD
from app.specs.teacher import CaptureProfile
from app.specs.training import Objective, RenderSpec, Schedule, TrainingSpec
from bench.made_tickets import conversation, tickets
from workers.distill.batches import BatchSource
=======
from app.specs.conversation import Conversation
from app.specs.teacher import CaptureProfile
from app.specs.training import RenderSpec
from bench.made_tickets import made_tickets
>>>>>>> shell
from workers.distill.rendering import Renderer
from workers.distill.teachers import LocalTeacher
from workers.distill.values import RenderedConversation, TargetRows

<<<<<<< HEAD
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def make_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer of 512 entries, trained on tickets."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([t.text + t.answer for t in tickets(400, 99)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")  # noqa: S106 - a token of text
=======
END = "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def tickets(count: int, seed: int = 0) -> tuple[Conversation, ...]:
    return tuple(made_tickets(count, seed=seed))


@functools.cache
def tokenizer() -> Any:
    """Return a byte-level BPE of 512 entries, trained on the task, EOS `<|im_end|>`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(
        [m.content for c in tickets(300) for m in c.messages] + ["system user assistant"], trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)
>>>>>>> shell
    fast.chat_template = TEMPLATE
    return fast


<<<<<<< HEAD
def make_model(
    *, hidden: int = 32, layers: int = 2, ffn: int = 64, seed: int = 0, tied: bool = True
) -> Any:
    """Return a random llama of 4 heads in 2 key-value groups."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
=======
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
>>>>>>> shell
    )
    return LlamaForCausalLM(config).eval()


<<<<<<< HEAD
def rendered(count: int, seed: int = 0) -> tuple[RenderedConversation, ...]:
    renderer = Renderer(make_tokenizer(), RenderSpec(max_tokens=256))
    return renderer.render_all(conversation(t) for t in tickets(count, seed)).rendered


class MemoryCache:
    """Teacher rows of a live model, held in memory."""

    grid = CaptureProfile().temperatures

    def __init__(self, model: Any, conversations: Sequence[RenderedConversation]) -> None:
        teacher = LocalTeacher(model, 512)
        ids = [c.input_ids for c in conversations]
        rows = [r for i in range(0, len(ids), 32) for r in teacher.capture(ids[i : i + 32], _DENSE)]
        self._rows = {c.entry: r for c, r in zip(conversations, rows, strict=True)}

    def rows(self, entries: Sequence[str]) -> list[TargetRows | None]:
        return [self._rows.get(e) for e in entries]


_DENSE = CaptureProfile()


def training_spec(*, alpha: float = 0.0, **schedule: Any) -> TrainingSpec:
    """Return a spec of few steps; keywords go to the schedule."""
    facts = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2}
    facts |= {"snapshot_every": 100, "validate_every": 100} | schedule
    kind: Any = "forward_kl" if alpha else "ce"
    return TrainingSpec(
        objective=Objective(kind=kind, alpha=alpha), schedule=Schedule.model_validate(facts)
    )


def batches(
    conversations: Sequence[RenderedConversation], spec: TrainingSpec, lookup: Any = None
) -> BatchSource:
    return BatchSource(conversations, lookup, spec.objective, spec.schedule, spec.seed)


def same_weights(left: Any, right: Any) -> bool:
    """Whether two models hold the same bits."""
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def flip_byte(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Return logits [L, V] without gradient."""
    with torch.inference_mode():
        out: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
    return out


def some_ids(count: int = 12, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(4, 512, count).tolist()
    return found
=======
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
>>>>>>> shell
