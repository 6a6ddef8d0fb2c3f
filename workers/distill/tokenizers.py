"""Loading tokenizers from local folders, their fingerprints, and whether two of them agree."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from app.specs.checkpoint import TokenizerVerdict, other_template, same_ids
from app.specs.fingerprint import fingerprint
from workers.distill.errors import TokenizerError

_PARTS = {
    "model": "vocabulary and merges",
    "added_tokens": "special tokens",
    "normalizer": "normaliser",
    "pre_tokenizer": "pre-tokeniser",
}


def load_tokenizer(folder: Path) -> Any:
    """Return the fast tokenizer of a checkpoint folder; never the network, never remote code.

    Errors: TokenizerError where the folder is missing, holds none, or only a slow one.
    """
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is not a folder. Register the checkpoint again.")
    options: dict[str, Any] = {}
    ggufs = sorted(folder.glob("*.gguf"))
    if not (folder / "tokenizer.json").exists() and len(ggufs) == 1:
        options["gguf_file"] = ggufs[0].name
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:
        # transformers raises many types here; what a person needs is the folder and the mend.
        raise TokenizerError(
            f"No tokenizer could be loaded from {folder}: {error} "
            "Put tokenizer.json and tokenizer_config.json beside the weights."
        ) from error
    _backend(tokenizer)
    return tokenizer


def vocabulary_size(tokenizer: Any) -> int:
    """Return how many ids can be predicted: one more than the largest id in the vocabulary."""
    return int(max(tokenizer.get_vocab().values())) + 1


def tokenizer_parts(tokenizer: Any) -> dict[str, str]:
    """Return one fingerprint per part that turns text into ids (the template is none of them)."""
    backend = _backend(tokenizer)
    return {part: fingerprint(backend.get(part)) for part in _PARTS}


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return 64 hex digits over vocabulary, merges, special tokens, normaliser, pre-tokeniser."""
    return fingerprint(tokenizer_parts(tokenizer))


def template_fingerprint(tokenizer: Any) -> str | None:
    """Return 64 hex digits over the chat template and the BOS and EOS it uses; None without one."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    return fingerprint([template, tokenizer.bos_token, tokenizer.eos_token])


def tokenizer_verdict(
    teacher: Any,
    student: Any,
    *,
    probes: Sequence[str],
    teacher_vocabulary: int,
    student_vocabulary: int,
) -> TokenizerVerdict:
    """Say whether teacher rows may train the student, after encoding the project's own texts.

    `teacher_vocabulary` and `student_vocabulary` are rows of the embeddings, padding included.
    """
    difference = _first_difference(teacher, student, probes)
    if difference is not None:
        return TokenizerVerdict(
            kind="different",
            logits_allowed=False,
            sentence=(
                f"The tokenizers differ ({difference}), so the teacher's probabilities belong to "
                "other tokens. Train on the teacher's answers as text instead (sequence-level)."
            ),
            probes=len(probes),
            first_difference=difference,
        )
    if template_fingerprint(teacher) != template_fingerprint(student):
        return other_template(len(probes))
    return same_ids(len(probes), teacher_vocabulary, student_vocabulary, vocabulary_size(teacher))


def _first_difference(teacher: Any, student: Any, probes: Sequence[str]) -> str | None:
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if ours != theirs:
        token = min(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        return (
            f"token {token!r} is id {ours.get(token, 'none')} for the teacher and "
            f"{theirs.get(token, 'none')} for the student"
        )
    left, right = tokenizer_parts(teacher), tokenizer_parts(student)
    for part, name in _PARTS.items():
        if left[part] != right[part]:
            return f"the {name} of the tokenizers"
    for number, probe in enumerate(probes, start=1):
        if _encode(teacher, probe) != _encode(student, probe):
            return f"text {number} of this project encodes to other ids: {probe[:60]!r}"
    return None


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _backend(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which gives no exact borders. "
            "Save the checkpoint with a tokenizer.json."
        )
    parts: dict[str, Any] = json.loads(backend.to_str())
    return parts
