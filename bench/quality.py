"""The demo's comparison over several training seeds, straight on the cores.

`python -m bench.quality [--seeds 3] [--quick] [--stage validation|test] [--labelled N] [--json]`.
The teacher is made once; every student is trained once per seed. Finished pieces lie under
build/bench/quality by the fingerprint of what made them, so an interrupted bench goes on where it
was. `--stage validation` (the default) draws other tickets than the demo does; `--stage test` is
the demo's own.
"""

import resource
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from app.demo.setting import QUICK, REAL, DemoSetting, StudentRole, TicketPlan
from app.demo.traffic import DrawnTickets, draw
from app.metrics.comparison import Comparison, Difference, EvaluationRole, EvaluationRow, compare
from app.metrics.statistics import ClusterSums
from app.specs.conversation import Conversation
from app.specs.evaluation import EvaluationReport
from app.specs.fingerprint import fingerprint
from app.specs.teacher import CacheSpace
from app.specs.training import RenderSpec, TrainingSpec
from bench import report
from workers.distill.batches import BatchSource, Collator
from workers.distill.callbacks import Silent
from workers.distill.capture import capture
from workers.distill.checkpoints import import_folder, load_model, read_card, save_checkpoint
from workers.distill.evaluation.run import run_evaluation
from workers.distill.generate import generate
from workers.distill.rendering import Renderer
from workers.distill.selection import Validation
from workers.distill.students.prune import prune
from workers.distill.students.tiny import make_tiny_teacher
from workers.distill.teacher_shards import ShardLookup
from workers.distill.teachers import LocalTeacher
from workers.distill.tokenizers import load_tokenizer, vocabulary_size
from workers.distill.trainer import train

ROOT = report.ROOT / "quality"
STUDENTS: tuple[StudentRole, ...] = ("distilled", "sequence_level", "labels_only")
COMPARED = ("labels_only", "sequence_level", "teacher")
METRICS = ("exact_match", "field_f1", "kl", "agreement", "ece", "tokens_per_second")
Stage = Literal["validation", "test"]
Facts = dict[str, Any]


