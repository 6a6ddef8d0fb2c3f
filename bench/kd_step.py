"""One training step, side by side: ours, supervised fine-tuning, a live teacher, TRL's GKD.

`python -m bench.kd_step [--json] [--rounds 3] [--steps 2] [--threads 1]`. Same student, same ids,
AdamW on all weights, every token supervised. Each variant runs in its own process, variants take
turns, and what is printed are ratios of medians (machines differ, ratios much less).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from app.specs.teacher import CacheSpace, CaptureProfile
from app.specs.training import Objective, Schedule
from bench import report
from workers.distill.batches import BatchSource, StepBatches
from workers.distill.callbacks import Silent
from workers.distill.capture import capture
from workers.distill.heads import split_head
from workers.distill.losses.fused import fused_loss
from workers.distill.rendering import entry_of
from workers.distill.teacher_shards import ShardLookup
from workers.distill.teachers import LocalTeacher
from workers.distill.values import RenderedConversation, StudentBatch

VOCABULARY = 49_152
BATCH, LENGTH, CONVERSATIONS = 8, 256, 16
PROFILE = CaptureProfile()
VARIANTS = ("sft_dense", "sft_fused", "ours", "dense_live_teacher", "trl_gkd")
COMPARED = ("ours", "dense_live_teacher", "trl_gkd")
Step = Callable[[Any, StudentBatch], torch.Tensor]


def student() -> Any:
    """Return a random llama-type student of 50 M parameters with a tied head."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
    )


def teacher() -> Any:
    """Return a random teacher of SmolLM2-135M's shape."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def conversations() -> list[RenderedConversation]:
    """Return random ids, every token but the first a target."""
    rng = np.random.default_rng(0)
    mask = np.ones(LENGTH, dtype=np.bool_)
    mask[0] = False
    out = []
    for number in range(CONVERSATIONS):
        ids = rng.integers(0, VOCABULARY, LENGTH).astype(np.int32)
        out.append(RenderedConversation(f"c{number}", "bench", ids, mask, entry_of(ids)))
    return out


def sft_dense(model: Any, batch: StudentBatch) -> torch.Tensor:
    """Cross-entropy on whole logits, as plain fine-tuning computes it."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return functional.cross_entropy(
        logits[:, :-1].reshape(-1, VOCABULARY).float(), batch.input_ids[:, 1:].reshape(-1)
    )


def fused_step(model: Any, batch: StudentBatch) -> torch.Tensor:
    """Our step: with teacher rows in the batch it distils, without it is fused cross-entropy."""
    head = split_head(model)
    hidden = head.hidden(batch.input_ids, batch.attention_mask)
    return fused_loss(
        hidden.reshape(-1, hidden.shape[-1])[batch.positions],
        head.weight,
        labels=batch.labels,
        alpha=batch.alpha,
        teacher=batch.teacher,
        denominator=batch.target_tokens,
    ).loss


def dense_live_teacher() -> Step:
    """Return the common recipe: a live teacher, KL on whole logits at T = 2, plus CE."""
    live, temperature, alpha = teacher(), 2.0, 0.7

    def step(model: Any, batch: StudentBatch) -> torch.Tensor:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        with torch.no_grad():
            theirs = live(**inputs).logits[:, :-1]
        ours = model(**inputs).logits[:, :-1]
        kd = functional.kl_div(
            functional.log_softmax(ours / temperature, -1).flatten(0, 1),
            functional.softmax(theirs / temperature, -1).flatten(0, 1),
            reduction="batchmean",
        )
        ce = functional.cross_entropy(ours.flatten(0, 1), batch.input_ids[:, 1:].flatten())
        return alpha * temperature**2 * kd + (1 - alpha) * ce

    return step


def trl_gkd() -> Step:
    """Return TRL's published generalised-JSD loss on whole logits, as its trainer calls it."""
    # An extra of its own ([bench]); nothing else here needs it.
    from trl.experimental.gkd import GKDTrainer  # noqa: PLC0415 - only this variant's process has it

    live, loss = teacher(), cast("Callable[..., torch.Tensor]", GKDTrainer.generalized_jsd_loss)

    def step(model: Any, batch: StudentBatch) -> torch.Tensor:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        ours = model(**inputs).logits
        with torch.no_grad():
            theirs = live(**inputs).logits
        return loss(
            student_logits=ours[:, :-1, :],
            teacher_logits=theirs[:, :-1, :],
            labels=batch.input_ids[:, 1:],
            beta=0.5,
        )

    return step


