"""A teacher's pass that captures rows ÷ the same pass with whole logits and nothing kept.

`python -m bench.capture [--json] [--save] [--quick]`. On real SmolLM2 and on random weights of its
shape (flat: the longest heads there are). Processor seconds, passes in turn, medians.
"""

import argparse
import statistics
from typing import Any

import torch

from app.specs.teacher import CaptureProfile
from bench import report, smollm2
from workers.distill.teachers import LocalTeacher

WEIGHTS = ("real", "random")
BAR = 1.15
BATCH_TOKENS = 2048


def measure(name: str, ask: report.Facts) -> report.Facts:
    """Return medians of both passes over one batch, and rows kept a token."""
    torch.manual_seed(1)
    model = smollm2.model() if name == "real" else smollm2.random_model()
    teacher = LocalTeacher(model, smollm2.SHAPE["vocab_size"])
    items, tokens = [], 0
    for item in sorted(smollm2.rendered(24), key=lambda r: len(r.input_ids), reverse=True):
        if tokens + len(item.input_ids) <= ask["tokens"]:
            items.append(item.input_ids)
            tokens += len(item.input_ids)
    profile = CaptureProfile()
    kept: list[Any] = teacher.capture(items, profile)
    teacher.bare_forward(items)
    bare_seconds, capture_seconds = [], []
    for turn in range(ask["rounds"]):
        passes = [
            lambda: bare_seconds.append(report.cpu_seconds(lambda: teacher.bare_forward(items))),
            lambda: capture_seconds.append(
                report.cpu_seconds(lambda: teacher.capture(items, profile))
            ),
        ]
        for run in passes if turn % 2 == 0 else reversed(passes):
            run()
    bare, capturing = statistics.median(bare_seconds), statistics.median(capture_seconds)
    heads = sum(int((rows.ids >= 0).sum()) for rows in kept)
    return {
        "tokens": tokens,
        "bare_cpu_seconds": bare,
        "capture_cpu_seconds": capturing,
        "ratio": capturing / bare,
        "ratios": [c / b for c, b in zip(capture_seconds, bare_seconds, strict=True)],
        "head_entries_per_token": heads / sum(len(rows.ids) for rows in kept),
        "tokens_per_cpu_second": tokens / capturing,
    }


def table(figures: report.Facts) -> str:
    """Return the ratios as a plain table."""
    lines = [f"{'weights':<10}{'capture ÷ forward':>20}{'tokens/CPU s':>14}{'head':>8}"]
    for name, row in figures.items():
        lines.append(
            f"{name:<10}{row['ratio']:>20.3f}{row['tokens_per_cpu_second']:>14.0f}"
            f"{row['head_entries_per_token']:>8.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Compare, or measure one variant when the comparison asks for it."""
    parser: argparse.ArgumentParser = report.options(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    if report.answered(asked, measure):
        return
    rounds, tokens = (1, 256) if asked.quick else (asked.rounds, BATCH_TOKENS)
    ask = {"rounds": rounds, "tokens": tokens}
    figures = {name: report.variant("bench.capture", name, asked, **ask) for name in WEIGHTS}
    bars = [
        report.Bar(f"capture ÷ bare forward, {n} weights", figures[n]["ratio"], BAR)
        for n in WEIGHTS
    ]
    report.finish("capture", asked, figures, table(figures), bars)


if __name__ == "__main__":
    main()