class Spoken(Silent):
    """Says on stderr what is going on; nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def metrics(self, step: int, values: Any) -> None:
        if step % 25 == 0 or "validation/loss" in values:
            shown = {k: round(v, 4) for k, v in values.items() if k != "data/tokens"}
            report.say(f"{self.name} step {step} {shown}")


@dataclass(frozen=True)
class Bench:
    """One setting on one plan of tickets. Every method makes its piece once and keeps it."""

    setting: DemoSetting
    plan: TicketPlan
    root: Path

    @property
    def tickets(self) -> DrawnTickets:
        return draw(self.plan)

    @property
    def home(self) -> Path:
        """The folder of this teacher: its base, its tickets, and how it was tuned."""
        tuned_on = [self.plan.tune, self.plan.tune_seed, self.setting.tuning_validation_share]
        made_of = [self.setting.name, tuned_on, self.setting.tuning.model_dump(mode="json")]
        return self.root / fingerprint(made_of)[:12]

    @property
    def data(self) -> Path:
        """The folder of what this teacher answered to this traffic, however much is labelled."""
        asked = self.plan.model_dump(mode="json", exclude={"labelled"})
        asked["new"] = self.setting.evaluation.max_new_tokens
        return self.home / fingerprint([asked, self.setting.capture.model_dump(mode="json")])[:12]

    def base(self) -> Path:
        """Return the untuned checkpoint: the packaged SmolLM2, or a tiny random model."""
        target = self.root / f"base-{self.setting.name}"
        if not target.exists():
            if self.setting.name == "real":
                import_folder(report.packaged_gguf(), target, Silent())
            else:
                texts = [m.content for c in self.tickets.tune for m in c.messages]
                make_tiny_teacher(target, texts)
        return target

    def teacher(self) -> tuple[Path, Facts]:
        """Return the tuned checkpoint and what tuning it cost."""
        target = self.home / "teacher"

        def make() -> Facts:
            facts: Facts = {}
            tune = self.tickets.tune
            held = round(len(tune) * self.setting.tuning_validation_share)
            with report.timed(facts, "tune"):
                fit(
                    self.base(),
                    self.setting.tuning,
                    (tune[held:], tune[:held]),
                    None,
                    target,
                    "teacher",
                )
            return facts

        return target, report.kept(self.home / "teacher.json", make)

    def answered(self) -> tuple[list[Conversation], Facts]:
        """Return the traffic with the teacher's answers as logged, references where planned."""
        tickets = self.tickets

        def make() -> Facts:
            facts: Facts = {}
            folder, _ = self.teacher()
            tokenizer = load_tokenizer(folder)
            renderer = Renderer(tokenizer, RenderSpec())
            prompts = [renderer.render_prompt(c.messages[:-1]) for c in tickets.traffic]
            with report.timed(facts, "answer"):
                answers = generate(
                    load_model(folder),
                    tokenizer,
                    prompts,
                    max_new_tokens=self.setting.evaluation.max_new_tokens,
                    batch_size=self.setting.generate_batch_size,
                    callbacks=Silent(),
                )
            facts["answers"] = [a.text for a in answers]
            return facts

        facts = report.kept(self.data / "answers.json", make)
        logged = []
        for ticket, answer in zip(tickets.traffic, facts["answers"], strict=True):
            truth = ticket.messages[-1].reference if ticket.id in tickets.referenced else None
            turn = ticket.messages[-1].model_copy(update={"content": answer, "reference": truth})
            logged.append(ticket.model_copy(update={"messages": (*ticket.messages[:-1], turn)}))
        return logged, facts

    def shards(self) -> tuple[list[Path], Facts]:
        """Return the teacher cache over train and validation."""

        def make() -> Facts:
            facts: Facts = {}
            folder, _ = self.teacher()
            tokenizer = load_tokenizer(folder)
            card = read_card(folder)
            space = CacheSpace(
                weights_fingerprint=card.weights_fingerprint,
                tokenizer_fingerprint=card.tokenizer_fingerprint,
                vocabulary=card.tokenizer_entries,
                profile=self.setting.capture,
            )
            traffic = [c for c in self.answered()[0] if c.split != "test"]
            render = self.setting.runs["distilled"].render
            rendered = Renderer(tokenizer, render).render_all(traffic).rendered
            teacher = LocalTeacher(load_model(folder), vocabulary_size(tokenizer))
            with report.timed(facts, "capture"):
                captured, made = capture(
                    rendered, teacher, space, folder=self.data / "shards", callbacks=Silent()
                )
            facts["mean_entropy"], facts["captured_mass"] = (
                captured.mean_entropy,
                captured.captured_mass,
            )
            facts["shards"] = [shard.path.name for shard in made]
            return facts

        facts = report.kept(self.data / "shards.json", make)
        return [self.data / "shards" / name for name in facts["shards"]], facts

    def student(self) -> Path:
        """Return the student cut from the tuned teacher."""
        spec = self.setting.student
        target = self.data / f"student-{fingerprint(spec)[:12]}"
        if not target.exists():
            folder, _ = self.teacher()
            tokenizer = load_tokenizer(folder)
            train_set = [c for c in self.answered()[0] if c.split == "train"]
            rendered = Renderer(tokenizer, RenderSpec()).render_all(
                train_set[: spec.calibration_conversations]
            )
            small = prune(load_model(folder), spec, [r.input_ids for r in rendered.rendered])
            save_checkpoint(small, tokenizer, target)
        return target

    def trained(self, spec: TrainingSpec, name: str) -> tuple[Path, Facts]:
        """Return a student trained by one spec, and what it cost."""
        student = self.student()
        labelled = self.plan.labelled if spec.render.answer == "reference" else 0
        target = student / "runs" / fingerprint([spec.model_dump(mode="json"), labelled])[:12]

        def make() -> Facts:
            facts: Facts = {}
            traffic = self.answered()[0]
            sets = tuple([c for c in traffic if c.split == s] for s in ("train", "validation"))
            shards = self.shards()[0] if spec.objective.needs_teacher else []
            with (
                report.timed(facts, "train"),
                ShardLookup(shards, self.setting.capture.temperatures) as cache,
            ):
                facts |= fit(student, spec, (sets[0], sets[1]), cache, target, name)
            return facts

        return target, report.kept(target.with_suffix(".json"), make)

    def evaluated(self, folder: Path, name: str) -> Facts:
        """Return the evaluation of one checkpoint on the held-out conversations."""
        spec = self.setting.evaluation
        teacher, _ = self.teacher()
        key = [str(folder.relative_to(self.home)), spec.model_dump(mode="json")]
        out = self.data / "evaluations" / fingerprint(key)[:12]

        def make() -> Facts:
            facts: Facts = {}
            held_out = [c for c in self.answered()[0] if c.split == "test"]
            with report.timed(facts, "evaluate"):
                model = load_model(folder)
                found = run_evaluation(
                    model,
                    load_tokenizer(folder),
                    held_out,
                    teacher=model if folder == teacher else load_model(teacher),
                    render=self.setting.runs["distilled"].render,
                    spec=spec,
                    out_file=out.with_suffix(".parquet"),
                    callbacks=Silent(),
                )
            facts["report"] = found.model_dump(mode="json")
            report.say(f"{name}: {line(facts)}")
            return facts

        return report.kept(out.with_suffix(".json"), make)


