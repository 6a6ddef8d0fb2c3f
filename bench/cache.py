"""The teacher cache: bytes a token of real rows, and how fast they become tensors.

`python -m bench.cache [--json] [--save] [--quick]`. SmolLM2's rows of made dialogues in the
product's shards, beside two other layouts that only this bench writes: one uint32 an entry (18 bits
of id, 14 of log-probability) in safetensors, and Parquet lists. Entries of 96 rows, a ticket's
length, are read in lots of 16 as a batch asks for them, and one by one. Processor seconds, in
turn, medians.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from app.specs.teacher import CaptureProfile
from bench import report, smollm2
from workers.distill.callbacks import Silent
from workers.distill.capture import capture
from workers.distill.rendering import entry_of
from workers.distill.teacher_rows import decode, encode_rows
from workers.distill.teacher_shards import ShardLookup, write_shard
from workers.distill.teachers import LocalTeacher
from workers.distill.values import TargetRows

MOST_BYTES, LEAST_SPEED = 67.0, 1e6
LOT, SHORT, LOWEST = 16, 96, -20.0
VALUE_STEPS = (1 << 14) - 1
PROFILES = ("standard", "sampled", "audit")
Read = Callable[[Sequence[str]], int]


def captured(ask: report.Facts, profile: CaptureProfile, folder: Path) -> tuple[Path, list[str]]:
    """Return shards of real rows and the entries in them."""
    items = smollm2.rendered(ask["conversations"])
    teacher = LocalTeacher(smollm2.model(), smollm2.SHAPE["vocab_size"])
    _, made = capture(items, teacher, smollm2.space(profile), folder=folder, callbacks=Silent())
    return folder, [e.entry for shard in made for e in shard.entries]


def bytes_of(name: str, ask: report.Facts) -> report.Facts:
    """Return bytes a token of a profile, index and footer counted."""
    with tempfile.TemporaryDirectory() as place:
        profile = CaptureProfile.model_validate({"name": name})
        folder, entries = captured(ask, profile, Path(place))
        with ShardLookup(folder.glob("*.shard"), profile.temperatures) as lookup:
            found = [r for r in lookup.rows(entries) if r is not None]
        rows = sum(len(r.ids) for r in found)
        size = sum(p.stat().st_size for p in folder.glob("*.shard"))
        heads = sum(int((r.ids >= 0).sum()) for r in found)
    return {"tokens": rows, "bytes_per_token": size / rows, "head_entries_per_token": heads / rows}


class Packed:
    """uint32 = 18-bit id | 14-bit log-probability, with offsets, in one safetensors file."""

    def __init__(self, rows: dict[str, TargetRows], folder: Path) -> None:
        self.path = folder / "packed.safetensors"
        parts: dict[str, list[NDArray[Any]]] = {"words": [], "sizes": [], "log_r": []}
        self.where: dict[str, tuple[int, int, int, int]] = {}
        words = total = 0
        for entry, r in rows.items():
            valid = r.ids >= 0
            steps = np.rint(np.clip(r.logp[valid], LOWEST, 0) / LOWEST * VALUE_STEPS)
            parts["words"].append((r.ids[valid] << 14 | steps.astype(np.int64)).astype(np.uint32))
            parts["sizes"].append(valid.sum(1).astype(np.uint8))
            parts["log_r"].append(r.log_r.astype(np.float16))
            self.where[entry] = (words, words + int(valid.sum()), total, total + len(r.ids))
            words, total = words + int(valid.sum()), total + len(r.ids)
        save_file({k: np.concatenate(v) for k, v in parts.items()}, self.path)
        self.tensors = load_file(self.path)

    def read(self, entries: Sequence[str]) -> int:
        """Decode entries to ids and log w tensors; return how many rows."""
        done = 0
        for entry in entries:
            start, stop, first, last = self.where[entry]
            sizes = self.tensors["sizes"][first:last]
            valid = np.arange(int(sizes.max())) < sizes[:, None]
            words = self.tensors["words"][start:stop]
            ids = np.full(valid.shape, -1, dtype=np.int64)
            ids[valid] = words >> 14
            logp = np.full(valid.shape, -np.inf, dtype=np.float32)
            logp[valid] = (words & VALUE_STEPS) * np.float32(LOWEST / VALUE_STEPS)
            log_r = self.tensors["log_r"][first:last].astype(np.float32)
            done += _to_tensors(TargetRows(ids, logp, log_r, log_r[:, 0]))
        return done


class Lists:
    """Parquet with a list of ids and of float16 log-probabilities a row, zstd, a group an entry."""

    def __init__(self, rows: dict[str, TargetRows], folder: Path) -> None:
        self.path = folder / "lists.parquet"
        schema = pa.schema(
            {
                "ids": pa.list_(pa.uint32()),
                "logp": pa.list_(pa.float16()),
                "log_r": pa.list_(pa.float16()),
            }
        )
        self.where = {entry: number for number, entry in enumerate(rows)}
        with pq.ParquetWriter(self.path, schema, compression="zstd") as writer:
            for r in rows.values():
                valid = r.ids >= 0
                offsets = pa.array(np.concatenate([[0], valid.sum(1).cumsum()]), pa.int32())
                ids = pa.ListArray.from_arrays(offsets, pa.array(r.ids[valid], pa.uint32()))
                values = pa.array(r.logp[valid].astype(np.float16))
                logp = pa.ListArray.from_arrays(offsets, values)
                grid = r.log_r.shape[1]
                places = pa.array(np.arange(len(r.ids) + 1) * grid, pa.int32())
                rest = pa.array(r.log_r.astype(np.float16).ravel())
                log_r = pa.ListArray.from_arrays(places, rest)
                writer.write_table(pa.table([ids, logp, log_r], schema=schema))
        self.file = pq.ParquetFile(self.path)

    def read(self, entries: Sequence[str]) -> int:
        """Decode entries to ids and log w tensors; return how many rows."""
        done = 0
        for entry in entries:
            table = self.file.read_row_group(self.where[entry])
            ids_column, logp_column, rest = (table[n].combine_chunks() for n in table.column_names)
            sizes = np.diff(ids_column.offsets.to_numpy())
            valid = np.arange(int(sizes.max())) < sizes[:, None]
            ids = np.full(valid.shape, -1, dtype=np.int64)
            ids[valid] = ids_column.values.to_numpy()
            logp = np.full(valid.shape, -np.inf, dtype=np.float32)
            logp[valid] = logp_column.values.to_numpy()
            log_r = rest.values.to_numpy().astype(np.float32).reshape(len(sizes), -1)
            done += _to_tensors(TargetRows(ids, logp, log_r, log_r[:, 0]))
        return done


def _to_tensors(rows: TargetRows) -> int:
    return len(decode(rows, 1.0, CaptureProfile().temperatures).ids)


def speeds(_: str, ask: report.Facts) -> report.Facts:
    """Return tokens a processor second of each layout and way of reading, and its bytes a token."""
    profile = CaptureProfile()
    with tempfile.TemporaryDirectory() as place:
        folder, entries = captured(ask, profile, Path(place) / "shards")
        with ShardLookup(folder.glob("*.shard"), profile.temperatures) as lookup:
            rows = {
                e: r for e, r in zip(entries, lookup.rows(entries), strict=True) if r is not None
            }
        rows = _pieces(rows, ask["copies"])
        tokens = sum(len(r.ids) for r in rows.values())
        many = Path(place) / "many"
        grid, vocabulary = profile.temperatures, smollm2.SHAPE["vocab_size"]
        shard = write_shard(
            many,
            ((e, len(r.ids) + 1, r) for e, r in rows.items()),
            vocabulary=vocabulary,
            grid=grid,
        )
        packed, lists = Packed(rows, Path(place)), Lists(rows, Path(place))
        with ShardLookup([shard.path], grid) as lookup:

            def ours(chosen: Sequence[str]) -> int:
                return sum(_to_tensors(r) for r in lookup.rows(chosen) if r is not None)

            readers: dict[str, Read] = {
                "shards": ours,
                "packed": packed.read,
                "parquet": lists.read,
            }
            ways = {"in lots": LOT, "one by one": 1}
            found = _timed(readers, ways, list(rows), ask["rounds"])
        sizes = {
            "shards": shard.bytes,
            "packed": packed.path.stat().st_size,
            "parquet": lists.path.stat().st_size,
        }
        raw = sum(len(encode_rows(r, vocabulary=vocabulary, grid=grid)) for r in rows.values())
    return {
        "tokens": tokens,
        "tokens_per_conversation": tokens / len(rows),
        "bytes_before_zstd": raw / tokens,
        "layouts": {
            name: {"bytes_per_token": sizes[name] / tokens}
            | {way: tokens / seconds for way, seconds in by_way.items()}
            for name, by_way in found.items()
        },
    }


def _timed(
    readers: dict[str, Read], ways: dict[str, int], entries: list[str], rounds: int
) -> dict[str, dict[str, float]]:
    """Return median processor seconds of reading all entries in a random order."""
    order = [entries[i] for i in np.random.default_rng(0).permutation(len(entries))]
    seconds: dict[str, dict[str, list[float]]] = {r: {w: [] for w in ways} for r in readers}
    for _ in range(rounds + 1):
        for name, read in readers.items():
            for way, size in ways.items():
                lots = [order[i : i + size] for i in range(0, len(order), size)]
                spent = report.cpu_seconds(lambda r=read, many=lots: [r(lot) for lot in many])
                seconds[name][way].append(spent)
    return {
        name: {way: statistics.median(values[1:]) for way, values in by_way.items()}
        for name, by_way in seconds.items()
    }


def _pieces(rows: dict[str, TargetRows], copies: int) -> dict[str, TargetRows]:
    """Return rows as entries of a ticket's length, and again under other names: enough to time."""
    out: dict[str, TargetRows] = {}
    for copy in range(copies):
        for number, r in enumerate(rows.values()):
            for start in range(0, len(r.ids) - SHORT + 1, SHORT):
                entry = entry_of(np.array([copy, number, start], dtype=np.int32))
                out[entry] = r.take(slice(start, start + SHORT))
    return out


