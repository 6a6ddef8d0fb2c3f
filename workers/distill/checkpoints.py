"""Checkpoints as folders: loading, saving, importing (transformers layout or GGUF), their cards."""

import json
import math
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from app.specs.checkpoint import CheckpointCard
from app.specs.fingerprint import file_sha256, fingerprint
from workers.distill.callbacks import Callbacks
from workers.distill.errors import (
    CheckpointError,
    DownloadError,
    StoppedError,
    UnsafeWeightsError,
)
from workers.distill.files import atomic_folder
from workers.distill.tokenizers import load_tokenizer, template_fingerprint, tokenizer_fingerprint

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
KEPT = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "*.jinja", "LICENSE*"),
)
"""What an imported folder keeps; everything else (pickles, code) stays behind."""
_EMBEDDING = "embed_tokens.weight"
_HEAD = "lm_head.weight"


def load_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    device: str | torch.device = "cpu",
) -> Any:
    """Return the causal language model of a checkpoint folder in evaluation mode.

    Only safetensors, never remote code, never the network.
    Errors: UnsafeWeightsError (pickle weights or own code), CheckpointError.
    """
    _weight_files(folder)
    _config(folder)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint in {folder} cannot be loaded: {error} Register it again."
        ) from error
    return model.to(device).eval()


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as safetensors and JSON; `folder` appears whole or not at all."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))


def read_card(folder: Path) -> CheckpointCard:
    """Return the facts of a checkpoint from its config, tokenizer and safetensors headers.

    Counts are exact; a head tied to the embedding counts once. Errors: CheckpointError.
    """
    config = _config(folder)
    files = _weight_files(folder)
    shapes, dtype = _headers(files)
    tied = bool(config.get("tie_word_embeddings", False))
    counts = {n: math.prod(s) for n, s in shapes.items() if not (tied and n.endswith(_HEAD))}
    embedding = sum(c for n, c in counts.items() if n.endswith((_EMBEDDING, _HEAD)))
    rows = [s[0] for n, s in shapes.items() if n.endswith((_EMBEDDING, _HEAD))]
    tokenizer = load_tokenizer(folder)
    heads = int(config.get("num_attention_heads", 0))
    total = sum(counts.values())
    return CheckpointCard(
        architecture=(config.get("architectures") or [config.get("model_type", "unknown")])[0],
        parameters_total=total,
        parameters_embedding=embedding,
        parameters_compute=total - embedding,
        depth=int(config.get("num_hidden_layers", 0)),
        width=int(config.get("hidden_size", 0)),
        ffn_width=int(config.get("intermediate_size", 0)),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        vocabulary=rows[0] if rows else int(config.get("vocab_size", 0)),
        tokenizer_entries=len(tokenizer),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        template_fingerprint=template_fingerprint(tokenizer),
        eos_token=tokenizer.eos_token,
        context_length=int(config.get("max_position_embeddings", 0)),
        dtype=dtype,
        bytes=sum(f.stat().st_size for f in files),
        weights_fingerprint=fingerprint([file_sha256(f) for f in files]),
        licence=config.get("license"),
    )


def import_folder(source: Path, target: Path) -> CheckpointCard:
    """Copy or convert a local checkpoint to `target`, having checked it; return its card.

    `source` is a transformers folder, a folder with one GGUF, or a GGUF file. Pickles and code are
    not copied. Errors: UnsafeWeightsError, CheckpointError, TokenizerError.
    """
    if not source.exists():
        raise CheckpointError(f"{source} does not exist. Check the path on the worker's machine.")
    gguf = _gguf_of(source)
    with atomic_folder(target) as temporary:
        if gguf is not None:
            _convert_gguf(gguf, temporary)
        elif source.is_dir():
            _config(source)
            _weight_files(source)
            copied = {p for pattern in KEPT for p in source.glob(pattern) if p.is_file()}
            for path in sorted(copied):
                shutil.copyfile(path, temporary / path.name)
        else:
            raise CheckpointError(f"{source} is neither a checkpoint folder nor a .gguf file.")
        return read_card(temporary)


