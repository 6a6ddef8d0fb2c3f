"""Small breakages of the source, one at a time; each must fail the tests that guard it.

`python -m bench.mutants [NAME…]` exits 0 when every mutant was killed. The tree is copied first, so
the working tree never changes. A mutant whose text is not found exactly once is an error: the code
moved on and the table must follow.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_COPIED = (
    *("app", "workers", "tests", "bench", "migrations", "templates", "static"),
    *("alembic.ini", "pyproject.toml"),
)
_TIMEOUT_SECONDS = 300
_TESTS_FAILED = 1  # pytest's exit code for failures; others mean that nothing was tested


@dataclass(frozen=True, slots=True)
class Mutant:
    """One breakage: `old` (found exactly once in `file`) becomes `new`; `tests` must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BATCHES = "workers/distill/batches.py"
RENDERING = "workers/distill/rendering.py"
FUSED = "workers/distill/losses/fused.py"
ROWS = "workers/distill/teacher_rows.py"
SHARDS = "workers/distill/teacher_shards.py"
TEACHERS = "workers/distill/teachers.py"
FOLD = "workers/ingest/fold.py"
LEASE = "app/jobs/lease.py"
PROOFS = ("tests/workers/distill/losses",)
MUTANTS = (
    Mutant(
        "labels shifted by one",
        BATCHES,
        "positions.append(number * length + start + predicted - 1)",
        "positions.append(number * length + start + predicted)",
        ("tests/workers/distill/test_batches.py",),
    ),
    Mutant(
        "teacher rows shifted by one",
        BATCHES,
        "steps.append(predicted - 1)",
        "steps.append(np.maximum(predicted - 2, 0))",
        ("tests/workers/distill/test_batches.py",),
    ),
    Mutant(
        "target mask inverted",
        RENDERING,
        "mask[first:stop] = True",
        "mask[:first] = True",
        ("tests/workers/distill/test_rendering.py",),
    ),
    Mutant(
        "end of turn left out of the mask",
        RENDERING,
        "mask[first:stop] = True",
        "mask[first : stop - 1] = True",
        ("tests/workers/distill/test_rendering.py",),
    ),
    Mutant(
        "rewritten turns taken as they are",
        RENDERING,
        "except RewrittenTemplateError:\n            if len(targets) == 1:",
        "except RewrittenTemplateError:\n            if targets:",
        ("tests/workers/distill/test_template_families.py",),
    ),
    Mutant(
        "what closes a whole conversation is learned",
        RENDERING,
        "alone.removesuffix(self._closed_by(messages[:turn], tools, before))",
        "alone.removesuffix(self._closed_by(messages[:turn], tools, before)[:0])",
        ("tests/workers/distill/test_template_families.py",),
    ),
    Mutant(
        "completion is everything",
        RENDERING,
        "targets = {t for t in targets if t > prompt}",
        "targets = {t for t in targets if t > -prompt}",
        ("tests/workers/distill/test_template_families.py",),
    ),
    Mutant(
        "T² only in the reported value",
        FUSED,
        "kd_scale = alpha * temperature / problem.denominator",
        "kd_scale = alpha / temperature / problem.denominator",
        PROOFS,
    ),
    Mutant(
        "T² left out of value and kept in the gradient",
        FUSED,
        "mixed = alpha * temperature**2 * kd",
        "mixed = alpha * kd",
        PROOFS,
    ),
    Mutant(
        "bucket gradient off the support without r",
        FUSED,
        "off_support = slopes.off / total - torch.where(weak | (r == 0), 0, r / rest)",
        "off_support = slopes.off / total - torch.zeros_like(r)",
        PROOFS,
    ),
    Mutant(
        "slope of a divergence not centred",
        "workers/distill/losses/support.py",
        "centred = phi - (q * phi).sum(-1, keepdim=True)",
        "centred = phi",
        PROOFS,
    ),
    Mutant(
        "reverse KL without its bucket",
        "workers/distill/losses/support.py",
        "has_tail = torch.isfinite(support.log_r)[:, None]",
        "has_tail = torch.zeros_like(support.log_r, dtype=torch.bool)[:, None]",
        PROOFS,
    ),
    Mutant(
        "another divergence reported as kd_loss",
        FUSED,
        "return divergence(support, log_q_on, log_q_off), bucket_kl(support, log_q_on, log_q_off)",
        "return (s := divergence(support, log_q_on, log_q_off)), s.value",
        PROOFS,
    ),
    Mutant(
        "a damaged shard taken for sound",
        SHARDS,
        "    if digest != _name(path):",
        "    if False:",
        ("tests/workers/tasks/test_caching.py",),
    ),
    Mutant(
        "a lost shard still counted as cached",
        "app/teacher_cache/service.py",
        "CacheCoverage.missing_rows + rows",
        "CacheCoverage.missing_rows",
        ("tests/app/dashboard/test_caches.py",),
    ),
    Mutant(
        "vanishing rest not recomputed",
        FUSED,
        "_UNDERFLOW = 1e-30",
        "_UNDERFLOW = 0.0",
        PROOFS,
    ),
    Mutant(
        "padded vocabulary gets mass",
        FUSED,
        "vocabulary=min(vocabulary or weight.shape[0], weight.shape[0])",
        "vocabulary=weight.shape[0]",
        PROOFS,
    ),
    Mutant(
        "denominator local to the micro-batch",
        BATCHES,
        "denominator=sum(int(r.target_mask[1:].sum()) for r in chosen)",
        "denominator=int(chosen[0].target_mask[1:].sum())",
        ("tests/workers/distill/test_batches.py",),
    ),
    Mutant(
        "the best step of an earlier attempt forgotten",
        "workers/distill/trainer.py",
        "        self._adopt_best(candidates)\n",
        "",
        ("tests/workers/distill/test_trainer.py",),
    ),
    Mutant(
        "denominator local to a rank",
        BATCHES,
        "denominator=sum(int(r.target_mask[1:].sum()) for r in chosen)",
        "denominator=sum(int(r.target_mask[1:].sum()) for r in chosen[rank::ranks])",
        ("tests/workers/distill/test_batches.py",),
    ),
    Mutant(
        "gradients of the other ranks forgotten",
        "workers/distill/ranks.py",
        "            dist.all_reduce(flat)\n",
        "",
        ("tests/workers/job/test_ranks.py",),
    ),
    Mutant(
        "a packed document sees the one before it",
        "workers/distill/packing.py",
        "full = (same & (distance >= 0))[:, None]",
        "full = ((same | True) & (distance >= 0))[:, None]",
        ("tests/workers/distill/test_packing.py",),
    ),
    Mutant(
        "the best is the lowest of what is better higher",
        "workers/distill/selection.py",
        "gain = value - than if self.higher else than - value",
        "gain = than - value if self.higher else than - value",
        ("tests/workers/distill/test_selection.py",),
    ),
    Mutant(
        "patience counts steps instead of validations",
        "workers/distill/trainer.py",
        "progress.waited += 1",
        "progress.waited += self.spec.schedule.validate_every",
        ("tests/workers/distill/test_selection.py",),
    ),
    Mutant(
        "patience begins before anything is right",
        "workers/distill/selection.py",
        "return self.higher and value == 0",
        "return False",
        ("tests/workers/distill/test_selection.py",),
    ),
    Mutant(
        "the chosen micro-batch forgotten in the snapshot",
        "workers/distill/trainer.py",
        "batches.micro_size = trainer.progress.micro_size or batches.micro_size",
        "pass",
        ("tests/workers/distill/test_memory.py",),
    ),
    Mutant(
        "rows joined by place instead of entry",
        BATCHES,
        "self._lookup.rows([c.entry for c in conversations])",
        "self._lookup.rows(sorted(c.entry for c in conversations))",
        ("tests/workers/distill/test_batches.py",),
    ),
    Mutant(
        "head not scaled by 1 − r",
        ROWS,
        "log_w += torch.log(-torch.expm1(log_r))[:, None]",
        "log_w += 0 * log_r[:, None]",
        ("tests/workers/distill/test_teacher_shards.py",),
    ),
    Mutant(
        "samples do not share the rest but count whole",
        ROWS,
        "log_r[:, None] + shares.log()",
        "shares.log()",
        ("tests/workers/distill/test_profiles.py",),
    ),
    Mutant(
        "samples always start at the same place",
        TEACHERS,
        "places = (steps + offsets[:, None]) / count * total",
        "places = (steps + 0 * offsets[:, None]) / count * total",
        ("tests/workers/distill/test_profiles.py",),
    ),
    Mutant(
        "sampled slope without the mass of the targets",
        "workers/distill/losses/sampled.py",
        "mass[:, None] * q - t",
        "q",
        PROOFS,
    ),
    Mutant(
        "samples read by every objective",
        BATCHES,
        "samples=objective.fits_samples",
        "samples=objective.temperature == 1.0",
        ("tests/workers/distill/test_profiles.py",),
    ),
    Mutant(
        "live teacher compared without its temperature",
        "workers/distill/losses/support.py",
        "logits.div_(teacher.temperature)",
        "logits",
        PROOFS,
    ),
    Mutant(
        "frame checksum off",
        SHARDS,
        'if zlib.crc32(data) != int(record["crc"]):',
        'if zlib.crc32(data) == int(record["crc"]) + 1:',
        ("tests/workers/distill/test_teacher_shards.py",),
    ),
    Mutant(
        "residual forgets the top entries that are not kept",
        TEACHERS,
        "torch.where(kept, 0, weights).sum(-1)",
        "torch.zeros_like(plain)",
        ("tests/workers/distill/test_capture.py",),
    ),
    Mutant(
        "prefixes not folded",
        "workers/ingest/trie.py",
        "node = self._nodes.get(key)",
        "node = None",
        ("tests/workers/ingest/test_fold.py",),
    ),
    Mutant(
        "a turn taught in every conversation that holds it",
        FOLD,
        "if not any(node in owner for node in producers):",
        "if producers:",
        ("tests/workers/ingest/test_fold.py",),
    ),
    Mutant(
        "only the last turn of a folded conversation taught",
        FOLD,
        "own = any(owner.get(node) == leaf for node in producers)",
        "own = leaf in producers",
        ("tests/workers/ingest/test_fold.py",),
    ),
    Mutant(
        "writes not fenced",
        LEASE,
        ".where(JobLease.job_id == held.job_id, JobLease.fence == held.fence)",
        ".where(JobLease.job_id == held.job_id)",
        ("tests/app/jobs/test_service.py",),
    ),
    Mutant(
        "points beyond the resumed step kept",
        LEASE,
        "drop_points_beyond(session, held.job_id, step)",
        "session.flush()",
        ("tests/app/jobs/test_service.py",),
    ),
    Mutant(
        "snapshot manifest not compared",
        "workers/distill/checkpointing.py",
        "if manifest.is_file() and file_sha256(manifest) == recorded:",
        "if manifest.is_file():",
        ("tests/workers/distill/test_trainer.py",),
    ),
    Mutant(
        "a recipe's interval without its seeds",
        "app/metrics/statistics.py",
        "error, df = _added((error**2, groups - 1), *_seed_parts(a, b))",
        "error, df = _added((error**2, groups - 1))",
        ("tests/app/metrics",),
    ),
    Mutant(
        "wins and losses without pseudo-observations",
        "app/metrics/statistics.py",
        "error = math.hypot(error, math.sqrt(2.0) * _pseudo(one, other, groups))",
        "pass",
        ("tests/app/metrics",),
    ),
    Mutant(
        "the end of a job not fenced",
        LEASE,
        "select(Job).where(Job.id == held.job_id, Job.fence == held.fence).with_for_update()",
        "select(Job).where(Job.id == held.job_id).with_for_update()",
        ("tests/app/jobs/test_service.py",),
    ),
)


