"""Quality per token seen: what each stored view and each objective teaches at equal tokens.

`python -m bench.views [--json] [--save] [--quick]`. Two tasks, three seeds, the same batches for
all. *narrow*: tickets → JSON, a vocabulary of 512, a random student (its start differs by seed).
*real*: SmolLM2's answers to short questions, its vocabulary of 49,152, a student of 6 of its 30
layers (only the order of the data differs by seed), 16 steps: how it begins, not how it ends. KL
to the teacher and top-1 agreement are over the whole vocabulary on held-out conversations; narrow
also has the field F1 of its answers against the truth. The teacher's
term stands alone (alpha 1), so views differ in nothing else. Finished runs lie in
build/bench/views, so an interrupted bench goes on.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from app.demo.tickets import made_tickets
from app.specs.checkpoint import PruneSpec
from app.specs.conversation import Conversation
from app.specs.fingerprint import fingerprint
from app.specs.teacher import CaptureProfile
from app.specs.training import Objective, RenderSpec, Schedule
from bench import report, smollm2
from workers.distill.batches import BatchSource
from workers.distill.callbacks import Silent
from workers.distill.capture import capture
from workers.distill.evaluation.fidelity import fidelity
from workers.distill.evaluation.scores import field_f1
from workers.distill.generate import generate
from workers.distill.heads import split_head
from workers.distill.losses.choice import divergence_for
from workers.distill.losses.fused import fused_loss
from workers.distill.rendering import Renderer
from workers.distill.students.prune import prune
from workers.distill.students.tiny import byte_level_tokenizer
from workers.distill.teacher_shards import ShardLookup
from workers.distill.teachers import LiveTeacher, LocalTeacher
from workers.distill.tokenizers import vocabulary_size
from workers.distill.values import RenderedConversation

WARMUP, BETAS, LONGEST_GRADIENT = 10, (0.9, 0.95), 1.0
SEEDS = 3


@dataclass(frozen=True, slots=True)
class View:
    """Where the teacher's distribution comes from (a profile or live), and what is made of it."""

    name: str
    objective: Objective
    profile: CaptureProfile | None = None


def _view(name: str, profile: str | None, **objective: Any) -> View:
    chosen = {"alpha": 1.0, "teacher": "cache" if profile else "live", **objective}
    kept = CaptureProfile.model_validate({"name": profile}) if profile else None
    return View(name, Objective.model_validate(chosen), kept)


TEXT = View("CE on the teacher's text", Objective(kind="ce", alpha=0.0))
VIEWS = (
    _view("standard, T = 1", "standard"),
    _view("standard, T = 2", "standard", temperature=2.0),
    _view("audit, T = 2", "audit", temperature=2.0),
    _view("sampled, T = 1", "sampled"),
    _view("live, T = 1", None),
    _view("live, T = 2", None, temperature=2.0),
    _view("reverse KL, standard", "standard", kind="reverse_kl"),
    _view("JSD 0.5, standard", "standard", kind="jsd"),
    _view("total variation, standard", "standard", kind="total_variation"),
    TEXT,
)


@dataclass(frozen=True)
class Task:
    """A teacher, how a student starts, what both read, and how long it is trained."""

    name: str
    teacher: Any
    tokenizer: Any
    student: Callable[[int], Any]
    train: Sequence[RenderedConversation]
    test: Sequence[RenderedConversation]
    schedule: Schedule
    views: Sequence[View] = VIEWS
    asked: Sequence[Conversation] = ()
    """Held-out conversations whose answer is compared with the truth; none: no task metric."""

    @property
    def vocabulary(self) -> int:
        return vocabulary_size(self.tokenizer)