def fit(
    source: Path,
    spec: TrainingSpec,
    sets: tuple[Sequence[Conversation], Sequence[Conversation]],
    lookup: ShardLookup | None,
    target: Path,
    name: str,
) -> Facts:
    """Train a checkpoint on (train, validation) as the train task does; leave it at `target`."""
    tokenizer, model = load_tokenizer(source), load_model(source)
    renderer = Renderer(tokenizer, spec.render)
    train_set, held_out = (renderer.render_all(s).rendered for s in sets)
    batches = BatchSource(train_set, lookup, spec.objective, spec.schedule, spec.seed)
    collate, size = Collator(lookup, spec.objective), spec.schedule.batch_size
    workdir = target.with_name(f"{target.name}.work")
    result = train(
        model,
        batches,
        spec,
        callbacks=Spoken(name),
        workdir=workdir,
        tokenizer=tokenizer,
        validation=Validation(
            [collate(held_out[i : i + size]) for i in range(0, len(held_out), size)]
        ),
        vocabulary=vocabulary_size(tokenizer),
    )
    if result.folder is None:
        raise RuntimeError(f"{name} ended without a checkpoint")
    target.parent.mkdir(parents=True, exist_ok=True)
    result.folder.rename(target)
    shutil.rmtree(workdir)
    return {
        "conversations": len(train_set),
        "epochs": round(batches.epochs, 2),
        "steps": result.steps,
        "best_step": result.best_step,
        "best_value": result.best_value,
        "tokens": result.tokens,
    }


def line(facts: Facts) -> str:
    """Return the metrics of an evaluation in one line."""
    found = EvaluationReport.model_validate(facts["report"])
    return " ".join(
        f"{m.metric} {sum(m.sums) / max(sum(m.counts), 1e-9):.4f}" for m in found.metrics
    )


def row(name: str, role: EvaluationRole, facts: Facts) -> EvaluationRow:
    found = EvaluationReport.model_validate(facts["report"])
    return EvaluationRow(
        name=name,
        role=role,
        sums={m.metric: ClusterSums.of(m) for m in found.metrics},
        set_version=1,
        clusters_key=fingerprint(list(found.clusters)),
    )


def compare_seed(bench: Bench, seed: int) -> tuple[dict[str, EvaluationRow], Facts]:
    """Return the five rows of one training seed, and what the pieces cost."""
    teacher, tuned = bench.teacher()
    costs: Facts = {"teacher": tuned, "answers": _costs(bench.answered()[1])}
    costs["cache"] = _costs(bench.shards()[1])
    evaluated = bench.evaluated(teacher, "teacher")
    costs["teacher_evaluation"] = evaluated["evaluate"]
    rows = {"teacher": row("teacher", "teacher", evaluated)}
    rows["undistilled"] = row(
        "undistilled", "undistilled", bench.evaluated(bench.student(), "undistilled")
    )
    specs = bench.setting.seeded(seed)
    for role in STUDENTS:
        folder, facts = bench.trained(specs[role], f"{role} seed {seed}")
        evaluated = bench.evaluated(folder, f"{role} seed {seed}")
        costs[role] = facts | {"evaluate": evaluated["evaluate"]}
        rows[role] = row(role, role, evaluated)
    return rows, costs


def _costs(facts: Facts) -> Facts:
    return {name: value for name, value in facts.items() if name not in ("answers", "shards")}


def differences(rows: dict[str, EvaluationRow]) -> dict[str, list[Difference]]:
    """Return distilled minus each other row, on every metric."""
    found: dict[str, list[Difference]] = {}
    for other in COMPARED:
        baseline = None if other == "teacher" else other
        made: Comparison = compare(
            list(rows.values()), deciding_metric="exact_match", tolerance=5.0, baseline=baseline
        )
        found[other] = [d for d in made.differences if (d.a, d.b) == ("distilled", other)]
    return found


def over_seeds(every: dict[int, dict[str, EvaluationRow]]) -> Facts:
    """Return distilled minus each other row as recipes: over seeds and conversations at once."""
    first = next(iter(every))
    rows = [found for name, found in every[first].items() if name not in STUDENTS]
    rows += [
        replace(rows_of[name], name=f"{name}, seed {seed}", recipe=name, seed=seed)
        for seed, rows_of in every.items()
        for name in STUDENTS
    ]
    pairs: Facts = {}
    for other in COMPARED:
        baseline = None if other == "teacher" else f"{other}, seed {first}"
        made = compare(rows, deciding_metric="exact_match", tolerance=5.0, baseline=baseline)
        for d in made.recipes.differences if made.recipes else ():
            if d.a.startswith("distilled") and d.b.startswith(other) and d.metric in METRICS:
                figures = {"value": d.value, "low": d.low, "high": d.high, "verdict": d.verdict}
                pairs.setdefault(f"distilled - {other}", {})[d.metric] = figures
    return pairs


