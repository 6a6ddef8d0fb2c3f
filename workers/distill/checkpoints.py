"""Checkpoint folders: load, save atomically, read a card from headers, import, convert a GGUF."""

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from app.specs.checkpoint import CheckpointCard
from app.specs.checkpoint_folder import folder_problem, source_problem
from app.specs.fingerprint import file_sha256, fingerprint
from workers.distill.callbacks import Callbacks
from workers.distill.disk import bytes_below, full_sentence, is_full
from workers.distill.errors import CheckpointError, DiskFullError, HubUnavailableError
from workers.distill.tokenizers import (
    load_tokenizer,
    template_fingerprint,
    tokenizer_fingerprint,
    vocabulary_size,
)

Precision = Literal["float32", "bfloat16"]
_HUB_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md")
_HUB_TOKENIZER = (
    *("tokenizer*", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md", "config.json"),
    *("vocab.json", "added_tokens.json", "special_tokens_map.json"),
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
    "generation_config.json",
)
_MAX_HEADER = 100 << 20
_LICENCE_READ = 20_000
_REPORT_SECONDS = 0.5
_LICENCE_LENGTH = 80


def compute_device() -> torch.device:
    """Return where this host's jobs compute: its first visible graphics card, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    folder: Path, dtype: Precision = "float32", attention: Literal["eager", "sdpa"] = "sdpa"
) -> Any:
    """Return the causal language model of a checkpoint folder, in eval mode, on the CPU.

    Safetensors only, never remote code. Errors: CheckpointError.
    """
    weight_files(folder)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except Exception as error:
        # transformers raises many types here; what a person needs is the folder and the mend.
        raise CheckpointError(
            f"The weights in {folder} could not be loaded: {error} "
            "Take a causal language model that transformers knows without remote code."
        ) from error
    return model.eval()


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder in name order.

    Errors: CheckpointError where there are none, naming a pickle file if that is what lies there.
    """
    problem = folder_problem(folder)
    if problem is not None:
        raise CheckpointError(problem)
    return sorted(folder.glob("*.safetensors"))


@contextlib.contextmanager
def published(folder: Path, *, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` at the end: files synced, then one rename.

    Nothing appears at `folder` where the body fails. An existing `folder` is replaced. needed:
    bytes that it will hold, where known. Errors: DiskFullError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            sync(path)
        sync(temporary)
        temporary.chmod(0o755)
        old = temporary.with_name(f"{temporary.name}.old")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        written = bytes_below(temporary)
        shutil.rmtree(temporary, ignore_errors=True)
        if is_full(error):
            raise DiskFullError(full_sentence(folder.parent, max(needed, written))) from error
        raise


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer to `folder`, all or nothing."""
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    with published(folder, needed=needed) as temporary:
        model.save_pretrained(str(temporary), safe_serialization=True)
        tokenizer.save_pretrained(str(temporary))


def tensor_headers(path: Path) -> dict[str, dict[str, Any]]:
    """Return {tensor name: {dtype, shape, data_offsets}} of a safetensors file, weights unread."""
    with path.open("rb") as stream:
        prefix = stream.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER  # noqa: PLR2004 - the format's prefix
        if size >= _MAX_HEADER:
            raise CheckpointError(f"{path.name} is no safetensors file. Copy it again.")
        try:
            header: dict[str, dict[str, Any]] = json.loads(stream.read(size))
        except ValueError as error:
            raise CheckpointError(f"{path.name} has a broken header. Copy it again.") from error
    header.pop("__metadata__", None)
    return header


def weights_fingerprint(folder: Path) -> str:
    """Return 64 hex digits over the weight files' own SHA-256, whatever the files are called."""
    return fingerprint(sorted(file_sha256(path) for path in weight_files(folder)))


def read_card(folder: Path, *, licence: str | None = None) -> CheckpointCard:
    """Return the card of a checkpoint folder; weights are hashed but never loaded.

    Counts come from the safetensors headers; a tied embedding is counted once. The output head
    and the input embedding both count as embedding. Errors: CheckpointError, TokenizerError.
    """
    files = weight_files(folder)
    tensors = {name: info for path in files for name, info in tensor_headers(path).items()}
    config: Any = AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    tied = bool(getattr(config, "tie_word_embeddings", False))
    embedding = total = 0
    dtypes: set[str] = set()
    for name, info in tensors.items():
        count = prod(info["shape"])
        is_head = name.endswith("lm_head.weight")
        if is_head and tied and any(n.endswith("embed_tokens.weight") for n in tensors):
            continue
        total += count
        dtypes.add(str(info["dtype"]))
        if is_head or name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")):
            embedding += count
    tokenizer = load_tokenizer(folder)
    heads = int(config.num_attention_heads)
    return CheckpointCard(
        architecture=str((config.architectures or [type(config).__name__])[0]),
        parameters_total=total,
        parameters_embedding=embedding,
        parameters_compute=total - embedding,
        depth=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        ffn_width=int(getattr(config, "intermediate_size", 4 * config.hidden_size)),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        vocabulary=int(config.vocab_size),
        tokenizer_entries=vocabulary_size(tokenizer),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        template_fingerprint=template_fingerprint(tokenizer),
        eos_token=tokenizer.eos_token,
        context_length=int(getattr(config, "max_position_embeddings", 0)),
        dtype=_dtype_name(dtypes),
        bytes=sum(path.stat().st_size for path in files),
        weights_fingerprint=weights_fingerprint(folder),
        licence=licence,
    )


def _dtype_name(dtypes: set[str]) -> str:
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    return "+".join(sorted(names.get(d, d.lower()) for d in dtypes))


def import_folder(source: Path, target: Path, callbacks: Callbacks) -> CheckpointCard:
    """Copy a local checkpoint to `target` after checking it; a GGUF is converted to safetensors.

    `source` is a folder in transformers layout, a folder with one .gguf, or a .gguf file. Only
    weights, config and tokenizer are copied: no code, no pickle. Errors: CheckpointError.
    """
    problem = source_problem(source)
    if problem is not None:
        raise CheckpointError(problem)
    gguf = _gguf_of(source)
    if gguf is not None:
        convert_gguf(gguf, target, callbacks)
        return read_card(target, licence=licence_of(gguf.parent))
    files = weight_files(source)
    wanted = [*files, source / "config.json"]
    wanted += [p for name in TOKENIZER_FILES if (p := source / name).is_file()]
    index = source / "model.safetensors.index.json"
    wanted += [index] if index.is_file() else []
    callbacks.phase("copy")
    with published(target) as temporary:
        for done, path in enumerate(wanted):
            callbacks.progress(done, len(wanted), "files")
            if path.suffix == ".safetensors":
                tensor_headers(path)
            shutil.copyfile(path, temporary / path.name)
        callbacks.progress(len(wanted), len(wanted), "files")
        card = read_card(temporary, licence=licence_of(source))
        load_model(temporary)  # what cannot be loaded must not be registered
    return card


def licence_of(folder: Path) -> str | None:
    """Return the licence a checkpoint folder states: the model card's, else the LICENSE's title."""
    card = folder / "README.md"
    if card.is_file():
        head = card.read_text(errors="replace")[:_LICENCE_READ].split("---")
        front = head[1] if len(head) > 2 and not head[0].strip() else ""  # noqa: PLR2004 - front matter has two fences
        for line in front.splitlines():
            key, _, value = line.partition(":")
            if key == "license" and value.strip():
                return value.strip().strip("'\"")[:_LICENCE_LENGTH]
    for path in sorted(folder.glob("LICENSE*")):
        lines = path.read_text(errors="replace")[:_LICENCE_READ].splitlines()
        title = next((line.strip() for line in lines if line.strip()), None)
        if title is not None:
            return title[:_LICENCE_LENGTH]
    return None


def _gguf_of(source: Path) -> Path | None:
    if source.is_file():
        return source
    return None if (source / "config.json").is_file() else next(source.glob("*.gguf"), None)


def convert_gguf(path: Path, target: Path, callbacks: Callbacks) -> None:
    """Write a llama-type GGUF as an ordinary safetensors folder with its tokenizer and template.

    transformers dequantises the file to fp32 but then refuses to save it, so the weights move to a
    fresh LlamaForCausalLM; its logits must equal the original's. Errors: CheckpointError.
    """
    callbacks.phase("convert")
    with tempfile.TemporaryDirectory() as scratch:
        # A folder of its own, so that nothing beside the file is read.
        (Path(scratch) / path.name).symlink_to(path.resolve())
        try:
            original: Any = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
            )
        except Exception as error:
            # gguf and transformers raise many types; the file's name and a mend help more.
            raise CheckpointError(f"{path.name} could not be read as a GGUF: {error}") from error
        if not isinstance(original, LlamaForCausalLM):
            raise CheckpointError(
                f"{path.name} holds a {type(original).__name__}; only llama-type GGUF files "
                "can be converted. Take the safetensors checkpoint instead."
            )
        tokenizer = load_tokenizer(Path(scratch))
    facts = original.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "dtype", "torch_dtype"):
        facts.pop(name, None)
    llama: Any = LlamaForCausalLM
    fresh = llama(LlamaConfig(**facts))
    fresh.load_state_dict(original.state_dict())
    fresh.eval()
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        # The file's own ids may lack the turn's end that its chat template writes.
        number = getattr(tokenizer, name)
        setattr(fresh.config, name, number)
        setattr(fresh.generation_config, name, number)
    probe = torch.arange(16)[None] % fresh.config.vocab_size
    with torch.inference_mode():
        same = torch.equal(original(input_ids=probe).logits, fresh(input_ids=probe).logits)
    if not same:
        raise CheckpointError(f"{path.name} converts to other logits. Take the safetensors.")
    save_checkpoint(fresh, tokenizer, target)


def download_hub(
    repo_id: str,
    revision: str,
    token: str | None,
    target: Path,
    callbacks: Callbacks,
    *,
    endpoint: str | None = None,
    weights: bool = True,
) -> str:
    """Download a hub repository's safetensors, config and tokenizer; return the commit it is.

    Without `weights` only its tokenizer and config. What was fetched is kept in `target` when it
    fails; the next try goes on from there. Without an endpoint HF_ENDPOINT names the hub. Errors:
    HubUnavailableError (offline, gated, unknown), CheckpointError (no safetensors there).
    """
    from huggingface_hub import HfApi, hf_hub_download  # noqa: PLC0415 - only this job needs it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415 - as above

    callbacks.phase("download")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=20)
        patterns = _HUB_PATTERNS if weights else _HUB_TOKENIZER
        found = {s.rfilename: s.size or 0 for s in info.siblings or []}
        sizes = {name: size for name, size in found.items() if _wanted(name, patterns)}
        if weights:
            _require_safetensors(repo_id, revision, sizes)
        done, total = 0, sum(sizes.values())
        for name in sorted(sizes, key=lambda n: (sizes[n], n)):
            callbacks.progress(done, total, "bytes")
            hf_hub_download(
                repo_id,
                name,
                revision=info.sha,
                token=token,
                local_dir=str(target),
                endpoint=api.endpoint,
                tqdm_class=_reporter(callbacks, done, total),
            )
            done += sizes[name]
        callbacks.progress(done, total, "bytes")
    except HFValidationError as error:
        raise HubUnavailableError(
            f"{repo_id!r} is no repository name. Write owner/name."
        ) from error
    except HfHubHTTPError as error:
        raise HubUnavailableError(
            f"The hub refused {repo_id} at {revision}: {error.server_message or error}. "
            "Check the name, the revision and the token."
        ) from error
    except (OSError, RuntimeError) as error:
        # No route, no name, a proxy: httpx errors arrive wrapped in either type.
        raise _offline(repo_id, error) from error
    except Exception as error:
        if type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub")):
            raise _offline(repo_id, error) from error
        raise
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return str(info.sha)


def _reporter(callbacks: Callbacks, before: int, total: int) -> Any:
    """Return a progress bar class of the hub's client that reports bytes, twice a second at most.

    `before`: bytes of the files already there.
    """

    class Reporter:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.n, self.told = initial, 0.0

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def update(self, count: float = 1) -> None:
            self.n += int(count)
            if time.monotonic() - self.told > _REPORT_SECONDS:
                self.told = time.monotonic()
                callbacks.progress(min(before + self.n, total), total, "bytes")

    return Reporter


def _require_safetensors(repo_id: str, revision: str, names: Iterable[str]) -> None:
    if not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(
            f"{repo_id} has no safetensors at {revision}. Pick a repository that has."
        )


def _offline(repo_id: str, error: Exception) -> HubUnavailableError:
    return HubUnavailableError(
        f"The hub could not be reached for {repo_id} ({type(error).__name__}). Check this "
        "machine's network, or register a local folder instead."
    )


def _wanted(name: str, patterns: Iterable[str]) -> bool:
    path = Path(name)
    return len(path.parts) == 1 and any(path.match(pattern) for pattern in patterns)


def state_sha256(model: Any) -> str:
    """Return 64 hex digits over names and bytes of all weights: equal means equal bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_weights(model: Any, path: Path) -> None:
    """Load `path` (safetensors) into a model in place; tied weights may be stored once."""
    missing, unexpected = model.load_state_dict(load_file(str(path)), strict=False)
    tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
    if unexpected or set(missing) - tied:
        raise CheckpointError(f"{path.name} belongs to another model. Start without resuming.")


def save_weights(model: Any, path: Path) -> None:
    """Save a model's weights to one safetensors file; a tied head is stored once."""
    state = {n: t.detach().contiguous() for n, t in model.state_dict().items()}
    if getattr(model.config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    save_file(state, str(path), metadata={"format": "pt"})