def narrow_task(*, quick: bool) -> Task:
    """Return tickets → JSON with a teacher tuned on their truth and its answers to others."""
    steps, tickets, tested = (20, 24, 8) if quick else (400, 480, 48)
    tokenizer = byte_level_tokenizer([m.content for c in made_tickets(300) for m in c.messages])
    teacher = _llama(tokenizer, hidden=128, layers=4, seed=0)
    truth = list(made_tickets(tickets, seed=1))
    rendered = Renderer(tokenizer, RenderSpec(max_tokens=160)).render_all(truth).rendered
    schedule = Schedule(steps=steps, batch_size=8, learning_rate=2e-3)
    text = TEXT.objective
    _fit(teacher, (BatchSource(rendered, None, text, schedule, 0), schedule), text, None)
    groups = {c.group for c in truth}
    others = list(made_tickets(tickets // 3 + tested, seed=2, avoid=groups))
    answered = _answered(teacher, tokenizer, others, 48)
    rendered = Renderer(tokenizer, RenderSpec(max_tokens=160)).render_all(answered).rendered
    return Task(
        "narrow",
        teacher,
        tokenizer,
        lambda seed: _llama(tokenizer, hidden=48, layers=4, seed=seed),
        rendered[tested:],
        rendered[:tested],
        Schedule(steps=10 if quick else 150, batch_size=8, learning_rate=3e-3),
        asked=others[:tested],
    )


def real_task(*, quick: bool) -> Task:
    """Return SmolLM2's own answers to short questions, and a student of six of its layers."""
    train, tested, longest = (6, 2, 8) if quick else (64, 12, 24)
    tokenizer, teacher = smollm2.tokenizer(), smollm2.model()
    asked = [
        c.model_copy(update={"messages": c.messages[1:]})
        for c in made_tickets(train + tested, seed=3)
    ]
    answered = _answered(teacher, tokenizer, asked, longest, name="real")
    rendered = Renderer(tokenizer, RenderSpec(max_tokens=160)).render_all(answered).rendered
    small = prune(teacher, PruneSpec(depth=6), [r.input_ids for r in rendered[tested:]])
    weights = {name: value.clone() for name, value in small.state_dict().items()}

    def student(_: int) -> Any:
        small.load_state_dict(weights)
        small.get_input_embeddings().weight.requires_grad_(requires_grad=False)
        return small

    return Task(
        "real",
        teacher,
        tokenizer,
        student,
        rendered[tested:],
        rendered[:tested],
        Schedule(steps=2 if quick else 16, batch_size=4, learning_rate=1e-3),
        views=(*VIEWS[:6], TEXT),
    )


def _llama(tokenizer: Any, *, hidden: int, layers: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def _answers(model: Any, tokenizer: Any, asked: Sequence[Conversation], longest: int) -> list[str]:
    renderer = Renderer(tokenizer, RenderSpec())
    prompts = [renderer.render_prompt(c.messages[:-1]) for c in asked]
    found = generate(
        model, tokenizer, prompts, max_new_tokens=longest, batch_size=32, callbacks=Silent()
    )
    return [answer.text for answer in found]


def _answered(
    model: Any, tokenizer: Any, asked: Sequence[Conversation], longest: int, name: str = ""
) -> list[Conversation]:
    """Return conversations with the model's greedy answer, kept under a name if one is given."""
    out = []
    key = fingerprint([name, longest, [c.id for c in asked]])[:12]

    def make() -> report.Facts:
        return {"answers": _answers(model, tokenizer, asked, longest)}

    path = report.ROOT / "views" / f"answers-{key}.json"
    answers = (report.kept(path, make) if name else make())["answers"]
    for one, text in zip(asked, answers, strict=True):
        last = one.messages[-1].model_copy(update={"content": text})
        out.append(one.model_copy(update={"messages": (*one.messages[:-1], last)}))
    return out


def _fit(
    model: Any, data: tuple[BatchSource, Schedule], objective: Objective, live: LiveTeacher | None
) -> None:
    """Train in place: AdamW, linear warm-up, cosine to a tenth, as the product's trainer does."""
    batches, schedule = data
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1.0, betas=BETAS, weight_decay=0.0)
    head, divergence = split_head(model), divergence_for(objective)
    model.train()
    for number in range(schedule.steps):
        batch = batches.step(number).micro[0]
        if live is not None:
            batch = replace(batch, teacher=live.targets(batch))
        hidden = head.hidden(batch.input_ids, batch.attention_mask)
        loss = fused_loss(
            hidden.reshape(-1, hidden.shape[-1])[batch.positions],
            head.weight,
            labels=batch.labels,
            alpha=batch.alpha,
            teacher=batch.teacher,
            denominator=batch.target_tokens,
            divergence=divergence,
        ).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
        torch.nn.utils.clip_grad_norm_(weights, LONGEST_GRADIENT)
        done = number / schedule.steps
        share = min(
            (number + 1) / min(WARMUP, schedule.steps // 4 + 1),
            0.1 + 0.45 * (1 + math.cos(math.pi * done)),
        )
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate * share
        optimiser.step()
    model.eval()


@contextmanager
def _lookup(task: Task, view: View, shards: Path) -> Iterator[ShardLookup | None]:
    """Fill the view's cache once, and open it."""
    if view.profile is None:
        yield None
        return
    folder = shards / view.profile.name
    if not folder.exists():
        teacher = LocalTeacher(task.teacher, task.vocabulary)
        space = smollm2.space(view.profile).model_copy(update={"vocabulary": task.vocabulary})
        capture(task.train, teacher, space, folder=folder, callbacks=Silent())
    with ShardLookup(folder.glob("*.shard"), view.profile.temperatures) as lookup:
        yield lookup


TASKS = {"narrow": narrow_task, "real": real_task}


def measured(task: Task, view: View, seed: int, shards: Path) -> report.Facts:
    """Train a student by one view and return how near it came."""
    student = task.student(seed)
    live = None
    if view.objective.needs_teacher and view.profile is None:
        live = LiveTeacher(task.teacher, task.vocabulary, view.objective.temperature)
    with _lookup(task, view, shards) as lookup:
        batches = BatchSource(task.train, lookup, view.objective, task.schedule, seed)
        _fit(student, (batches, task.schedule), view.objective, live)
    return _judged(task, student)


def _judged(task: Task, student: Any) -> report.Facts:
    rows = fidelity(
        student,
        task.teacher,
        task.test,
        vocabulary=task.vocabulary,
        batch_size=16,
        callbacks=Silent(),
    )
    tokens = sum(r.tokens for r in rows)
    found = {
        "kl": sum(r.kl for r in rows) / tokens,
        "agreement": sum(r.agreements for r in rows) / tokens,
    }
    if task.asked:
        answers = _answers(student, task.tokenizer, task.asked, 48)
        truths = [c.messages[-1].reference or "" for c in task.asked]
        scores = [field_f1(a, t) for a, t in zip(answers, truths, strict=True)]
        found["field_f1"] = sum(scores) / len(scores)
    return found


def compare(asked: argparse.Namespace) -> report.Facts:
    """Train every view by every seed on both tasks; what was finished before is read."""
    found: report.Facts = {}
    for chosen in asked.tasks:
        make = TASKS[chosen]
        with tempfile.TemporaryDirectory(prefix="stillhouse-views-") as name:
            task = make(quick=asked.quick)
            read = sum(len(r.input_ids) for r in task.train)
            key = fingerprint([task.name, task.schedule.model_dump(mode="json"), read])[:12]
            kept = report.ROOT / "views" / f"{task.name}-{key}.json"
            kept.parent.mkdir(parents=True, exist_ok=True)
            runs: report.Facts = json.loads(kept.read_text()) if kept.exists() else {}
            runs.setdefault("teacher", [_judged(task, task.teacher)])
            runs.setdefault("before", [_judged(task, task.student(0))])
            for seed in range(SEEDS):
                for view in task.views:
                    place = runs.setdefault(view.name, [])
                    if len(place) > seed:
                        continue
                    place.append(measured(task, view, seed, Path(name)))
                    report.say(f"{task.name}, seed {seed}, {view.name}: {place[-1]}")
                    kept.write_text(json.dumps(runs))
        batches = BatchSource(task.train, None, TEXT.objective, task.schedule, 0)
        steps = [batches.step(i).micro[0].target_tokens for i in range(task.schedule.steps)]
        found[task.name] = {
            "vocabulary": task.vocabulary,
            "steps": task.schedule.steps,
            "tokens_learned": sum(steps),
            "test_conversations": len(task.test),
            "test_tokens": sum(int(r.target_mask.sum()) for r in task.test),
            "rows": {name: _spread(values) for name, values in runs.items()},
        }
    return found


def _spread(values: Sequence[report.Facts]) -> report.Facts:
    return {
        metric: {
            "mean": statistics.fmean(v[metric] for v in values),
            "seeds": [v[metric] for v in values],
        }
        for metric in values[0]
    }


def table(figures: report.Facts) -> str:
    """Return means and the seeds beside them."""
    lines = []
    for name, task in figures.items():
        lines.append(
            f"{name}: vocabulary {task['vocabulary']:,}, {task['steps']} steps, "
            f"{task['tokens_learned']:,} tokens learned; {task['test_tokens']:,} held out"
        )
        for view, row in task["rows"].items():
            cells = [
                f"{metric} {cell['mean']:.4f} ({', '.join(f'{s:.3f}' for s in cell['seeds'])})"
                for metric, cell in row.items()
            ]
            lines.append(f"  {view:<26}" + "  ".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Train and print; nothing here has a bar: the decision record reads it."""
    parser = report.options(__doc__ or "")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    figures = compare(asked)
    report.finish("views", asked, figures, table(figures))


if __name__ == "__main__":
    main()