def summary(bench: Bench, stage: Stage, seeds: Sequence[int]) -> Facts:
    """Run what is missing; return all figures."""
    every = {seed: compare_seed(bench, seed) for seed in seeds}
    first = every[seeds[0]][0]
    rows: Facts = {}
    for name in first:
        cells = [rows_of[name].cells() for rows_of, _ in every.values()]
        rows[name] = {
            metric: _spread([c[metric].value for c in cells]) | {"n": cells[0][metric].n}
            for metric in METRICS
            if metric in cells[0]
        }
    found: Facts = {}
    for seed, (rows_of, _) in every.items():
        for other, made in differences(rows_of).items():
            for d in made:
                if d.metric not in METRICS:
                    continue
                entry = {"seed": seed, "value": d.value, "low": d.low, "high": d.high}
                place = found.setdefault(f"distilled - {other}", {}).setdefault(d.metric, [])
                place.append(entry | {"verdict": d.verdict})
    cards = [read_card(p) for p in (bench.teacher()[0], bench.student())]
    return {
        "setting": bench.setting.name,
        "stage": stage,
        "seeds": list(seeds),
        "test_conversations": bench.plan.test,
        "compression_compute": cards[0].parameters_compute / cards[1].parameters_compute,
        "compression_total": cards[0].parameters_total / cards[1].parameters_total,
        "rows": rows,
        "differences": found,
        "over_seeds": over_seeds({seed: rows_of for seed, (rows_of, _) in every.items()}),
        "costs": {str(seed): costs for seed, (_, costs) in every.items()},
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def bars(figures: Facts) -> list[report.Bar]:
    """Return what engine.md asks: retention on the task's metric, and soft targets' gain."""
    mean = {name: cells["exact_match"]["mean"] for name, cells in figures["rows"].items()}
    gain = figures["over_seeds"]["distilled - labels_only"]["exact_match"]
    found = [report.Bar("distilled ÷ teacher, exact match", *_over(mean), at_most=False)]
    if gain["low"] is not None:
        found.append(
            report.Bar("distilled − labels only, low end", gain["low"], 0.0, at_most=False)
        )
    return found


def _over(mean: Facts) -> tuple[float, float]:
    return mean["distilled"] / max(mean["teacher"], 1e-9), 0.95


def _spread(values: Sequence[float]) -> Facts:
    return {"mean": statistics.fmean(values), "seeds": list(values)}


def table(figures: Facts) -> str:
    """Return the figures for people: a row a line, then the paired differences."""
    lines = [
        (
            f"{figures['setting']}, {figures['stage']} tickets, n {figures['test_conversations']}, "
            f"seeds {figures['seeds']}, compute {figures['compression_compute']:.2f}x, "
            f"total {figures['compression_total']:.2f}x"
        ),
        f"{'row':16}" + "".join(f"{m:>19}" for m in METRICS),
    ]
    for name, cells in figures["rows"].items():
        shown = [f"{cells[m]['mean']:19.4f}" if m in cells else " " * 19 for m in METRICS]
        lines.append(f"{name:16}" + "".join(shown))
        for index, seed in enumerate(figures["seeds"]):
            parts = [f"{cells[m]['seeds'][index]:19.4f}" if m in cells else "" for m in METRICS]
            if name in STUDENTS and len(figures["seeds"]) > 1:
                lines.append(f"{f'  seed {seed}':16}" + "".join(parts))
    for pair, metrics in figures["differences"].items():
        for metric, entries in metrics.items():
            for e in entries:
                if e["low"] is None:
                    continue
                lines.append(
                    f"{pair:28} {metric:18} seed {e['seed']}: {e['value']:+.4f} "
                    f"[{e['low']:+.4f}, {e['high']:+.4f}] {e['verdict']}"
                )
    for pair, metrics in figures["over_seeds"].items():
        for metric, e in metrics.items():
            lines.append(
                f"{pair:28} {metric:18} over seeds: {e['value']:+.4f} "
                f"[{e['low']:+.4f}, {e['high']:+.4f}] {e['verdict']}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = report.options(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stage", choices=("validation", "test"), default="validation")
    parser.add_argument("--labelled", type=int, help="other than the setting's, to choose it")
    parser.add_argument("--folder", type=Path, default=ROOT)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    setting = QUICK if asked.quick else REAL
    plan = setting.tickets if asked.stage == "test" else setting.choosing
    if asked.labelled is not None:
        plan = plan.model_copy(update={"labelled": asked.labelled})
    bench = Bench(setting, plan, asked.folder)
    figures = summary(bench, asked.stage, range(asked.seeds))
    report.finish("quality", asked, figures, table(figures), bars(figures))


if __name__ == "__main__":
    main()
