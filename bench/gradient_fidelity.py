"""Which stored view trains what: how far its gradient lies from that of the full KL, per byte.

`python -m bench.gradient_fidelity [--json] [--save] [--quick]`. SmolLM2's rows of made dialogues,
encoded and decoded as the cache keeps them, at T = 1, 2, 4, against two students: *near* (the
teacher with noise on its weights, KL about 0.4) and *far* (every layer but a few, KL about 5). Per
view: the angle and relative L2 error of the output head's gradient, from the product's loss, and
the relative L2 error of dLoss/dlogits, from the literal formula. A single batch: sampled views are
unbiased, so theirs shrink with its size.
"""

import argparse
import copy
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from app.specs.checkpoint import PruneSpec
from app.specs.teacher import CaptureProfile
from bench import report, smollm2
from workers.distill.heads import split_head
from workers.distill.losses.fused import fused_loss
from workers.distill.students.prune import prune
from workers.distill.teacher_rows import decode, decode_frames, encode_rows
from workers.distill.teacher_shards import write_shard
from workers.distill.teachers import LocalTeacher
from workers.distill.values import LiveTargets, RenderedConversation, SparseTargets, TargetRows

TEMPERATURES = (1.0, 2.0, 4.0)
VIEWS: dict[str, dict[str, Any]] = {
    "standard": {"name": "standard"},
    "k = 64": {"name": "standard", "k_min": 64, "k_max": 64},
    "k = 128": {"name": "standard", "k_min": 128, "k_max": 128},
    "audit, k = 256": {"name": "audit"},
    "audit, k = 1024": {"name": "audit", "k_min": 1024, "k_max": 1024},
    "sampled, 8": {"name": "sampled"},
    "sampled, 16": {"name": "sampled", "tail_samples": 16},
    "dense": {"name": "dense"},
}
NEAR, FAR = 0.4, 5.0
CHUNK = 64


class Problem:
    """States [N, D] and heads of a teacher and a student at the same positions."""

    def __init__(self, teacher: Any, student: Any, items: list[RenderedConversation]) -> None:
        self.theirs, self.their_head = _states(teacher, items)
        self.ours, self.our_head = _states(student, items)

    def kl(self) -> float:
        """Return the full KL in nats a token at T = 1."""
        total = 0.0
        for s in range(0, len(self.ours), CHUNK):
            log_p, log_q = self._logs(slice(s, s + CHUNK), 1.0)
            total += float((log_p.exp() * (log_p - log_q)).sum())
        return total / len(self.ours)

    def head_gradient(self, targets: SparseTargets | LiveTargets) -> torch.Tensor:
        """Return dLoss/dW [V, D] of forward KL alone, from the product's loss."""
        weight = self.our_head.clone().requires_grad_()
        count = len(self.ours)
        fused_loss(
            self.ours,
            weight,
            labels=torch.zeros(count, dtype=torch.long),
            alpha=torch.ones(count),
            teacher=targets,
            denominator=count,
        ).loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
        if weight.grad is None:
            raise RuntimeError("the loss left no gradient")
        return weight.grad

    def logit_error(self, targets: SparseTargets, temperature: float) -> float:
        """Return ‖dz − dz_full‖ ÷ ‖dz_full‖ over all N·V logits."""
        wrong = whole = 0.0
        for s in range(0, len(self.ours), CHUNK):
            part = slice(s, s + CHUNK)
            log_p, log_q = self._logs(part, temperature)
            q = log_q.exp()
            full = q - log_p.exp()
            wrong += float((_slope(q, targets, part) - full).square().sum())
            whole += float(full.square().sum())
        return math.sqrt(wrong / whole)

    def _logs(self, part: slice, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        theirs, ours = self.theirs[part] @ self.their_head.t(), self.ours[part] @ self.our_head.t()
        return torch.log_softmax(theirs / temperature, -1), torch.log_softmax(
            ours / temperature, -1
        )


def _slope(q: torch.Tensor, targets: SparseTargets, part: slice) -> torch.Tensor:
    """Return dKL/dz · T [n, V]: q − w on the head, q (1 − r ÷ q_tail) beside it, q − t sampled."""
    ids, weights = targets.ids[part], targets.log_w[part].exp()
    stored = torch.zeros_like(q).scatter_add_(1, ids, weights)
    if targets.samples:
        return q - stored
    tail = q.masked_fill(stored > 0, 0)
    share = targets.log_r[part].exp()[:, None] / tail.sum(-1, keepdim=True).clamp_min(1e-30)
    return torch.where(stored > 0, q - stored, q * (1 - share))


@torch.inference_mode()
def _inferred(model: Any, items: list[RenderedConversation]) -> torch.Tensor:
    split = split_head(model)
    parts = []
    for item in items:
        ids = torch.from_numpy(item.input_ids.astype("int64"))[None]
        parts.append(split.hidden(ids, torch.ones_like(ids))[0, :-1])
    return torch.cat(parts)


def _states(model: Any, items: list[RenderedConversation]) -> tuple[torch.Tensor, torch.Tensor]:
    head = split_head(model).weight.detach().clone()
    return _inferred(model, items).clone(), head


def near_student(teacher: Any, items: list[RenderedConversation]) -> Any:
    """Return the teacher with as much noise on its layers' weights as makes its KL about 0.4."""
    low, high = 0.0, 1.0
    student = teacher
    for _ in range(7):
        scale = (low + high) / 2
        student = _noisy(teacher, scale)
        if Problem(teacher, student, items).kl() < NEAR:
            low = scale
        else:
            high = scale
    return student


def _noisy(teacher: Any, scale: float) -> Any:
    student, generator = copy.deepcopy(teacher), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in student.base_model.layers.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise * weight.std() * scale if weight.dim() > 1 else 0)
    return student


