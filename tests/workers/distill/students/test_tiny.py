"""The quick demo's base checkpoint: a sound folder, the same from the same texts."""

import subprocess
import sys
from pathlib import Path

from app.demo.traffic import write_tuning
from tests.workers.distill.tiny import tickets
from workers.distill.checkpoints import read_card
from workers.distill.students.tiny import HIDDEN, LAYERS, make_tiny, texts_in
from workers.distill.tokenizers import load_tokenizer


def test_the_same_texts_give_the_same_checkpoint(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_tiny(tmp_path / name, ["hello there", "general"], seed=3)
    cards = [read_card(tmp_path / name) for name in ("one", "two")]
    assert cards[0] == cards[1]
    assert (cards[0].width, cards[0].depth) == (HIDDEN, LAYERS)
    make_tiny(tmp_path / "other", ["hello there", "general"], seed=4)
    assert read_card(tmp_path / "other").weights_fingerprint != cards[0].weights_fingerprint


def test_it_is_made_from_the_tuning_file(tmp_path: Path) -> None:
    tune, out = tmp_path / "tune.jsonl", tmp_path / "made"
    write_tuning(tune, tickets(20))
    said = [m.content for c in tickets(20) for m in c.messages]
    assert list(texts_in(tune)) == said
    module = "workers.distill.students.tiny"
    command = [sys.executable, "-m", module, "--out", str(out), "--texts", str(tune)]
    subprocess.run(command, check=True, capture_output=True)
    tokenizer = load_tokenizer(out)
    assert tokenizer.decode(tokenizer.encode(said[1])) == said[1]
    assert tokenizer.chat_template


def test_plain_lines_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_text(
        'one\n{"messages": 3}\n[1]\n{"messages": [{"role": "user", "content": "two"}]}\n'
    )
    assert list(texts_in(path)) == ["one", '{"messages": 3}', "[1]", "two"]