def download_hub(
    repo_id: str, revision: str, token: str | None, target: Path, callbacks: Callbacks
) -> CheckpointCard:
    """Fetch a hub repository's safetensors, JSON and tokenizer files to `target`; return its card.

    Files arrive in a folder beside `target`, so a download that was cut off goes on where it was.
    Errors: DownloadError (offline, unknown, gated, no access), StoppedError between files,
    UnsafeWeightsError, CheckpointError.
    """
    partial = target.with_name(f".{target.name}.download")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        found = HfApi().model_info(repo_id, revision=revision, token=token, files_metadata=True)
        listed = {f.rfilename: int(f.size or 0) for f in found.siblings or ()}
        files = {n: s for n, s in listed.items() if any(fnmatch(n, p) for p in KEPT)}
        if not any(name.endswith(".safetensors") for name in files):
            raise UnsafeWeightsError(
                f"{repo_id} at {revision} has no safetensors in its top folder. "
                "Take a repository that has them."
            )
        done = 0
        for name, size in sorted(files.items()):
            if callbacks.should_stop():
                raise StoppedError(f"The download of {repo_id} was stopped; it can be resumed.")
            # The commit, not the branch: a push in between must not mix two versions.
            hf_hub_download(repo_id, name, revision=found.sha, token=token, local_dir=partial)
            done += size
            callbacks.progress(done, sum(files.values()), "bytes")
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        raise DownloadError(
            f"The hub shows no {repo_id} at {revision} to this token. "
            "Check the name and revision, or give a token with access."
        ) from error
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise DownloadError(
            f"{repo_id} cannot be fetched: {type(error).__name__}. This machine may be offline: "
            "try again later, or register a local folder."
        ) from error
    card = import_folder(partial, target)
    shutil.rmtree(partial)
    return card


def _gguf_of(source: Path) -> Path | None:
    if source.is_file():
        return source if source.suffix == ".gguf" else None
    if any(source.glob("*.safetensors")):
        return None
    found = sorted(source.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(f.name for f in found[:4])
        raise CheckpointError(f"{source} holds {len(found)} GGUF files ({names}). Name one file.")
    return found[0] if found else None


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Write a llama-type GGUF as safetensors and its tokenizer as JSON.

    transformers will not save what it read from a GGUF ("quantized with gguf"), so the dequantised
    weights move into a fresh model: the logits are identical.
    """
    options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.float32, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(
            f"{gguf.name} cannot be read: {error} Take a llama-type GGUF."
        ) from error
    if read.config.model_type != "llama":
        raise CheckpointError(
            f"{gguf.name} is of type {read.config.model_type}; only llama-type GGUF is converted. "
            "Take the safetensors of this checkpoint instead."
        )
    facts = read.config.to_dict()
    facts.pop("quantization_config", None)
    facts.pop("_name_or_path", None)
    model = LlamaForCausalLM(LlamaConfig(**facts))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(str(target))
    alone = gguf.parent if len(list(gguf.parent.glob("*.gguf"))) == 1 else _linked(gguf, target)
    load_tokenizer(alone).save_pretrained(str(target))
    (target / gguf.name).unlink(missing_ok=True)


def _linked(gguf: Path, target: Path) -> Path:
    (target / gguf.name).symlink_to(gguf.resolve())
    return target


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json. Point at a transformers folder.")
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if "auto_map" in config:
        raise UnsafeWeightsError(
            f"{path} asks to run the checkpoint's own code (auto_map), which is never done. "
            "Take an architecture that transformers knows."
        )
    return config


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(p for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise UnsafeWeightsError(
            f"{pickles[0].name} is a pickle, which can run code when it is read. "
            "Convert the checkpoint to safetensors."
        )
    raise CheckpointError(f"{folder} has no *.safetensors. Point at a checkpoint's folder.")


def _headers(files: list[Path]) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return the shape of every tensor and the commonest dtype, weights unread."""
    shapes: dict[str, tuple[int, ...]] = {}
    weight_of: dict[str, int] = {}
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a handle, not a mapping
                    part = tensors.get_slice(name)
                    shapes[name] = tuple(part.get_shape())
                    kind = str(part.get_dtype())
                    weight_of[kind] = weight_of.get(kind, 0) + math.prod(shapes[name])
        except SafetensorError as error:
            raise CheckpointError(f"{path.name} is damaged: {error}. Copy it again.") from error
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
    kind = max(weight_of, key=lambda k: weight_of[k], default="F32")
    return shapes, names.get(kind, kind.lower())
