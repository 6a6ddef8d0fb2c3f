"""The tiny teacher: one command makes it, it reads and writes any text, twice the same."""

import subprocess
import sys
from pathlib import Path

from tests.workers.distill.tiny import tickets
from workers.distill.checkpoints import load_model, read_card
from workers.distill.students.tiny import make_tiny_teacher
from workers.distill.tokenizers import load_tokenizer

ROOT = Path(__file__).resolve().parents[4]
TEXTS = [m.content for c in tickets(50) for m in c.messages]


def test_the_command_makes_a_checkpoint_that_takes_any_text(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workers.distill.students.tiny", str(tmp_path / "a")]
    subprocess.run(command, input="\n".join(TEXTS), text=True, check=True, cwd=ROOT)
    make_tiny_teacher(tmp_path / "b", TEXTS)
    card = read_card(tmp_path / "a")
    assert card.weights_fingerprint == read_card(tmp_path / "b").weights_fingerprint
    assert card.tokenizer_fingerprint == read_card(tmp_path / "b").tokenizer_fingerprint
    assert (card.depth, card.parameters_compute // 100_000) == (6, 8)
    tokenizer = load_tokenizer(tmp_path / "a")
    text = 'Ünïcode − 漢字 {"a":1}'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert load_model(tmp_path / "a").config.tie_word_embeddings
