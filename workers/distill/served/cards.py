"""The folder and the card of a served checkpoint: its tokenizer, and what a config tells."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.specs.checkpoint import CheckpointCard, EndpointSource, ServerFacts
from app.specs.fingerprint import canonical_json
from workers.distill.checkpoints import TOKENIZER_FILES, licence_of, published
from workers.distill.errors import TokenizerError
from workers.distill.tokenizers import (
    load_tokenizer,
    template_fingerprint,
    tokenizer_fingerprint,
    vocabulary_size,
)

FACTS = "server.json"
_EMBEDDINGS = ("lm_head.weight", "embed_tokens.weight", "wte.weight", "embed_in.weight")


def tokenizer_folder(source: Path, target: Path) -> Any:
    """Copy a tokenizer, with the config beside it, to `target` and return it; weights stay.

    Errors: TokenizerError.
    """
    folder = source.parent if source.is_file() and source.suffix == ".gguf" else source
    tokenizer = load_tokenizer(folder)
    with published(target) as temporary:
        if (folder / "tokenizer.json").is_file():
            for name in (*TOKENIZER_FILES, "config.json"):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, temporary / name)
        else:
            tokenizer.save_pretrained(str(temporary))
    if not tokenizer.chat_template:
        raise TokenizerError(
            f"The tokenizer in {folder} has no chat template, so no conversation becomes ids. Take "
            "the instruction-tuned model's."
        )
    return load_tokenizer(target)


def served_card(
    source: EndpointSource, facts: ServerFacts, tokenizer: Any | None, folder: Path
) -> CheckpointCard:
    """Return the card; sizes are those of the config in `folder`, unknown without one."""
    sizes = _sizes(folder) if tokenizer is not None else dict.fromkeys(_SIZES)
    told: dict[str, Any] = {
        "tokenizer_entries": None,
        "tokenizer_fingerprint": None,
        "template_fingerprint": None,
        "eos_token": None,
    }
    if tokenizer is not None:
        told = {
            "tokenizer_entries": vocabulary_size(tokenizer),
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "template_fingerprint": template_fingerprint(tokenizer),
            "eos_token": tokenizer.eos_token,
        }
    return CheckpointCard.model_validate(
        {
            **sizes,
            **told,
            "dtype": None,
            "bytes": None,
            "weights_fingerprint": source.fingerprint,
            "licence": licence_of(folder),
            "server": facts,
        }
    )


def write_facts(facts: ServerFacts, folder: Path) -> None:
    """Keep what was found beside the tokenizer: a folder of its own also where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).write_bytes(canonical_json(facts))


_SIZES = (
    "architecture",
    "parameters_total",
    "parameters_embedding",
    "parameters_compute",
    "depth",
    "width",
    "ffn_width",
    "heads",
    "kv_heads",
    "vocabulary",
    "context_length",
)


def _sizes(folder: Path) -> dict[str, Any]:
    """Return the sizes that a config tells; each unknown without one that transformers knows.

    Parameters are counted on a model without weights (the meta device), a tied embedding once.
    """
    unknown: dict[str, Any] = dict.fromkeys(_SIZES)
    if not (folder / "config.json").is_file():
        return unknown
    try:
        config: Any = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            auto: Any = AutoModelForCausalLM
            model: Any = auto.from_config(config, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - whatever it is, a config nobody can read tells no size
        return unknown
    counts = {name: weight.numel() for name, weight in model.named_parameters()}
    embedding = sum(count for name, count in counts.items() if name.endswith(_EMBEDDINGS))
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    return {
        "architecture": str((config.architectures or [type(model).__name__])[0]),
        "parameters_total": sum(counts.values()),
        "parameters_embedding": embedding,
        "parameters_compute": sum(counts.values()) - embedding,
        "depth": getattr(config, "num_hidden_layers", None),
        "width": width,
        "ffn_width": getattr(config, "intermediate_size", None),
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "vocabulary": getattr(config, "vocab_size", None),
        "context_length": getattr(config, "max_position_embeddings", None),
    }