def run_mutant(mutant: Mutant, tree: Path) -> str | None:
    """Return None where the tests noticed, else a sentence about what went wrong.

    The breakage is undone afterwards, so that one copied tree serves all mutants.
    """
    path = tree / mutant.file
    if not path.is_file():
        return f"{mutant.file} does not exist: the table must follow the code."
    whole = path.read_text(encoding="utf-8")
    if whole.count(mutant.old) != 1:
        return f"{mutant.file} holds its text {whole.count(mutant.old)} times, not once."
    missing = [t for t in mutant.tests if not (tree / t).exists()]
    if missing:
        return f"its tests {missing[0]} do not exist."
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter on our own tests
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests],
            cwd=tree,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    finally:
        path.write_text(whole, encoding="utf-8")
    if done.returncode == _TESTS_FAILED:
        return None
    if done.returncode == 0:
        return "it survived: no test noticed."
    return f"pytest ended with {done.returncode}: {done.stdout[-400:]}{done.stderr[-400:]}"


def main() -> int:
    """Run the chosen mutants and print one line each; 1 where any was not killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="mutants to run; all of them by default")
    chosen = parser.parse_args().names
    unknown = set(chosen) - {m.name for m in MUTANTS}
    if unknown:
        parser.error(f"unknown mutant: {min(unknown)}")
    failures = 0
    with tempfile.TemporaryDirectory(prefix="stillhouse-mutants-") as folder:
        tree = Path(folder)
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "node_modules")
                shutil.copytree(source, tree / name, ignore=ignored)
            elif source.exists():
                shutil.copy2(source, tree / name)
        for mutant in MUTANTS:
            if chosen and mutant.name not in chosen:
                continue
            problem = run_mutant(mutant, tree)
            failures += problem is not None
            sys.stdout.write(f"{'killed' if problem is None else 'ALIVE '}  {mutant.name}")
            sys.stdout.write("\n" if problem is None else f": {problem}\n")
            sys.stdout.flush()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
