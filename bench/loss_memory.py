"""Extra peak memory of the fused loss, in units of 4·N·V bytes, dW counted.

`python -m bench.loss_memory [--json] [--tokens 8192] [--vocabulary 49152] [--width 576]`.
"""

import argparse
import json
import resource
import sys
import threading
import time
from pathlib import Path

import torch

from workers.distill.losses.fused import fused_loss
from workers.distill.values import SparseTargets

HEAD = 32


def measure(tokens: int, vocabulary: int, width: int) -> float:
    """Return (peak − resident before) ÷ (4·N·V) of one forward and backward at T = 1."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width).mul_(0.05).requires_grad_()
    teacher = SparseTargets(
        ids=torch.randint(0, vocabulary, (tokens, 1)) + torch.arange(HEAD).remainder(vocabulary),
        log_w=torch.full((tokens, HEAD), 0.9 / HEAD).log(),
        log_r=torch.full((tokens,), 0.1).log(),
        temperature=1.0,
    )
    teacher.ids.remainder_(vocabulary)
    labels = torch.randint(0, vocabulary, (tokens,))
    # The first call loads code and thread pools; they belong to no loss.
    fused_loss(
        hidden[:2], weight, labels=labels[:2], alpha=torch.ones(2), teacher=None, denominator=2
    )
    before, peak, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _resident())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    loss = fused_loss(
        hidden,
        weight,
        labels=labels,
        alpha=torch.full((tokens,), 0.7),
        teacher=teacher,
        denominator=tokens,
    ).loss
    loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
    done.set()
    watcher.join()
    return (peak - before) / (4 * tokens * vocabulary)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Measure once and print the factor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--width", type=int, default=576)
    asked = parser.parse_args()
    factor = measure(asked.tokens, asked.vocabulary, asked.width)
    figures = {"tokens": asked.tokens, "vocabulary": asked.vocabulary, "factor": factor}
    line = f"loss memory: {factor:.2f} × 4·N·V (N = {asked.tokens}, V = {asked.vocabulary})"
    sys.stdout.write((json.dumps(figures) if asked.json else line) + "\n")


if __name__ == "__main__":
    main()