def far_student(teacher: Any, items: list[RenderedConversation]) -> Any:
    """Return the teacher less so many layers, evenly, that its KL comes nearest to 5."""
    found: dict[int, float] = {}
    for depth in range(28, 20, -1):
        found[depth] = Problem(teacher, prune(teacher, PruneSpec(depth=depth)), items).kl()
    return prune(teacher, PruneSpec(depth=min(found, key=lambda d: abs(found[d] - FAR))))


def stored(rows: list[TargetRows], profile: CaptureProfile) -> tuple[TargetRows, float]:
    """Return rows as a shard gives them back, and its bytes a token."""
    options = {"vocabulary": smollm2.SHAPE["vocab_size"], "grid": profile.temperatures}
    with tempfile.TemporaryDirectory() as place:
        items = [(f"{i:064x}", len(r.ids) + 1, r) for i, r in enumerate(rows)]
        shard = write_shard(Path(place), items, value_bytes=profile.value_bytes, **options)
    frames = [encode_rows(r, value_bytes=profile.value_bytes, **options) for r in rows]
    found = decode_frames(frames)
    whole = found[0] if len(found) == 1 else None
    if whole is None:
        raise ValueError("one conversation at a time: rows of several share no width")
    return whole, shard.bytes / shard.rows


def measure(tokens: int) -> report.Facts:
    """Return every view's errors at every T for both students."""
    teacher = smollm2.model()
    whole = max(smollm2.rendered(12), key=lambda r: len(r.input_ids))
    item = replace(whole, input_ids=whole.input_ids[: tokens + 1])
    items = [item]
    students = {"near": near_student(teacher, items), "far": far_student(teacher, items)}
    problems = {name: Problem(teacher, s, items) for name, s in students.items()}
    live = LocalTeacher(teacher, smollm2.SHAPE["vocab_size"])
    found: report.Facts = {
        "tokens": len(item.input_ids) - 1,
        "student_kl": {name: p.kl() for name, p in problems.items()},
        "views": {},
    }
    full = {
        (name, t): p.head_gradient(LiveTargets(p.theirs, p.their_head, t))
        for name, p in problems.items()
        for t in TEMPERATURES
    }
    for view, given in VIEWS.items():
        profile = CaptureProfile.model_validate(given)
        rows, size = stored(live.capture([item.input_ids], profile), profile)
        row: report.Facts = {"bytes_per_token": size}
        for t in TEMPERATURES:
            if profile.tail_samples and t != 1.0:
                continue  # the product refuses it: weights explode
            targets = decode(rows, t, profile.temperatures, samples=profile.tail_samples > 0)
            for name, p in problems.items():
                row[f"{name}, T = {t:g}"] = _compared(p.head_gradient(targets), full[name, t]) | {
                    "logits_error": p.logit_error(targets, t)
                }
        found["views"][view] = row
        report.say(f"{view}: {row}")
    return found


def _compared(gradient: torch.Tensor, full: torch.Tensor) -> dict[str, float]:
    one, other = gradient.double(), full.double()
    one, other = one / one.norm(), other / other.norm()
    # Twice the arc sine of half the chord: an arc cosine near 1 would lose small angles.
    half = float((one - other).norm()) / 2
    return {
        "angle_degrees": math.degrees(2 * math.asin(min(half, 1.0))),
        "head_error": float((gradient - full).norm() / full.norm()),
    }


def table(figures: report.Facts) -> str:
    """Return angle / error of the head's gradient / error of the logits' gradient."""
    kl = figures["student_kl"]
    sizes = f"{figures['tokens']} tokens; KL near {kl['near']:.2f}, far {kl['far']:.2f}."
    lines = [f"{sizes} Angle of dW / its error / error of dz"]
    for view, row in figures["views"].items():
        lines.append(f"{view}: {row['bytes_per_token']:,.0f} bytes a token")
        for t in TEMPERATURES:
            cells = []
            for name in kl:
                cell = row.get(f"{name}, T = {t:g}")
                cells.append(
                    f"{name} {cell['angle_degrees']:.1f}° / {cell['head_error']:.3f} / "
                    f"{cell['logits_error']:.3f}"
                    if cell
                    else f"{name} refused"
                )
            lines.append(f"  T = {t:g}  " + "   ".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Measure and print; the table in the decision record on views is this one."""
    asked: argparse.Namespace = report.options(__doc__ or "").parse_args()
    torch.set_num_threads(asked.threads)
    figures = measure(24 if asked.quick else 256)
    report.finish("gradient_fidelity", asked, figures, table(figures))


if __name__ == "__main__":
    main()
