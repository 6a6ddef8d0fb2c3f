"""Teacher rows are used only where both tokenizers agree on the project's own texts."""

import json
from pathlib import Path

import pytest
import torch

from app.specs.training import Objective
from tests.workers.distill import tiny
from tests.workers.distill.test_capture import SPACE, V, talk
from workers.distill.callbacks import Silent
from workers.distill.errors import ContextLengthError, OutOfMemoryError, TokenizerError
from workers.tasks import precompute, teaching
from workers.tasks.teaching import Pair, require_same_ids


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str, level: str = "info") -> None:
        self.lines.append(text)


def pair(tmp_path: Path, *, rows: int = 512) -> Pair:
    for name in ("teacher", "student"):
        tiny.tokenizer().save_pretrained(tmp_path / name)
    return Pair(
        teacher=str(tmp_path / "teacher"),
        student=str(tmp_path / "student"),
        teacher_rows=512,
        student_rows=rows,
    )


def test_equal_tokenizers_pass_and_say_on_how_many_texts(tmp_path: Path) -> None:
    heard = Heard()
    conversations = list(tiny.tickets(4))
    require_same_ids(pair(tmp_path), conversations, heard)
    texts = {m.content for c in conversations for m in c.messages}
    [line] = heard.lines
    assert line.startswith("Tokenizers: Identical: ")
    assert f"on {len(texts)} texts of this project" in line


def test_a_student_that_splits_other_words_fails_with_the_sentence(tmp_path: Path) -> None:
    found = pair(tmp_path)
    file = tmp_path / "student" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-40]
    file.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="probabilities belong to other tokens"):
        require_same_ids(found, list(tiny.tickets(4)), Silent())


def test_missing_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="some ids have no weights"):
        require_same_ids(pair(tmp_path, rows=10), list(tiny.tickets(4)), Silent())


def test_a_live_teacher_that_does_not_fit_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_large(_: Path) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(teaching, "load_model", too_large)
    both = Pair(teacher="t", student="s", teacher_rows=9, student_rows=9)
    live = Objective(teacher="live")
    with pytest.raises(OutOfMemoryError, match="read its stored rows"):
        teaching.live_teacher(both, live, 9, Heard())
    assert teaching.live_teacher(both, Objective(), 9, Heard()) is None
    assert teaching.live_teacher(None, live, 9, Heard()) is None


def test_a_live_teacher_must_read_the_longest_conversation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The made teacher reads 256 tokens."""
    monkeypatch.setattr(teaching, "load_model", lambda _: tiny.llama())
    both = Pair(teacher="t", student="s", teacher_rows=512, student_rows=512)
    live = Objective(teacher="live")
    words = "has 257 tokens, and the teacher reads 256.*Or take a teacher with a longer context"
    with pytest.raises(ContextLengthError, match=words):
        teaching.live_teacher(both, live, 512, Heard(), [talk(1, 20), talk(2, 257)])
    assert teaching.live_teacher(both, live, 512, Heard(), [talk(2, 256)]) is not None


def test_a_teacher_must_read_what_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precompute, "load_model", lambda _: tiny.llama())
    inputs = precompute.PrecomputeInputs.model_construct(
        teacher=str(tmp_path), server=None, space=SPACE
    )
    with (
        pytest.raises(ContextLengthError, match="the teacher reads 256"),
        precompute._teacher(inputs, Heard(), [talk(2, 257)]),
    ):
        pass
    with precompute._teacher(inputs, Heard(), [talk(2, 256)]) as teacher:
        assert teacher.vocabulary == V
