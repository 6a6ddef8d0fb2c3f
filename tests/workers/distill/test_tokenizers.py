"""Verdicts on two tokenizers, and named refusals to load one."""

import json
from pathlib import Path

import pytest

from tests.workers.distill.conftest import CHATML, LLAMA, make_tokenizer
from workers.distill.errors import TokenizerError
from workers.distill.tokenizers import (
    load_tokenizer,
    template_fingerprint,
    tokenizer_fingerprint,
    tokenizer_verdict,
    vocabulary_size,
)

PROBES = ["Hello there", "One pizza, please: 3 €"]


def verdict(teacher: object, student: object, rows: tuple[int, int] = (400, 400)) -> object:
    return tokenizer_verdict(
        teacher, student, probes=PROBES, teacher_vocabulary=rows[0], student_vocabulary=rows[1]
    )


def test_fingerprint_survives_saving_and_ignores_the_template(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    assert template_fingerprint(loaded) == template_fingerprint(tokenizer)
    loaded.chat_template = LLAMA
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    assert template_fingerprint(loaded) != template_fingerprint(tokenizer)
    assert template_fingerprint(make_tokenizer(None)) is None
    assert verdict(tokenizer, loaded).kind == "other_template"
    assert not verdict(tokenizer, loaded).logits_allowed


def test_identical_and_padded() -> None:
    one, two = make_tokenizer(CHATML), make_tokenizer(CHATML)
    entries = vocabulary_size(one)
    found = verdict(one, two)
    assert (found.kind, found.logits_allowed, found.probes) == ("identical", True, 2)
    padded = verdict(one, two, (entries + 8, entries + 64))
    assert (padded.kind, padded.logits_allowed) == ("padded", True)
    assert f"beyond the {entries} entries" in padded.sentence
    short = verdict(one, two, (entries, entries - 1))
    assert (short.kind, short.logits_allowed) == ("different", False)
    assert "the student has" in short.sentence


def test_another_vocabulary_merges_or_splitter_is_different(tmp_path: Path) -> None:
    one = make_tokenizer(CHATML)
    other = verdict(one, make_tokenizer(CHATML, vocabulary=300))
    assert other.kind == "different"
    assert "token" in other.first_difference
    one.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    parts["model"]["merges"] = parts["model"]["merges"][:-1]
    path.write_text(json.dumps(parts), encoding="utf-8")
    merges = verdict(one, load_tokenizer(tmp_path))
    assert merges.kind == "different"
    assert "merges" in merges.first_difference
    assert "sequence-level" in merges.sentence


def test_folders_without_a_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="is not a folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match="No tokenizer could be loaded"):
        load_tokenizer(tmp_path)


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    make_tokenizer(CHATML).save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    config["tokenizer_class"] = "Evil"
    path.write_text(json.dumps(config), encoding="utf-8")
    try:
        load_tokenizer(tmp_path)
    except TokenizerError as error:
        assert "No tokenizer could be loaded" in str(error)  # noqa: PT017 - loading it plainly is fine too