def table(figures: report.Facts) -> str:
    """Return bytes and speeds as plain tables."""
    lines = [f"{'layout':<10}{'bytes/token':>12}{'in lots':>12}{'one by one':>12}  tokens/CPU s"]
    for name, row in figures["read"]["layouts"].items():
        lines.append(
            f"{name:<10}{row['bytes_per_token']:>12.1f}{row['in lots'] / 1e6:>10.2f} M"
            f"{row['one by one'] / 1e6:>10.2f} M"
        )
    for name in PROFILES:
        row = figures[name]
        lines.append(
            f"{name}: {row['bytes_per_token']:.1f} bytes a token, head "
            f"{row['head_entries_per_token']:.1f}"
        )
    return "\n".join(lines)


def measure(name: str, ask: report.Facts) -> report.Facts:
    """Answer one variant: a profile's bytes, or reading speeds."""
    return speeds(name, ask) if name == "read" else bytes_of(name, ask)


def main() -> None:
    """Compare, or measure one variant when the comparison asks for it."""
    asked: argparse.Namespace = report.options(__doc__ or "").parse_args()
    if report.answered(asked, measure):
        return
    ask = {"conversations": 3 if asked.quick else 8, "copies": 1 if asked.quick else 24}
    ask["rounds"] = 1 if asked.quick else 5
    figures = {
        name: report.variant("bench.cache", name, asked, **ask) for name in (*PROFILES, "read")
    }
    shards = figures["read"]["layouts"]["shards"]
    bars = [
        report.Bar("bytes a token, standard", figures["standard"]["bytes_per_token"], MOST_BYTES),
        report.Bar("tokens/CPU s, in lots", shards["in lots"], LEAST_SPEED, at_most=False),
        report.Bar("tokens/CPU s, one by one", shards["one by one"], LEAST_SPEED, at_most=False),
    ]
    report.finish("cache", asked, figures, table(figures), bars)


if __name__ == "__main__":
    main()