def run_variant(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Train a warm-up step and `steps` timed ones; seconds a step, reading the batch included."""
    makers: dict[str, Callable[[], Step]] = {
        "sft_dense": lambda: sft_dense,
        "sft_fused": lambda: fused_step,
        "ours": lambda: fused_step,
        "dense_live_teacher": dense_live_teacher,
        "trl_gkd": trl_gkd,
    }
    step, model = makers[name](), student().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedule = Schedule(steps=steps + 1, batch_size=BATCH)
    with ShardLookup(folder.glob("*.shard"), PROFILE.temperatures) as lookup:
        if name == "ours":
            source = BatchSource(conversations(), lookup, Objective(alpha=0.7), schedule, 0)
        else:
            objective = Objective(kind="ce", alpha=0.0)
            source = BatchSource(conversations(), None, objective, schedule, 0)
        seconds = [_timed(source, number, step, model, optimiser) for number in range(steps + 1)]
    return {"seconds": seconds[1:], "peak_mib": report.peak_mib()}


def _timed(
    source: BatchSource, number: int, step: Step, model: Any, optimiser: torch.optim.Optimizer
) -> float:
    started = time.perf_counter()
    read: StepBatches = source.step(number)
    optimiser.zero_grad(set_to_none=True)
    step(model, read.micro[0]).backward()  # type: ignore[no-untyped-call] # torch leaves it so
    optimiser.step()
    return time.perf_counter() - started


def run_capture(folder: Path) -> dict[str, Any]:
    """Fill the cache that `ours` reads; compare the pass with a bare forward with logits."""
    live = LocalTeacher(teacher(), VOCABULARY)
    space = CacheSpace(
        weights_fingerprint="0" * 64, tokenizer_fingerprint="0" * 64, vocabulary=VOCABULARY
    )
    captured, _ = capture(conversations(), live, space, folder=folder, callbacks=Silent())
    ids = [c.input_ids for c in conversations()[:BATCH]]
    bare, kept = [], []
    for _ in range(3):
        bare.append(report.cpu_seconds(lambda: live.bare_forward(ids)))
        kept.append(report.cpu_seconds(lambda: live.capture(ids, PROFILE)))
    return {
        "seconds_per_token": captured.seconds / captured.new_rows,
        "vs_forward": statistics.median(kept) / statistics.median(bare),
    }


def compare(rounds: int, steps: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Run every variant `rounds` times in turn and return the ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    memory: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name:
        folder = Path(name)
        captured = report.variant("bench.kd_step", "capture", asked, folder=str(folder))
        for turn in range(rounds):
            for variant in VARIANTS if turn % 2 == 0 else reversed(VARIANTS):
                found = report.variant(
                    "bench.kd_step", variant, asked, folder=str(folder), steps=steps
                )
                seconds[variant] += found["seconds"]
                memory[variant].append(found["peak_mib"])
    time_of = {name: statistics.median(values) for name, values in seconds.items()}
    peak_of = {name: statistics.median(values) for name, values in memory.items()}
    tokens = BATCH * (LENGTH - 1)
    figures: dict[str, Any] = {
        name: {
            "time_vs_sft_dense": time_of[name] / time_of["sft_dense"],
            "time_vs_sft_fused": time_of[name] / time_of["sft_fused"],
            "memory_vs_sft_dense": peak_of[name] / peak_of["sft_dense"],
            "memory_vs_sft_fused": peak_of[name] / peak_of["sft_fused"],
        }
        for name in COMPARED
    }
    saved = (time_of["dense_live_teacher"] - time_of["ours"]) / tokens
    figures |= {
        "capture_seconds_per_token": captured["seconds_per_token"],
        "capture_vs_forward": captured["vs_forward"],
        "break_even_epochs": captured["seconds_per_token"] / saved if saved > 0 else None,
        "trl_gkd_vs_ours": time_of["trl_gkd"] / time_of["ours"],
        "seconds_per_step": time_of,
        "peak_mib": peak_of,
    }
    return figures


def table(figures: dict[str, Any]) -> str:
    """Return the ratios as a plain table."""
    lines = [f"{'step':<20}{'time ÷ SFT':>12}{'÷ fused':>10}{'memory ÷ SFT':>14}{'÷ fused':>10}"]
    for name in COMPARED:
        values = list(figures[name].values())
        lines.append(
            f"{name:<20}{values[0]:>12.2f}{values[1]:>10.2f}{values[2]:>14.2f}{values[3]:>10.2f}"
        )
    epochs = figures["break_even_epochs"]
    paid = "never" if epochs is None else f"after {epochs:.2f} epochs"
    lines.append(
        f"capture: {figures['capture_seconds_per_token'] * 1e3:.2f} ms a token, "
        f"{figures['capture_vs_forward']:.2f} × a bare forward; paid back {paid}; "
        f"TRL GKD step ÷ ours {figures['trl_gkd_vs_ours']:.2f}"
    )
    return "\n".join(lines)


def measure(name: str, ask: report.Facts) -> report.Facts:
    """Answer one variant: the capture that fills the folder, or timed steps."""
    folder = Path(ask["folder"])
    return run_capture(folder) if name == "capture" else run_variant(name, folder, ask["steps"])


def bars(figures: dict[str, Any]) -> list[report.Bar]:
    """Return what engine.md asks of a step."""
    ours = figures["ours"]
    return [
        report.Bar("time ÷ SFT with dense logits", ours["time_vs_sft_dense"], 1.05),
        report.Bar("memory ÷ SFT with dense logits", ours["memory_vs_sft_dense"], 0.80),
        report.Bar("time ÷ SFT with fused CE", ours["time_vs_sft_fused"], 1.15),
        report.Bar("memory ÷ SFT with fused CE", ours["memory_vs_sft_fused"], 1.05),
        report.Bar("TRL GKD step ÷ ours", figures["trl_gkd_vs_ours"], 3.0, at_most=False),
    ]


def main() -> None:
    """Compare, or run one variant when the comparison asks for it."""
    parser = report.options(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    asked = parser.parse_args()
    if report.answered(asked, measure):
        return
    rounds, steps = (1, 1) if asked.quick else (asked.rounds, asked.steps)
    figures = compare(rounds, steps, asked)
    report.finish("kd_step", asked, figures, table(figures), bars(figures))


if __name__ == "__main__":
    main()
